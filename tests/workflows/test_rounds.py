from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharing.object_store import digest_of
from strategies import ROOT, Parameters
from tests.runtimes.run_folders import finished, inputs_after, job, lay, outputs, told
from workflows.causes import Cause, CauseCode
from workflows.checkpoint import Checkpoint, model_bytes, read_checkpoint, read_model
from workflows.events import RoundFinished, SiteDropped
from workflows.exchange import Federation, Question, SiteMeasures
from workflows.folding import SiteUpdate, codec_seed
from workflows.job import JobSpec
from workflows.rounds import run_rounds, weighted_mean
from workflows.run_folder import StepError, StepFolder
from workflows.seeds import derive
from workflows.tasks import SiteFailure
from workflows.transcript import Commitment, RoundTranscript, commit, simulated_salt, verify_chain

SITES = tuple(f"site-{k:04d}" for k in range(1, 6))
START: Parameters = {"b": np.array(1.0), "w": np.zeros((2, 3), np.float32)}


def delta_of(site: str, round_: int, params: Parameters) -> dict[str, np.ndarray]:
    """What a site answers: it depends on the model, the site and the round alone."""
    rng = np.random.default_rng(derive(1, site, round_))
    return {
        name: (rng.normal(size=x.shape) - 0.1 * x).astype(x.dtype) for name, x in params.items()
    }


Reply = Callable[[str, int, Parameters], SiteUpdate | SiteFailure]


def honest(site: str, round_: int, params: Parameters) -> SiteUpdate | SiteFailure:
    weight = SITES.index(site) + 1
    return SiteUpdate(site, delta_of(site, round_, params), weight, 0.1 * weight, 56)


@dataclass
class LocalSites:
    """Sites in this process."""

    reply: Reply = honest
    values: Callable[[str | None, int], Mapping[str, float]] = lambda site, round_: {
        "accuracy": 1 / round_
    }
    loss: Callable[[str, int], SiteMeasures | SiteFailure] = lambda site, round_: SiteMeasures(
        site, {"loss": float(np.random.default_rng(derive(2, site, round_)).random())}, 10
    )
    asked: list[Question] = field(default_factory=list)
    is_reversed: bool = False

    def ask(self, question: Question) -> Iterator[SiteUpdate | SiteFailure]:
        self.asked.append(question)
        sites = reversed(question.sites) if self.is_reversed else question.sites
        for site in sites:
            yield self.reply(site, question.round, question.params)

    def measure(
        self, round: int, params: Parameters, sites: Sequence[str | None]
    ) -> Iterator[SiteMeasures | SiteFailure]:
        for site in sites:
            values = self.values(site, round)
            if "fails" in values:
                yield SiteFailure(Cause(code=CauseCode.PROGRAM_RAISED, site=site))
            else:
                yield SiteMeasures(site, values, 10)

    def tell_losses(
        self, round: int, params: Parameters, sites: Sequence[str]
    ) -> Iterator[SiteMeasures | SiteFailure]:
        for site in reversed(sites) if self.is_reversed else sites:
            yield self.loss(site, round)


def federate(
    root: Path,
    spec: JobSpec,
    exchange: LocalSites | None = None,
    inputs: Mapping[str, bytes] | None = None,
) -> Path:
    folder = StepFolder(lay(root, spec, inputs), "federate", clock=lambda: 0.0)
    sites = exchange or LocalSites()
    federation = Federation(SITES, sites, clock=lambda: 0.0, num_examples=EXAMPLES)
    start, transcripts = Checkpoint(spec.strategy.init(START)), []
    if inputs:
        start = read_checkpoint(inputs["checkpoint.safetensors"])
        lines = inputs["transcripts.jsonl"].splitlines()
        transcripts = [msgspec.json.decode(line, type=RoundTranscript) for line in lines]
    run_rounds(folder, federation, start, transcripts)
    return root


def transcripts_of(root: Path) -> list[RoundTranscript]:
    lines = outputs(root)["transcripts.jsonl"].splitlines()
    return [msgspec.json.decode(line, type=RoundTranscript) for line in lines]


def failure_of(root: Path, spec: JobSpec, exchange: LocalSites) -> Cause:
    with pytest.raises(StepError) as caught:
        federate(root, spec, exchange)
    return caught.value.cause


