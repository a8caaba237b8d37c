"""Runs of sites that a worker trains and folds: the same as one site after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from strategies import ClientHalf, Parameters, Partial, ServerState, digest_of_fold
from tests.runtimes.run_folders import job
from workflows.capabilities import ProgramFacts
from workflows.causes import Cause, CauseCode
from workflows.data.examples import Examples
from workflows.data.preparation import prepare
from workflows.folding import FoldedSites, fold_of
from workflows.frames import FrameError, arrays_from
from workflows.job import JobSpec, Local, Partitioned
from workflows.model_file import lay_model
from workflows.tasks import Failed, FoldedSite, Open, OpenData, TrainedMany, TrainMany
from workflows.trainers.trainer import Measured, ProgramError, Trained
from workflows.workbench import Workbench

PLAN = "sha256:" + "ab" * 32
START: Parameters = {"b": np.array(1.0), "w": np.zeros((4, 3), np.float32)}


class Drawn:
    """A trainer whose sites send what their seed draws; some of them something else."""

    def __init__(self, wrong: dict[int, str]) -> None:
        self._wrong = wrong
        self._calls = 0

    @property
    def facts(self) -> ProgramFacts:
        return ProgramFacts(framework="torch", parameters=())

    def initial(self) -> dict[str, np.ndarray]:
        return dict(START)

    def train(
        self, params: Parameters, examples: Examples, local: Local, half: ClientHalf, seed: int
    ) -> Trained:
        self._calls += 1
        rng = np.random.default_rng(seed)
        delta = {name: rng.normal(size=x.shape).astype(x.dtype) for name, x in params.items()}
        match self._wrong.get(self._calls):
            case "raises":
                raise ProgramError(Cause(code=CauseCode.PROGRAM_RAISED, detail="no"))
            case "exits":
                raise SystemExit(3)
            case "nan":
                delta["w"][0, 0] = np.nan
            case "large":
                delta["w"] = np.zeros((600, 1000), np.float32)
        return Trained(delta, len(examples), 0.5)

    def evaluate(self, params: Parameters, examples: Examples, metrics: Sequence[str]) -> Measured:
        raise NotImplementedError

    def export(self, params: Parameters, samples: np.ndarray, folder: Path) -> None:
        raise NotImplementedError


def spec_of(**fields: Any) -> JobSpec:
    limits = {"output_mb": 2}
    return job(data=Partitioned(dataset="iris", sites=12), limits=limits, **fields)


def bench(folder: Path, wrong: dict[int, str] | None = None) -> Workbench:
    made = Workbench(lambda *_: Drawn(wrong or {}))
    prepare(Partitioned(dataset="iris", sites=12), folder, folder / "data")
    made.handle(OpenData(folder=str(folder / "data")), [])
    made.handle(Open(program="."), [])
    return made


def task(folder: Path, spec: JobSpec, sites: Sequence[str], **fields: Any) -> TrainMany:
    model = lay_model(spec.strategy.offer(ServerState(START)), folder / "model", 1)
    usual = {"counts": None, "round": 1, "plan": PLAN, "job": "job-1"}
    return TrainMany(sites=tuple(sites), model=model, spec=spec, **(usual | fields))


def zero(spec: JobSpec) -> Partial:
    return spec.strategy.zero(ServerState(START))


def folded(made: Workbench, asked: TrainMany) -> FoldedSites:
    answer, blobs = made.handle(asked, [])
    assert isinstance(answer, TrainedMany)
    return fold_of(asked, answer, arrays_from(answer.arrays, blobs), zero(asked.spec))


FIELDS: dict[str, dict[str, Any]] = {
    "as they are": {"strategy": {"kind": "fedavg"}},
    "in bytes": {"strategy": {"kind": "fedadam"}, "codec": {"kind": "int8"}},
    "bounded": {"strategy": {"kind": "norm-bounding", "max_norm": 0.5}},
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("counts", [None, (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8)], ids=str)
def test_how_sites_are_run_together_does_not_show(
    tmp_path: Path, fields: dict[str, Any], counts: tuple[int, ...] | None
) -> None:
    spec, made = spec_of(**fields), bench(tmp_path)
    sites = made.data.sites

    def merged(length: int) -> tuple[str, Any, Any, int]:
        total, commitments, losses, size_bytes = zero(spec), [], {}, 0
        for start in range(0, len(sites), length):
            run = slice(start, start + length)
            one = folded(
                made, task(tmp_path, spec, sites[run], counts=counts[run] if counts else None)
            )
            spec.strategy.merge(total, one.partial)
            commitments += one.commitments
            losses |= one.losses
            size_bytes += one.size_bytes
        return digest_of_fold(total), commitments, losses, size_bytes

    alone = merged(1)

    assert merged(5) == merged(12) == alone
    assert [commitment.site for commitment in alone[1]] == list(sites)
    assert len({commitment.update for commitment in alone[1]}) == 12


def test_a_site_that_fails_is_left_out_of_the_run_with_its_cause(tmp_path: Path) -> None:
    spec = spec_of(strategy={"kind": "fedavg"})
    made = bench(tmp_path, {2: "raises", 3: "exits", 5: "nan", 6: "large"})
    sites = made.data.sites[:7]

    one = folded(made, task(tmp_path, spec, sites))

    assert [(cause.site, cause.code) for cause in one.failures] == [
        (sites[1], CauseCode.PROGRAM_RAISED),
        (sites[2], CauseCode.PROGRAM_DIED),
        (sites[4], CauseCode.UPDATE_NOT_FINITE),
        (sites[5], CauseCode.PROGRAM_OUTPUT_TOO_LARGE),
    ]
    kept = folded(bench(tmp_path), task(tmp_path, spec, (sites[0], sites[3], sites[6])))
    assert one.partial.sites == {sites[0], sites[3], sites[6]}
    assert digest_of_fold(one.partial) == digest_of_fold(kept.partial)
    assert one.size_bytes == 3 * (8 + 48)


def test_a_fold_that_these_sites_cannot_have_made_is_refused(tmp_path: Path) -> None:
    spec, made = spec_of(strategy={"kind": "fedavg"}), bench(tmp_path)
    asked = task(tmp_path, spec, made.data.sites[:3])
    answer, blobs = made.handle(asked, [])
    assert isinstance(answer, TrainedMany)
    sums = arrays_from(answer.arrays, blobs)
    first = answer.sites[0]
    assert isinstance(first, FoldedSite)
    edit = msgspec.structs.replace
    other = edit(first, commitment=edit(first.commitment, site="site-0012"))
    lost = Failed(cause=Cause(code=CauseCode.PROGRAM_RAISED))
    entry = (64 * 2**24) * answer.weight
    forged: dict[str, tuple[TrainedMany, dict[str, np.ndarray]]] = {
        "not of this model": (answer, {"w": sums["w"]}),
        "tells of 2 sites, not 3": (edit(answer, sites=answer.sites[1:]), sums),
        "tells of site-0012": (edit(answer, sites=(other, *answer.sites[1:])), sums),
        "2 sites cannot weigh 1": (edit(answer, sites=(lost, *answer.sites[1:]), weight=1), sums),
        "3 sites cannot weigh": (edit(answer, weight=3 << 20 | 1), sums),
        "beyond what these sites could add": (answer, sums | {"b": np.array(entry + 1)}),
    }
    for problem, (told, sent) in forged.items():
        with pytest.raises(FrameError, match=problem):
            fold_of(asked, told, sent, zero(spec))

    assert fold_of(asked, answer, sums | {"b": np.array(entry)}, zero(spec)).partial.weight
