"""When what a site keeps is renewed: with the update that was folded, and with no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from strategies import Parameters
from tests.runtimes.run_folders import finished, inputs_after, job, outputs
from tests.workflows.test_rounds import SITES, START, LocalSites, delta_of, federate
from workflows.causes import Cause, CauseCode
from workflows.checkpoint import Checkpoint, read_checkpoint, read_model
from workflows.exchange import Question
from workflows.folding import SiteUpdate, codec_seed
from workflows.job import JobSpec
from workflows.run_folder import StepFolder
from workflows.tasks import SiteFailure

Spoil = Callable[[SiteUpdate], SiteUpdate | SiteFailure]


@dataclass
class KeepingSites(LocalSites):
    """Sites whose codec keeps something; what one sends in round 2 may be spoilt."""

    spec: JobSpec | None = None
    spoil: Spoil = lambda update: update

    def ask(self, question: Question) -> Iterator[SiteUpdate | SiteFailure]:
        assert self.spec
        for site in question.sites:
            delta = delta_of(site, question.round, question.params)
            seed = codec_seed(self.spec, question.round, site)
            share = self.spec.codec.conclude(delta, question.memories.get(site, {}), seed)
            update = SiteUpdate(site, share.sent, 1, None, 0, {}, share.memory)
            is_spoilt = question.round == 2 and site == SITES[1]
            yield self.spoil(update) if is_spoilt else update


def run(root: Path, spoil: Spoil = lambda update: update) -> list[Checkpoint]:
    codec = {"kind": "top-k", "fraction": 0.4}
    spec = job(strategy={"kind": "fedavg"}, rounds=3, codec=codec)
    federate(root, spec, KeepingSites(spec=spec, spoil=spoil))
    files = StepFolder(root, "federate").files
    return [read_checkpoint(files.object(e.checkpoint).read_bytes()) for e in finished(root)]


def as_bytes(tree: Parameters) -> dict[str, bytes]:
    return {name: x.tobytes() for name, x in tree.items()}


def with_nan(update: SiteUpdate) -> SiteUpdate:
    spoilt = {name: np.full_like(x, 0xFF) for name, x in update.delta.items()}
    return SiteUpdate(update.site, spoilt, 1, None, 0, {}, update.memory)


def with_bad_memory(value: float) -> Spoil:
    def spoil(update: SiteUpdate) -> SiteUpdate:
        memory = {name: np.full_like(x, value) for name, x in update.memory.items()}
        return SiteUpdate(update.site, update.delta, 1, None, 0, {}, memory)

    return spoil


def without_memory(update: SiteUpdate) -> SiteUpdate:
    return SiteUpdate(update.site, update.delta, 1, None, 0)


def lost(update: SiteUpdate) -> SiteFailure:
    return SiteFailure(Cause(code=CauseCode.PROGRAM_HUNG, site=update.site))


@pytest.mark.parametrize(
    "spoil",
    [with_nan, lost, with_bad_memory(np.inf), without_memory],
    ids=["refused", "lost", "kept what is no number", "kept nothing"],
)
def test_a_site_whose_update_was_not_folded_keeps_what_it_had(tmp_path: Path, spoil: Spoil) -> None:
    calm, spoilt = run(tmp_path / "calm"), run(tmp_path / "spoilt", spoil)

    for number, (one, other) in enumerate(zip(calm, spoilt, strict=True), start=1):
        assert one.memories.keys() == other.memories.keys() == set(SITES)
        if number == 2:
            before = spoilt[0].memories[SITES[1]]
            assert as_bytes(other.memories[SITES[1]]) == as_bytes(before)
    (dropped,) = (e for e in finished(tmp_path / "spoilt") if e.dropped)
    assert dropped.round == 2


def test_what_was_folded_and_what_is_kept_is_all_that_was_trained(tmp_path: Path) -> None:
    checkpoints = run(tmp_path)

    final = checkpoints[-1]
    models = [START, *(checkpoint.state.params for checkpoint in checkpoints)]
    for name, start in START.items():
        trained = sum(
            delta_of(site, number, models[number - 1])[name].astype(float)
            for number in (1, 2, 3)
            for site in SITES
        )
        kept = sum(final.memories[site][name].astype(float) for site in SITES)
        moved = final.state.params[name].astype(float) - start
        np.testing.assert_allclose(moved * len(SITES) + kept, trained, atol=2e-5)


def test_a_run_cut_after_any_round_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    whole = outputs(tmp_path / "whole")
    spec = StepFolder(tmp_path / "whole", "federate").plan.spec

    for on_record in range(1, 4):
        inputs = inputs_after(tmp_path / "whole", on_record)
        root = federate(tmp_path / f"{on_record}", spec, KeepingSites(spec=spec), inputs)
        assert outputs(root) == whole
    assert read_model(whole["model.safetensors"]).keys() == START.keys()