def test_a_round_is_the_weighted_mean_of_its_updates(tmp_path: Path) -> None:
    root = federate(tmp_path / "run", job(strategy={"kind": "fedavg"}, rounds=1))

    deltas = [delta_of(site, 1, START) for site in SITES]
    for name, x in read_model(outputs(root)["model.safetensors"]).items():
        mean = sum((k + 1) * delta[name] for k, delta in enumerate(deltas)) / 15
        np.testing.assert_allclose(x, START[name] + mean, atol=1e-6)
        assert x.dtype == START[name].dtype
    (event,) = finished(root)
    assert event.loss == pytest.approx(sum(0.1 * k * k for k in range(1, 6)) / 15)
    assert (event.sites, event.dropped, event.bytes_up, event.bytes_down) == (5, 0, 280, 160)


@pytest.mark.parametrize("kind", ["fedavg", "fedadam", "fedyogi", "coordinate-median"])
@pytest.mark.parametrize("select", ["last", "best"])
def test_a_run_cut_after_any_round_ends_as_the_undisturbed_one(
    tmp_path: Path, kind: str, select: str
) -> None:
    spec = job(
        strategy={"kind": kind},
        rounds=6,
        cohort={"size": 4, "minimum": 3},
        evaluate={"select": select, "every": 2},
    )
    exchange = LocalSites(values=lambda site, round_: {"accuracy": 0.9 if round_ == 2 else 0.1})
    whole = federate(tmp_path / "whole", spec, exchange)

    for on_record in range(1, 7):
        inputs = inputs_after(whole, on_record)
        resumed = federate(tmp_path / f"{on_record}", spec, exchange, inputs)

        assert outputs(resumed) == outputs(whole)
        assert [e.model for e in finished(resumed)] == [e.model for e in finished(whole)][
            on_record:
        ]

    chosen = finished(whole)[1 if select == "best" else -1]
    assert digest_of(outputs(whole)["model.safetensors"]) == chosen.model


def test_the_order_of_answers_does_not_show(tmp_path: Path) -> None:
    spec = job(rounds=3)

    one = federate(tmp_path / "one", spec)
    other = federate(tmp_path / "other", spec, LocalSites(is_reversed=True))

    assert outputs(one) == outputs(other)
    assert told(one) == told(other)


def test_transcripts_bind_sites_to_the_updates_in_the_sum(tmp_path: Path) -> None:
    root = federate(tmp_path / "run", job(rounds=2))
    plan = StepFolder(root, "federate").plan

    first, second = transcripts = transcripts_of(root)

    head = verify_chain(transcripts, plan=plan.plan_digest)
    assert head == finished(root)[-1].transcript
    assert first.previous_model == digest_of(model_bytes(START))
    assert second.previous == finished(root)[0].transcript
    for commitment in first.commitments:
        salt = simulated_salt("job-1", plan.plan_digest, commitment.site, 1)
        assert commitment.update == commit(salt, delta_of(commitment.site, 1, START))
    assert [c.num_examples for c in first.commitments] == [1, 2, 3, 4, 5]


def bad(kind: str) -> Reply:
    """Sites of which the second answers badly."""

    def reply(site: str, round_: int, params: Parameters) -> SiteUpdate | SiteFailure:
        good = honest(site, round_, params)
        if site != SITES[1] or isinstance(good, SiteFailure):
            return good
        delta = dict(good.delta)
        match kind:
            case "nan":
                delta["w"] = np.full((2, 3), np.nan, np.float32)
            case "large":
                delta["w"] = np.full((2, 3), 1e6, np.float32)
            case "shape":
                delta["w"] = np.zeros((3, 2), np.float32)
            case "layer":
                delta["extra"] = delta.pop("b")
            case "none":
                return SiteFailure(Cause(code=CauseCode.PROGRAM_HUNG, site=site))
        weight = {"weight": 0, "heavy": 1 << 60}.get(kind, good.num_examples)
        return SiteUpdate(site, delta, weight, good.loss, 56)

    return reply


BAD = [
    ("nan", CauseCode.UPDATE_NOT_FINITE),
    ("large", CauseCode.UPDATE_OUT_OF_RING),
    ("weight", CauseCode.UPDATE_OUT_OF_RING),
    ("heavy", CauseCode.UPDATE_OUT_OF_RING),
    ("shape", CauseCode.UPDATE_INCOMPATIBLE),
    ("layer", CauseCode.UPDATE_INCOMPATIBLE),
    ("none", CauseCode.PROGRAM_HUNG),
]


