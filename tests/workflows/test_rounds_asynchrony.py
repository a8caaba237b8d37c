"""The round loop where the server steps while sites are training."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.runtimes.run_folders import finished, inputs_after, job, lay, outputs, told
from tests.workflows.test_rounds import (
    SITES,
    START,
    LocalSites,
    bad,
    delta_of,
    encoding,
    failure_of,
    federate,
    honest,
    transcripts_of,
)
from workflows.canonical import digest_value
from workflows.causes import Cause, CauseCode
from workflows.checkpoint import Checkpoint, read_checkpoint, read_model
from workflows.events import SiteDropped
from workflows.exchange import Federation
from workflows.folding import SiteUpdate, codec_seed
from workflows.job import JobSpec
from workflows.rounds import run_rounds
from workflows.run_folder import StepError, StepFolder
from workflows.tasks import SiteFailure
from workflows.transcript import (
    RoundTranscript,
    TranscriptInvalid,
    asked_in,
    sign,
    verify_chain,
)

STRATEGIES: dict[str, dict[str, Any]] = {
    "fedbuff": {"kind": "fedbuff", "buffer": 2},
    "fedasync": {"kind": "fedasync", "alpha": 0.5},
}


def asynchronous(kind: str, **fields: Any) -> JobSpec:
    """Four of five sites at work at a time."""
    arrivals = {"kind": "virtual", "sigma": 1.0} | fields.pop("arrivals", {})
    cohort = {"size": 4, "arrivals": arrivals} | fields.pop("cohort", {})
    return job(**{"strategy": STRATEGIES[kind], "cohort": cohort, "rounds": 8} | fields)


def asked_of(transcript: RoundTranscript) -> dict[str, int]:
    assert isinstance(transcript.asked, tuple)
    return dict(zip(transcript.cohort, transcript.asked, strict=True))


@pytest.mark.parametrize("codec", [{"kind": "none"}, {"kind": "random-mask", "fraction": 0.5}])
@pytest.mark.parametrize("kind", STRATEGIES)
def test_the_model_is_what_the_papers_make_of_the_answers_on_record(
    tmp_path: Path, kind: str, codec: dict[str, Any]
) -> None:
    """Algorithm 1 of each in plain numbers, over who answered which round by the transcripts."""
    spec = asynchronous(kind, codec=codec)
    root = federate(tmp_path / "run", spec, LocalSites(encoding(spec)))

    models = [{name: np.asarray(x, np.float64) for name, x in START.items()}]
    stale = 0
    for transcript in transcripts_of(root):
        t, x = transcript.round, models[-1]
        weights: list[float] = []
        found = {name: np.zeros(array.shape) for name, array in x.items()}
        for site, asked in asked_of(transcript).items():
            given = {n: models[asked - 1][n].astype(START[n].dtype) for n in START}
            seed = codec_seed(spec, asked, site)
            sent = spec.codec.encode(delta_of(site, asked, given), seed)
            delta = spec.codec.decode(sent, given, seed)
            weights.append((1 + t - asked) ** -0.5)
            stale += t - asked
            for name in x:
                way = 0 if kind == "fedbuff" else given[name] - x[name]
                found[name] += weights[-1] * (delta[name] + way)
        rate = 1.0 if kind == "fedbuff" else 0.5
        assert len(weights) == (2 if kind == "fedbuff" else 1)
        models.append({name: x[name] + rate * found[name] / len(weights) for name in x})

    assert stale > 4
    for name, x in read_model(outputs(root)["model.safetensors"]).items():
        np.testing.assert_allclose(x, models[-1][name], atol=1e-5)
        assert x.dtype == START[name].dtype


@pytest.mark.parametrize("codec", ["none", "int8"])
@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_run_cut_after_any_round_ends_as_the_undisturbed_one(
    tmp_path: Path, kind: str, codec: str
) -> None:
    fields = {"codec": {"kind": "int8", "bucket": 8}} if codec == "int8" else {}
    spec = asynchronous(kind, arrivals={"max_staleness": 2}, **fields)
    exchange = LocalSites(encoding(spec))
    whole = federate(tmp_path / "whole", spec, exchange)

    for on_record in range(1, 9):
        inputs = inputs_after(whole, on_record)
        resumed = federate(tmp_path / f"{on_record}", spec, exchange, inputs)

        assert outputs(resumed) == outputs(whole)
        undisturbed = finished(whole)[on_record:]
        assert [(e.model, e.virtual_time, e.staleness) for e in finished(resumed)] == [
            (e.model, e.virtual_time, e.staleness) for e in undisturbed
        ]


@pytest.mark.parametrize("kind", STRATEGIES)
def test_the_order_of_answers_does_not_show(tmp_path: Path, kind: str) -> None:
    one = federate(tmp_path / "one", asynchronous(kind))
    other = federate(tmp_path / "other", asynchronous(kind), LocalSites(is_reversed=True))

    assert (outputs(one), told(one)) == (outputs(other), told(other))


def test_sites_are_asked_with_the_model_and_the_number_of_the_round_they_began_in(
    tmp_path: Path,
) -> None:
    exchange = LocalSites()

    root = federate(tmp_path / "run", asynchronous("fedbuff"), exchange)

    models: dict[int, bytes] = {}
    for question in exchange.asked:
        bits = question.params["w"].tobytes()
        assert models.setdefault(question.round, bits) == bits
    asked = [(site, q.round) for q in exchange.asked for site in q.sites]
    assert len(asked) == len(set(asked)) == 16
    on_record = [pair for one in transcripts_of(root) for pair in asked_of(one).items()]
    assert sorted(on_record) == sorted(asked)


def test_events_tell_staleness_and_virtual_time(tmp_path: Path) -> None:
    root = federate(tmp_path / "run", asynchronous("fedbuff"))
    waiting = federate(tmp_path / "waiting", job(rounds=1))

    times = [event.virtual_time or 0.0 for event in finished(root)]
    assert times == sorted(times)
    assert times[0] > 0
    for event, transcript in zip(finished(root), transcripts_of(root), strict=True):
        ages = [transcript.round - asked for asked in asked_of(transcript).values()]
        assert event.staleness == sum(ages) / len(ages)
    assert (finished(waiting)[0].staleness, finished(waiting)[0].virtual_time) == (None, None)
    assert b"asked" not in outputs(waiting)["transcripts.jsonl"]


def test_sites_that_are_too_stale_are_given_up_and_on_record(tmp_path: Path) -> None:
    exchange = LocalSites()
    spec = asynchronous("fedbuff", arrivals={"sigma": 2.0, "max_staleness": 1}, rounds=12)

    root = federate(tmp_path / "run", spec, exchange)

    transcripts = transcripts_of(root)
    given_up = [(one.round, drop.site) for one in transcripts for drop in one.dropped]
    assert given_up
    for one in transcripts:
        for drop in one.dropped:
            assert drop.cause is CauseCode.UPDATE_STALE
            assert asked_of(one)[drop.site] == one.round - 1
        assert all(one.round - asked <= 1 for asked in asked_of(one).values())
        assert len(one.commitments) == 2
    trained = {(site, q.round) for q in exchange.asked for site in q.sites}
    for number, site in given_up:
        assert (site, number - 1) not in trained
    event = next(e for e in told(root) if isinstance(e, SiteDropped))
    assert "still at work after round" in event.cause.detail
    plan = StepFolder(root, "federate").plan.plan_digest
    assert verify_chain(transcripts, plan=plan) == finished(root)[-1].transcript
    recorded = StepFolder(root, "federate").files.object(finished(root)[-1].checkpoint).read_bytes()
    assert read_checkpoint(recorded).versions.keys() <= {12}


def test_a_site_given_up_fails_a_job_that_wants_none_left_out(tmp_path: Path) -> None:
    spec = asynchronous(
        "fedbuff",
        arrivals={"sigma": 2.0, "max_staleness": 0},
        cohort={"on_site_failure": "fail"},
    )

    cause = failure_of(tmp_path / "run", spec, LocalSites())

    assert (cause.code, cause.site in SITES) == (CauseCode.UPDATE_STALE, True)


@pytest.mark.parametrize("kind", STRATEGIES)
def test_the_place_of_a_lost_answer_goes_to_the_next(tmp_path: Path, kind: str) -> None:
    """And what was lost is on record, so that a resumed run knows who is at work."""
    spec = asynchronous(kind)
    whole = federate(tmp_path / "run", spec, LocalSites(bad("nan")))

    transcripts = transcripts_of(whole)
    lost = [one for one in transcripts if one.dropped]
    assert lost
    assert {drop.site for one in lost for drop in one.dropped} == {SITES[1]}
    assert {len(one.commitments) for one in transcripts} == {spec.strategy.buffered}
    for on_record in (lost[0].round - 1, lost[0].round, 7):
        if on_record:
            inputs = inputs_after(whole, on_record)
            resumed = federate(tmp_path / f"{on_record}", spec, LocalSites(bad("nan")), inputs)
            assert outputs(resumed) == outputs(whole)


def test_where_every_site_fails_the_run_fails_with_that(tmp_path: Path) -> None:
    cause = failure_of(tmp_path / "run", asynchronous("fedasync"), LocalSites(silent))

    assert cause.code is CauseCode.PROGRAM_HUNG
    assert "at every site of the cohort (5)" in cause.detail


def test_what_came_has_to_do_if_it_is_enough(tmp_path: Path) -> None:
    def alone(site: str, round_: int, params: Any) -> SiteUpdate | SiteFailure:
        if site == SITES[0]:
            return honest(site, round_, params)
        return silent(site, round_, params)

    root = federate(tmp_path / "run", asynchronous("fedbuff", rounds=1), LocalSites(alone))
    cause = failure_of(
        tmp_path / "strict",
        asynchronous("fedbuff", rounds=1, cohort={"minimum": 2}),
        LocalSites(alone),
    )

    (transcript,) = transcripts_of(root)
    assert [one.site for one in transcript.commitments] == [SITES[0]]
    assert cause.code is CauseCode.COHORT_TOO_SMALL
    assert "1 of 5 sites gave an update, 2 are needed" in cause.detail


def silent(site: str, round_: int, params: Any) -> SiteFailure:
    return SiteFailure(Cause(code=CauseCode.PROGRAM_HUNG, site=site))


def test_no_more_are_asked_after_the_deadline(tmp_path: Path) -> None:
    ticks = iter(range(0, 10_000, 20))
    spec = asynchronous("fedbuff", rounds=1, cohort={"deadline_s": 60})
    folder = StepFolder(lay(tmp_path / "run", spec), "federate", clock=lambda: 0.0)
    exchange = LocalSites(silent)
    federation = Federation(SITES, exchange, clock=lambda: float(next(ticks)))

    with pytest.raises(StepError):
        run_rounds(folder, federation, Checkpoint(spec.strategy.init(START)), [])

    assert [(len(q.sites), q.deadline_s) for q in exchange.asked] == [(2, 20.0)]


def test_a_checkpoint_holds_the_models_in_use_and_no_more(tmp_path: Path) -> None:
    root = federate(tmp_path / "run", asynchronous("fedasync", rounds=10))

    folder = StepFolder(root, "federate")
    for event in finished(root):
        recorded = read_checkpoint(folder.files.object(event.checkpoint).read_bytes())
        assert len(recorded.versions) <= 4
        assert all(asked <= event.round for asked in recorded.versions)
        needed = {
            asked
            for one in transcripts_of(root)
            if one.round > event.round
            for asked in asked_of(one).values()
            if asked <= event.round
        }
        assert needed <= recorded.versions.keys()


def test_a_record_of_other_arrivals_is_refused(tmp_path: Path) -> None:
    inputs = inputs_after(federate(tmp_path / "run", asynchronous("fedbuff")), 4)

    with pytest.raises(StepError) as other:
        federate(
            tmp_path / "other", asynchronous("fedbuff", arrivals={"sigma": 0.1}), inputs=inputs
        )
    bare = {**inputs}
    waiting = federate(tmp_path / "waiting", job(rounds=4))
    bare["checkpoint.safetensors"] = inputs_after(waiting, 4)["checkpoint.safetensors"]
    with pytest.raises(StepError) as lacking:
        federate(tmp_path / "lacking", asynchronous("fedbuff"), inputs=bare)

    assert other.value.cause.code is lacking.value.cause.code is CauseCode.INPUT_MISSING
    assert "not of this job's arrivals" in other.value.cause.detail
    assert "the models that sites at work were given" in lacking.value.cause.detail


def altered(
    transcripts: list[RoundTranscript], number: int, **fields: Any
) -> list[RoundTranscript]:
    """The chain with one transcript changed, and those after it linked to that."""
    chain = list(transcripts)
    chain[number] = msgspec.structs.replace(chain[number], **fields)
    for k in range(number + 1, len(chain)):
        chain[k] = msgspec.structs.replace(chain[k], previous=digest_value(chain[k - 1]))
    return chain


def signed(transcript: RoundTranscript) -> dict[str, Any]:
    """What a transcript has where its sites have keys."""
    commitments = tuple(
        sign(
            Ed25519PrivateKey.from_private_bytes(hashlib.sha256(one.site.encode()).digest()),
            transcript.plan,
            asked_in(transcript, one.site),
            site=one.site,
            num_examples=one.num_examples,
            update=one.update,
        )
        for one in transcript.commitments
    )
    return {"keys": "own", "commitments": commitments}


def test_nobody_can_say_that_an_answer_is_fresher_than_its_site_signed(tmp_path: Path) -> None:
    root = federate(tmp_path / "run", asynchronous("fedasync"))
    plan, chain = StepFolder(root, "federate").plan.plan_digest, transcripts_of(root)
    for number, transcript in enumerate(chain):
        chain = altered(chain, number, **signed(transcript))
    stale = next(k for k, one in enumerate(chain) if one.asked != (one.round,))

    verify_chain(chain, plan=plan)

    for asked, told_of in (
        (msgspec.UNSET, "signature"),
        ((chain[stale].round,), "signature"),
        ((chain[stale].round + 1,), "in this round or before"),
        ((0,), "in this round or before"),
        ((), "in this round or before"),
    ):
        with pytest.raises(TranscriptInvalid, match=told_of):
            verify_chain(altered(chain, stale, asked=asked), plan=plan)


def test_an_answer_is_in_one_sum_alone(tmp_path: Path) -> None:
    root = federate(tmp_path / "run", asynchronous("fedasync"))
    plan, chain = StepFolder(root, "federate").plan.plan_digest, transcripts_of(root)
    first, last = chain[0], len(chain) - 1

    again = altered(
        chain, last, cohort=first.cohort, asked=first.asked, commitments=first.commitments
    )

    with pytest.raises(TranscriptInvalid, match="is in a sum already"):
        verify_chain(again, plan=plan)
