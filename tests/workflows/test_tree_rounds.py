"""The round loop over ensembles of trees: who sends what is none is dropped, the others go on."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from strategies import Parameters
from tests.runtimes.run_folders import finished, job, lay, outputs, told
from tests.strategies.forests import ensemble, layer, stump
from tests.workflows.test_rounds import SITES, LocalSites
from workflows.causes import CauseCode
from workflows.checkpoint import Checkpoint, read_model
from workflows.events import SiteDropped
from workflows.exchange import Federation
from workflows.folding import SiteUpdate
from workflows.job import JobSpec
from workflows.rounds import run_rounds
from workflows.run_folder import StepError, StepFolder
from workflows.tasks import SiteFailure
from workflows.transcript import RoundTranscript

BEGINNING = layer(ensemble())


def federate(root: Path, spec: JobSpec, exchange: LocalSites) -> Path:
    folder = StepFolder(lay(root, spec), "federate", clock=lambda: 0.0)
    federation = Federation(SITES, exchange, clock=lambda: 0.0)
    run_rounds(folder, federation, Checkpoint(spec.strategy.init(BEGINNING)), [])
    return root


def trees(**fields: object) -> JobSpec:
    usual = {"strategy": {"kind": "xgb-bagging"}, "local": {"epochs": 1}, "rounds": 2}
    return job(**{**usual, **fields})


def reply(site: str, round_: int, params: Parameters) -> SiteUpdate | SiteFailure:
    """A stump whose threshold names the site and the round; two sites send what is none."""
    sent: dict[str, np.ndarray] = layer(ensemble(stump(SITES.index(site) + 10.0 * round_, -1, 1)))
    if site == SITES[1]:
        sent = layer(ensemble(stump(0, 1, 2, feature=7)))
    if site == SITES[3]:
        sent = layer(ensemble(stump(0, 1, 1e38)))
    return SiteUpdate(site, sent, 10, 0.5, 100)


def test_who_sends_no_trees_is_dropped_and_on_record(tmp_path: Path) -> None:
    root = federate(tmp_path / "run", trees(), LocalSites(reply))

    model = json.loads(read_model(outputs(root)["model.safetensors"])["trees"].tobytes())
    found = model["learner"]["gradient_booster"]["model"]["trees"]
    assert [tree["split_conditions"][0] for tree in found] == [10, 12, 14, 20, 22, 24]
    drops = [event for event in told(root) if isinstance(event, SiteDropped)]
    assert [(d.site, d.cause.code) for d in drops[:2]] == [
        (SITES[1], CauseCode.UPDATE_INCOMPATIBLE),
        (SITES[3], CauseCode.UPDATE_NOT_FINITE),
    ]
    assert "a split asks for feature 7 of 2" in drops[0].cause.detail
    lines = outputs(root)["transcripts.jsonl"].splitlines()
    first = msgspec.json.decode(lines[0], type=RoundTranscript)
    assert [one.site for one in first.dropped] == [SITES[1], SITES[3]]
    assert [event.sites for event in finished(root)] == [3, 3]


def test_the_order_of_the_answers_does_not_show(tmp_path: Path) -> None:
    one, other = (
        federate(tmp_path / f"run-{name}", trees(), LocalSites(reply, is_reversed=bool(name)))
        for name in ("", "backwards")
    )

    assert outputs(one) == outputs(other)


def test_an_ensemble_that_outgrows_the_limit_ends_the_run(tmp_path: Path) -> None:
    large = ensemble(*[stump(0, -1, 1)] * 1500)
    sites = LocalSites(lambda site, round_, params: SiteUpdate(site, layer(large), 10, None, 100))
    spec = trees(limits={"output_mb": 3}, local={"epochs": 1500})

    with pytest.raises(StepError) as ended:
        federate(tmp_path / "run", spec, sites)

    cause = ended.value.cause
    assert (cause.code, cause.round) == (CauseCode.PROGRAM_OUTPUT_TOO_LARGE, 1)
    assert "of limits.output_mb = 3" in cause.detail