@pytest.mark.parametrize(("kind", "code"), BAD)
def test_a_bad_answer_is_dropped_and_the_round_is_as_if_it_had_not_come(
    tmp_path: Path, kind: str, code: CauseCode
) -> None:
    spec = job(rounds=1)

    def absent(site: str, round_: int, params: Parameters) -> SiteUpdate | SiteFailure:
        return bad("none")(site, round_, params)

    root = federate(tmp_path / "run", spec, LocalSites(bad(kind)))
    without = federate(tmp_path / "without", spec, LocalSites(absent))

    (transcript,) = transcripts_of(root)
    assert [(d.site, d.cause) for d in transcript.dropped] == [(SITES[1], code)]
    assert transcript.cohort == SITES
    assert transcript.sum == transcripts_of(without)[0].sum
    assert outputs(root)["model.safetensors"] == outputs(without)["model.safetensors"]
    (event,) = (e for e in told(root) if isinstance(e, SiteDropped))
    assert (event.site, event.cause.code, event.cause.round) == (SITES[1], code, 1)
    assert finished(root)[0].dropped == 1


@pytest.mark.parametrize(("kind", "code"), BAD)
def test_a_job_that_wants_every_site_fails_with_the_sites_cause(
    tmp_path: Path, kind: str, code: CauseCode
) -> None:
    spec = job(cohort={"on_site_failure": "fail"})

    cause = failure_of(tmp_path / "run", spec, LocalSites(bad(kind)))

    assert (cause.code, cause.site, cause.round) == (code, SITES[1], 1)


def test_too_few_answers_fail_the_run_and_say_how_many(tmp_path: Path) -> None:
    cause = failure_of(tmp_path / "run", job(cohort={"minimum": 5}), LocalSites(bad("nan")))

    assert cause.code is CauseCode.COHORT_TOO_SMALL
    assert cause.detail == "4 of 5 sites gave an update, 5 are needed"
    assert "site-0002: update-not-finite" in cause.evidence


def test_where_all_sites_fail_alike_the_run_fails_with_that(tmp_path: Path) -> None:
    def raising(site: str, round_: int, params: Parameters) -> SiteFailure:
        detail = "ValueError: no"
        return SiteFailure(Cause(code=CauseCode.PROGRAM_RAISED, detail=detail, site=site))

    cause = failure_of(tmp_path / "run", job(), LocalSites(raising))

    assert cause.code is CauseCode.PROGRAM_RAISED
    assert "every site" in cause.detail
    assert "ValueError: no" in cause.detail


def test_a_model_that_overflows_fails_the_run(tmp_path: Path) -> None:
    spec = job(strategy={"kind": "fedavg", "eta": 1e38})

    def large(site: str, round_: int, params: Parameters) -> SiteUpdate:
        return SiteUpdate(site, {n: np.full_like(x, 60) for n, x in params.items()}, 1, None, 0)

    with np.errstate(over="ignore"):
        cause = failure_of(tmp_path / "run", spec, LocalSites(large))

    assert cause.code is CauseCode.UPDATE_NOT_FINITE
    assert "learning rate" in cause.detail


def test_rounds_before_a_failure_are_on_record(tmp_path: Path) -> None:
    def later(site: str, round_: int, params: Parameters) -> SiteUpdate | SiteFailure:
        return honest(site, round_, params) if round_ < 3 else bad("none")(SITES[1], 3, params)

    failure_of(tmp_path / "run", job(cohort={"on_site_failure": "fail"}), LocalSites(later))

    assert [event.round for event in finished(tmp_path / "run")] == [1, 2]
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_metrics_are_weighted_means_in_the_rounds_they_are_due(tmp_path: Path) -> None:
    spec = job(rounds=5, evaluate={"every": 2, "metrics": ["accuracy", "auroc"]})
    values = LocalSites(
        values=lambda site, round_: (
            {"accuracy": 0.5, "auroc": 1.0} if site == SITES[0] else {"accuracy": 0.25}
        )
    )

    root = federate(tmp_path / "run", spec, values)

    due = {"accuracy": pytest.approx(0.3), "auroc": 1.0}
    assert [event.metrics for event in finished(root)] == [{}, due, {}, due, due]


