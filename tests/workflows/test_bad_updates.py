"""A bad update in a round of every strategy: dropped by name, on record, and without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from strategies import KINDS, Parameters, Strategy
from strategies.krum import Krum
from tests.runtimes.run_folders import finished, job, lay, outputs, told
from workflows.causes import Cause, CauseCode
from workflows.checkpoint import Checkpoint
from workflows.events import SiteDropped
from workflows.exchange import Federation, Question, SiteMeasures
from workflows.folding import SiteUpdate
from workflows.job import JobSpec
from workflows.rounds import run_rounds
from workflows.run_folder import StepError, StepFolder
from workflows.seeds import derive
from workflows.tasks import SiteFailure
from workflows.transcript import RoundTranscript, verify_chain

SITES = tuple(f"site-{k:04d}" for k in range(1, 10))
WHO = SITES[4]
START: Parameters = {"b": np.array(1.0), "w": np.zeros((2, 3), np.float32)}
PLAIN: dict[str, Strategy] = {
    tag: kind()
    for tag, kind in KINDS.items()
    if kind.model_kind == "arrays" and not kind().buffered
}
"""Folds of whole cohorts of arrays. Others: ``test_rounds_asynchrony``, ``test_tree_rounds``."""
STRATEGIES: dict[str, Strategy] = PLAIN | {"krum with momentum": Krum(client_momentum=0.5)}
Spoil = Callable[[SiteUpdate], SiteUpdate]


def honest(strategy: Strategy, site: str, round_: int) -> SiteUpdate:
    rng = np.random.default_rng(derive(1, site, round_))
    delta = {n: (0.1 * rng.normal(size=x.shape)).astype(x.dtype) for n, x in START.items()}
    beside = {f"{v}/{name}": x for v in strategy.vectors for name, x in delta.items()}
    told = {str(name): 2.0 for name in strategy.scalars}
    kept = delta if strategy.has_memory else {}
    return SiteUpdate(site, {**delta, **beside}, 5, None, 56, told, kept)


def layer(value: np.ndarray, vector: str = "") -> Spoil:
    return lambda answer: replace(answer, delta={**answer.delta, f"{vector}w": value})


def memory(value: np.ndarray) -> Spoil:
    return lambda answer: replace(answer, memory={**answer.memory, "w": value})


BAD: dict[str, tuple[Spoil, CauseCode]] = {
    "NaN": (layer(np.full((2, 3), np.nan, np.float32)), CauseCode.UPDATE_NOT_FINITE),
    "beyond the ring": (layer(np.full((2, 3), 1e6)), CauseCode.UPDATE_OUT_OF_RING),
    "another shape": (layer(np.zeros((3, 2))), CauseCode.UPDATE_INCOMPATIBLE),
    "integers": (layer(np.ones((2, 3), np.int64)), CauseCode.UPDATE_INCOMPATIBLE),
    "truths": (layer(np.ones((2, 3), np.bool_)), CauseCode.UPDATE_INCOMPATIBLE),
    "long doubles": (layer(np.ones((2, 3), np.longdouble)), CauseCode.UPDATE_INCOMPATIBLE),
    "complex numbers": (layer(np.ones((2, 3), np.complex128)), CauseCode.UPDATE_INCOMPATIBLE),
    "texts": (layer(np.full((2, 3), "a")), CauseCode.UPDATE_INCOMPATIBLE),
    "no layers": (lambda answer: replace(answer, delta={}), CauseCode.UPDATE_INCOMPATIBLE),
    "no examples": (lambda a: replace(a, num_examples=0), CauseCode.UPDATE_OUT_OF_RING),
    "fewer than none": (lambda a: replace(a, num_examples=-1), CauseCode.UPDATE_OUT_OF_RING),
    "far too many": (lambda a: replace(a, num_examples=1 << 60), CauseCode.UPDATE_OUT_OF_RING),
}
TOLD: dict[str, tuple[Spoil, CauseCode]] = {
    "no number": (lambda a: replace(a, scalars={}), CauseCode.UPDATE_INCOMPATIBLE),
    "a number that is none": (
        lambda a: replace(a, scalars=dict.fromkeys(a.scalars, np.nan)),
        CauseCode.UPDATE_NOT_FINITE,
    ),
    "a negative number": (
        lambda a: replace(a, scalars=dict.fromkeys(a.scalars, -1.0)),
        CauseCode.UPDATE_OUT_OF_RING,
    ),
}
KEPT: dict[str, tuple[Spoil, CauseCode]] = {
    "nothing kept": (lambda a: replace(a, memory={}), CauseCode.UPDATE_INCOMPATIBLE),
    "kept in another shape": (memory(np.zeros(6, np.float32)), CauseCode.UPDATE_INCOMPATIBLE),
    "kept as integers": (memory(np.zeros((2, 3), np.int32)), CauseCode.UPDATE_INCOMPATIBLE),
    "kept NaN": (memory(np.full((2, 3), np.nan, np.float32)), CauseCode.UPDATE_NOT_FINITE),
}


@dataclass(frozen=True)
class Sites:
    """Sites in this process, of which some spoil what they send."""

    strategy: Strategy
    spoil: Callable[[SiteUpdate], SiteUpdate | SiteFailure]
    bad: Sequence[str] = (WHO,)

    def ask(self, question: Question) -> Iterator[SiteUpdate | SiteFailure]:
        for site in question.sites:
            answer = honest(self.strategy, site, question.round)
            yield self.spoil(answer) if site in self.bad else answer

    def measure(
        self, round: int, params: Parameters, sites: Sequence[str | None]
    ) -> Iterator[SiteMeasures | SiteFailure]:
        return iter(())

    def tell_losses(
        self, round: int, params: Parameters, sites: Sequence[str]
    ) -> Iterator[SiteMeasures | SiteFailure]:
        return iter(())


def hung(answer: SiteUpdate) -> SiteFailure:
    return SiteFailure(Cause(code=CauseCode.PROGRAM_HUNG, site=answer.site))


def federate(root: Path, sites: Sites, **cohort: str) -> Path:
    spec: JobSpec = job(rounds=1, evaluate={"metrics": []}, cohort=cohort)
    spec = msgspec.structs.replace(spec, strategy=sites.strategy)
    folder = StepFolder(lay(root, spec), "federate", clock=lambda: 0.0)
    start = Checkpoint(spec.strategy.init(START))
    run_rounds(folder, Federation(SITES, sites, clock=lambda: 0.0), start, [])
    return root


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_bad_update_is_dropped_by_name_on_record_and_without_a_trace(
    tmp_path: Path, name: str
) -> None:
    strategy = STRATEGIES[name]
    cases = BAD | (TOLD if strategy.scalars else {}) | (KEPT if strategy.has_memory else {})
    for vector in strategy.vectors:
        spoil = layer(np.full((2, 3), np.inf, np.float32), f"{vector}/")
        cases = cases | {f"infinity in {vector}": (spoil, CauseCode.UPDATE_NOT_FINITE)}
    without = federate(tmp_path / "without", Sites(strategy, hung))

    for case, (spoil, code) in cases.items():
        root = federate(tmp_path / case, Sites(strategy, spoil))

        (line,) = outputs(root)["transcripts.jsonl"].splitlines()
        transcript = msgspec.json.decode(line, type=RoundTranscript)
        verify_chain([transcript], plan=StepFolder(root, "federate").plan.plan_digest)
        assert [(d.site, d.cause) for d in transcript.dropped] == [(WHO, code)], case
        assert transcript.cohort == SITES
        (event,) = (e for e in told(root) if isinstance(e, SiteDropped))
        assert (event.site, event.cause.code, event.cause.round) == (WHO, code, 1)
        assert event.cause.detail
        assert outputs(root)["model.safetensors"] == outputs(without)["model.safetensors"], case
        assert finished(root)[0].checkpoint == finished(without)[0].checkpoint, case


@pytest.mark.parametrize("name", PLAIN)
def test_a_job_that_wants_every_site_and_a_cohort_of_bad_ones_fail_with_the_cause(
    tmp_path: Path, name: str
) -> None:
    strategy, (spoil, code) = STRATEGIES[name], BAD["NaN"]
    few = strategy.min_updates - 1

    with pytest.raises(StepError) as strict:
        federate(tmp_path / "strict", Sites(strategy, spoil), on_site_failure="fail")
    with pytest.raises(StepError) as all_bad:
        federate(tmp_path / "all", Sites(strategy, spoil, SITES))
    with pytest.raises(StepError) as too_few:
        federate(tmp_path / "few", Sites(strategy, spoil, SITES[few:]))

    assert (strict.value.cause.code, strict.value.cause.site) == (code, WHO)
    assert (all_bad.value.cause.code, all_bad.value.cause.site) == (code, None)
    assert SITES[0] in all_bad.value.cause.detail
    if few:
        assert too_few.value.cause.code is CauseCode.COHORT_TOO_SMALL
        assert f"{few} of 9 sites gave an update" in too_few.value.cause.detail
        assert f"{SITES[few]}: {code}" in too_few.value.cause.evidence