def test_few_examples_release_no_metric(tmp_path: Path) -> None:
    root = federate(tmp_path / "run", job(rounds=1, evaluate={"minimum_count": 11}))

    assert finished(root)[0].metrics == {}


@pytest.mark.parametrize("where", ["sites", "central"])
def test_a_run_that_nobody_can_measure_fails(tmp_path: Path, where: str) -> None:
    exchange = LocalSites(values=lambda site, round_: {"fails": 1.0})

    cause = failure_of(tmp_path / "run", job(evaluate={"where": where}), exchange)

    assert (cause.code, cause.round) == (CauseCode.PROGRAM_RAISED, 1)


def test_one_site_that_cannot_measure_is_left_out_and_told_of(tmp_path: Path) -> None:
    exchange = LocalSites(
        values=lambda site, round_: {"fails": 1.0} if site == SITES[2] else {"accuracy": 0.5}
    )

    root = federate(tmp_path / "run", job(rounds=1), exchange)

    assert finished(root)[0].metrics == {"accuracy": 0.5}
    assert [e.site for e in told(root) if isinstance(e, SiteDropped)] == [SITES[2]]
    assert transcripts_of(root)[0].dropped == ()


@pytest.mark.parametrize(
    ("metric", "best"), [("accuracy", 3), ("mse", 1)], ids=["more is better", "less is better"]
)
def test_the_first_of_the_best_rounds_is_the_result(tmp_path: Path, metric: str, best: int) -> None:
    course = {1: 0.1, 2: 0.5, 3: 0.7, 4: 0.7, 5: 0.1}
    exchange = LocalSites(values=lambda site, round_: {metric: course[round_]})
    spec = job(rounds=5, evaluate={"metrics": [metric], "select": "best"})

    root = federate(tmp_path / "run", spec, exchange)

    assert digest_of(outputs(root)["model.safetensors"]) == finished(root)[best - 1].model


def test_the_strategys_client_half_and_the_deadline_reach_the_sites(tmp_path: Path) -> None:
    exchange = LocalSites()
    strategy = {"kind": "fedprox", "mu": 0.25}

    federate(
        tmp_path / "run", job(strategy=strategy, rounds=2, cohort={"deadline_s": 12.5}), exchange
    )

    assert [(q.strategy.client_half().proximal_mu, q.deadline_s) for q in exchange.asked] == [
        (0.25, 12.5)
    ] * 2


def keeping(spoilt: str = "", how: Callable[[Parameters], Parameters] = dict) -> Reply:
    """Sites that keep the number of the round; ``spoilt`` keeps what ``how`` makes of it."""

    def reply(site: str, round_: int, params: Parameters) -> SiteUpdate | SiteFailure:
        model = {name: x for name, x in params.items() if not name.startswith("control/")}
        delta = delta_of(site, round_, model)
        sent = {**delta, **{f"control/{name}": x / 2 for name, x in delta.items()}}
        kept: Parameters = {name: np.full_like(x, round_) for name, x in model.items()}
        if site == spoilt and round_ == 2:
            kept = how(kept)
        return SiteUpdate(site, sent, 1, None, 56, {}, kept)

    return reply


SPOILT: dict[str, Callable[[Parameters], Parameters]] = {
    "nothing": lambda kept: {},
    "another layer": lambda kept: {**kept, "more": np.zeros(2)},
    "another shape": lambda kept: {**kept, "w": np.zeros((3, 2), np.float32)},
    "another dtype": lambda kept: {**kept, "w": kept["w"].astype(np.float64)},
    "no number": lambda kept: {**kept, "w": np.full((2, 3), np.nan, np.float32)},
}


@pytest.mark.parametrize("how", SPOILT.values(), ids=SPOILT.keys())
def test_what_a_dropped_site_kept_is_as_it_was(
    tmp_path: Path, how: Callable[[Parameters], Parameters]
) -> None:
    exchange = LocalSites(keeping(SITES[1], how))

    root = federate(tmp_path / "run", job(strategy={"kind": "scaffold"}, rounds=3), exchange)

    kept = [{site: m["b"].item() for site, m in q.memories.items()} for q in exchange.asked]
    assert kept[0] == {}
    assert kept[1] == dict.fromkeys(SITES, 1.0)
    assert kept[2] == dict.fromkeys(SITES, 2.0) | {SITES[1]: 1.0}
    assert [e.site for e in told(root) if isinstance(e, SiteDropped)] == [SITES[1]]
    folder, last = StepFolder(root, "federate"), finished(root)[-1].checkpoint
    recorded = read_checkpoint(folder.files.object(last).read_bytes())
    assert {s: m["b"].item() for s, m in recorded.memories.items()} == dict.fromkeys(SITES, 3.0)


def test_a_site_commits_itself_to_the_numbers_it_tells(tmp_path: Path) -> None:
    def telling(steps: float) -> Reply:
        def reply(site: str, round_: int, params: Parameters) -> SiteUpdate:
            delta = delta_of(site, round_, params)
            return SiteUpdate(site, delta, 1, None, 56, {"normaliser": steps})

        return reply

    spec = job(strategy={"kind": "fednova"}, rounds=1)
    roots = [federate(tmp_path / f"{n}", spec, LocalSites(telling(n))) for n in (2.0, 3.0)]

    one, other = ([c.update for c in transcripts_of(root)[0].commitments] for root in roots)
    assert all(a != b for a, b in zip(one, other, strict=True))


def test_a_site_that_does_not_tell_what_the_strategy_needs_is_dropped(tmp_path: Path) -> None:
    cause = failure_of(tmp_path / "run", job(strategy={"kind": "fednova"}), LocalSites())

    assert cause.code is CauseCode.UPDATE_INCOMPATIBLE
    assert "normaliser" in cause.detail


def trusting(reply: Reply = honest) -> Reply:
    """Sites of which ``ROOT`` is the server's own data, and sends as much as ten of them."""

    def answer(site: str, round_: int, params: Parameters) -> SiteUpdate | SiteFailure:
        if site != ROOT:
            return reply(site, round_, params)
        return SiteUpdate(ROOT, delta_of(ROOT, round_, params), 10, 0.5, 560)

    return answer


def test_the_servers_own_update_is_on_record_and_not_of_the_cohort(tmp_path: Path) -> None:
    spec = job(strategy={"kind": "fltrust"}, rounds=2, codec={"kind": "fp16"})
    exchange = LocalSites(trusting(encoding(spec)))

    root = federate(tmp_path / "run", spec, exchange)

    assert [q.sites for q in exchange.asked] == [(ROOT,), SITES] * 2
    plan, transcripts = StepFolder(root, "federate").plan, transcripts_of(root)
    verify_chain(transcripts, plan=plan.plan_digest)
    (first, _), (event, _) = transcripts, finished(root)
    assert (event.sites, event.bytes_up, event.bytes_down) == (5, 5 * 14, 160)
    assert first.cohort == SITES
    assert isinstance(first.root, Commitment)
    salt = simulated_salt("job-1", plan.plan_digest, ROOT, 1)
    assert first.root.update == commit(salt, delta_of(ROOT, 1, START))  # it does not travel


def test_a_run_that_trusts_by_the_servers_own_update_ends_alike_after_any_cut(
    tmp_path: Path,
) -> None:
    spec, exchange = job(strategy={"kind": "fltrust"}, rounds=3), LocalSites(trusting())
    whole = federate(tmp_path / "whole", spec, exchange)

    for on_record in range(1, 4):
        inputs = inputs_after(whole, on_record)
        assert outputs(federate(tmp_path / f"{on_record}", spec, exchange, inputs)) == outputs(
            whole
        )
    other = federate(tmp_path / "other", spec, LocalSites(trusting(), is_reversed=True))
    assert outputs(other) == outputs(whole)


def test_a_round_without_the_servers_own_update_fails_with_its_cause(tmp_path: Path) -> None:
    hung = SiteFailure(Cause(code=CauseCode.PROGRAM_HUNG, site=ROOT))
    nan = SiteUpdate(ROOT, {n: np.full_like(x, np.nan) for n, x in START.items()}, 1, None, 56)

    for outcome, code in [(hung, CauseCode.PROGRAM_HUNG), (nan, CauseCode.UPDATE_NOT_FINITE)]:
        exchange = LocalSites(
            lambda site, round_, params, outcome=outcome: (  # type: ignore[misc]
                outcome if site == ROOT else honest(site, round_, params)
            )
        )
        cause = failure_of(tmp_path / code, job(strategy={"kind": "fltrust"}), exchange)
        assert (cause.code, cause.site, cause.round) == (code, None, 1)
        assert "on the central part" in cause.detail


def test_an_empty_draw_does_not_have_the_server_train(tmp_path: Path) -> None:
    exchange = LocalSites(trusting())
    spec = job(rounds=30, cohort=selecting("poisson", size=1), strategy={"kind": "fltrust"})

    root = federate(tmp_path / "run", spec, exchange)

    for transcript in transcripts_of(root):
        assert bool(transcript.cohort) == isinstance(transcript.root, Commitment)


CODECS: dict[str, dict[str, Any]] = {
    "fp16": {"kind": "fp16"},
    "int8": {"kind": "int8", "bucket": 8},
    "random-mask": {"kind": "random-mask", "fraction": 0.5},
}


def encoding(spec: JobSpec) -> Reply:
    """Sites that answer as the job's codec has it."""

    def reply(site: str, round_: int, params: Parameters) -> SiteUpdate:
        delta, weight = delta_of(site, round_, params), SITES.index(site) + 1
        encoded = spec.codec.encode(delta, codec_seed(spec, round_, site))
        size = sum(x.nbytes for x in encoded.values())
        return SiteUpdate(site, encoded, weight, None, size)

    return reply


@pytest.mark.parametrize(
    ("kind", "size"), [("fp16", 2 + 12), ("int8", 5 + 10), ("random-mask", 8 + 12)]
)
def test_what_travels_is_counted_and_committed_to_and_what_it_stands_for_is_folded(
    tmp_path: Path, kind: str, size: int
) -> None:
    spec = job(rounds=1, strategy={"kind": "fedavg"}, codec=CODECS[kind])

    root = federate(tmp_path / "run", spec, LocalSites(encoding(spec)))

    (transcript,), (event,) = transcripts_of(root), finished(root)
    assert event.bytes_up == 5 * size
    expected = {name: np.zeros(x.shape) for name, x in START.items()}
    for k, commitment in enumerate(transcript.commitments, start=1):
        seed = derive(spec.init.seed, "codec", 1, commitment.site)
        encoded = spec.codec.encode(delta_of(commitment.site, 1, START), seed)
        salt = simulated_salt("job-1", transcript.plan, commitment.site, 1)
        assert commitment.update == commit(salt, encoded)
        for name, x in spec.codec.decode(encoded, START, seed).items():
            expected[name] += k / 15 * x
    for name, x in read_model(outputs(root)["model.safetensors"]).items():
        np.testing.assert_allclose(x, START[name] + expected[name], atol=1e-6)


@pytest.mark.parametrize("kind", CODECS)
def test_a_run_with_a_codec_cut_after_any_round_ends_as_the_undisturbed_one(
    tmp_path: Path, kind: str
) -> None:
    spec = job(rounds=4, cohort={"size": 3}, codec=CODECS[kind])
    exchange = LocalSites(encoding(spec))
    whole = federate(tmp_path / "whole", spec, exchange)

    for on_record in range(1, 5):
        inputs = inputs_after(whole, on_record)
        assert outputs(federate(tmp_path / f"{on_record}", spec, exchange, inputs)) == outputs(
            whole
        )


@pytest.mark.parametrize("kind", CODECS)
def test_an_update_that_the_codec_did_not_make_is_dropped(tmp_path: Path, kind: str) -> None:
    spec = job(rounds=1, codec=CODECS[kind])
    good = encoding(spec)

    def reply(site: str, round_: int, params: Parameters) -> SiteUpdate | SiteFailure:
        if site != SITES[1]:
            return good(site, round_, params)
        return SiteUpdate(site, {n: np.zeros(3) for n in params}, 1, None, 48)

    root = federate(tmp_path / "run", spec, LocalSites(reply))

    (dropped,) = transcripts_of(root)[0].dropped
    assert (dropped.site, dropped.cause) == (SITES[1], CauseCode.UPDATE_INCOMPATIBLE)
    (event,) = (e for e in told(root) if isinstance(e, SiteDropped))
    assert "came as float64 shaped (3,), not" in event.cause.detail


EXAMPLES = {site: 10 * k for k, site in enumerate(SITES, start=1)}
SELECTIONS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "poisson": {},
    "weighted": {},
    "round-robin": {"availability": 0.6},
    "over-selection": {"factor": 1.5},
    "power-of-choice": {"candidates": 3},
}


def selecting(kind: str, **cohort: Any) -> dict[str, Any]:
    return {"size": 2, "selection": {"kind": kind} | SELECTIONS[kind]} | cohort


@pytest.mark.parametrize("kind", SELECTIONS)
def test_a_run_of_any_selection_cut_after_any_round_ends_as_the_undisturbed_one(
    tmp_path: Path, kind: str
) -> None:
    spec = job(rounds=6, cohort=selecting(kind))
    whole = federate(tmp_path / "whole", spec)

    for on_record in range(1, 7):
        resumed = federate(tmp_path / f"{on_record}", spec, inputs=inputs_after(whole, on_record))
        assert outputs(resumed) == outputs(whole)


def test_an_empty_draw_asks_nobody_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    exchange = LocalSites()
    spec = job(rounds=30, cohort=selecting("poisson", size=1), strategy={"kind": "fedavgm"})

    root = federate(tmp_path / "run", spec, exchange)

    transcripts, events = transcripts_of(root), finished(root)
    idle = [one for one in transcripts if not one.cohort]
    assert 3 <= len(idle) <= 20  # about a third
    assert [q.round for q in exchange.asked] == [t.round for t in transcripts if t.cohort]
    for one in idle:
        assert one.model == one.previous_model
        event = events[one.round - 1]
        assert (event.sites, event.dropped, event.loss, event.bytes_down) == (0, 0, None, 0)
        assert event.metrics
    verify_chain(transcripts, plan=StepFolder(root, "federate").plan.plan_digest)


def test_a_draw_below_the_minimum_asks_nobody(tmp_path: Path) -> None:
    exchange = LocalSites()

    federate(tmp_path / "run", job(rounds=30, cohort=selecting("poisson", minimum=2)), exchange)

    assert 0 < len(exchange.asked) < 30
    assert min(len(question.sites) for question in exchange.asked) == 2


def test_a_weighted_cohort_counts_by_its_draws(tmp_path: Path) -> None:
    spec = job(rounds=1, strategy={"kind": "fedavg"}, cohort=selecting("weighted", size=5))

    root = federate(tmp_path / "run", spec)

    (transcript,) = transcripts_of(root)
    counts = transcript.counts
    assert isinstance(counts, tuple)
    assert sum(counts) == 5
    assert max(counts) > 1
    parts = list(zip(transcript.cohort, counts, strict=True))
    for name, x in read_model(outputs(root)["model.safetensors"]).items():
        mean = sum(count * delta_of(site, 1, START)[name] for site, count in parts) / 5
        np.testing.assert_allclose(x, START[name] + mean, atol=1e-6)
    assert [c.num_examples for c in transcript.commitments] == [
        SITES.index(site) + 1 for site in transcript.cohort
    ]


def test_a_power_of_choice_takes_the_worst_and_records_what_was_told(tmp_path: Path) -> None:
    exchange = LocalSites(
        loss=lambda site, _: SiteMeasures(site, {"loss": SITES.index(site) / 2}, 9)
    )
    cohort = {"size": 2, "selection": {"kind": "power-of-choice", "candidates": 4}}

    root = federate(tmp_path / "run", job(rounds=1, cohort=cohort), exchange)

    (transcript,) = transcripts_of(root)
    assert isinstance(transcript.candidates, tuple)
    told_of = [(one.site, one.loss) for one in transcript.candidates]
    assert len(told_of) == 4
    assert told_of == sorted((site, SITES.index(site) / 2) for site, _ in told_of)
    assert transcript.cohort == tuple(site for site, _ in told_of[2:])
    assert transcript.counts == (1, 1)
    assert finished(root)[0].bytes_down == (4 + 2) * 32


def silent(code: CauseCode | None) -> Callable[[str, int], SiteMeasures | SiteFailure]:
    """Sites of which the second tells no loss."""

    def loss(site: str, round_: int) -> SiteMeasures | SiteFailure:
        if site != SITES[1]:
            return SiteMeasures(site, {"loss": 0.5}, 10)
        return SiteFailure(Cause(code=code, site=site)) if code else SiteMeasures(site, {}, 10)

    return loss


@pytest.mark.parametrize("code", [CauseCode.PROGRAM_HUNG, None], ids=["it hung", "it has none"])
def test_a_candidate_that_tells_no_loss_is_left_out(tmp_path: Path, code: CauseCode | None) -> None:
    cohort = {"size": 4, "selection": {"kind": "power-of-choice", "candidates": 5}}
    exchange = LocalSites(loss=silent(code))

    root = federate(tmp_path / "run", job(rounds=1, cohort=cohort), exchange)
    strict = job(rounds=1, cohort=cohort | {"on_site_failure": "fail"})
    cause = failure_of(tmp_path / "strict", strict, LocalSites(loss=silent(code)))

    (event,) = (e for e in told(root) if isinstance(e, SiteDropped))
    assert (event.site, event.cause.code) == (SITES[1], code or CauseCode.PROGRAM_RAISED)
    assert transcripts_of(root)[0].cohort == (SITES[0], *SITES[2:])
    assert (cause.code, cause.site, cause.round) == (code or CauseCode.PROGRAM_RAISED, SITES[1], 1)


def test_candidates_with_too_few_examples_release_no_loss(tmp_path: Path) -> None:
    cohort = {"size": 2, "selection": {"kind": "power-of-choice", "candidates": 4}}

    cause = failure_of(
        tmp_path / "run", job(cohort=cohort, evaluate={"minimum_count": 11}), LocalSites()
    )

    assert cause.code is CauseCode.COHORT_TOO_SMALL
    assert "0 of 4 candidates" in cause.detail


def test_a_reserve_stands_in_for_a_site_that_is_lost(tmp_path: Path) -> None:
    exchange = LocalSites(bad("none"))
    spec = job(rounds=1, cohort=selecting("over-selection", size=3, minimum=3))

    root = federate(tmp_path / "run", spec, exchange)

    (transcript,) = transcripts_of(root)
    assert [len(question.sites) for question in exchange.asked] == [3, 1]
    assert [dropped.site for dropped in transcript.dropped] == [SITES[1]]
    assert (len(transcript.cohort), len(transcript.commitments)) == (4, 3)
    assert finished(root)[0].bytes_down == 4 * 32


def test_no_reserve_is_asked_after_the_deadline(tmp_path: Path) -> None:
    ticks = iter(range(0, 10_000, 60))
    folder = StepFolder(
        lay(
            tmp_path / "run",
            job(rounds=1, cohort=selecting("over-selection", size=3, deadline_s=60)),
        ),
        "federate",
        clock=lambda: 0.0,
    )
    exchange = LocalSites(bad("none"))
    federation = Federation(
        SITES, exchange, clock=lambda: float(next(ticks)), num_examples=EXAMPLES
    )

    run_rounds(folder, federation, Checkpoint(folder.plan.spec.strategy.init(START)), [])

    assert [len(question.sites) for question in exchange.asked] == [3]


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.tuples(st.floats(-1e9, 1e9), st.integers(1, 1000)),
        min_size=1,
        max_size=8,
    ),
    st.randoms(),
)
def test_a_weighted_mean_is_the_same_in_any_order(
    parts: dict[str, tuple[float, int]], random: Any
) -> None:
    shuffled = list(parts.items())
    random.shuffle(shuffled)

    mean = weighted_mean(dict(shuffled))

    assert mean == weighted_mean(parts)
    values = [value for value, _ in parts.values()]
    assert mean is not None
    assert min(values) - 1e-6 <= mean <= max(values) + 1e-6


def test_a_mean_of_nothing_or_of_no_number_is_none() -> None:
    assert weighted_mean({}) is None
    assert weighted_mean({"a": (math.nan, 1)}) is None


def test_events_name_objects_that_are_there(tmp_path: Path) -> None:
    root = federate(tmp_path / "run", job(rounds=2))

    for event in told(root):
        if isinstance(event, RoundFinished):
            for digest in (event.checkpoint, event.transcript):
                content = (root / "objects" / digest.removeprefix("sha256:")).read_bytes()
                assert digest_of(content) == digest
