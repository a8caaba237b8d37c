from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import bindparam, select, update

from clients.identity import Principal
from clients.resources import Job
from control_plane.admission import submit_job
from control_plane.jobs import (
    change_desired,
    delete_job,
    get_job,
    list_artifacts,
    list_events,
    list_rounds,
)
from control_plane.journal import load, record
from control_plane.models import get_model, list_models
from control_plane.platform import Platform
from control_plane.reconciler import Reconciler
from control_plane.records.tables import ATTEMPT, JOB, ROUND
from control_plane.refusals import DatabaseUnavailable, JobOpen
from sharing.object_store import ObjectMissing, digest_of
from tests.control_plane.conftest import job_spec
from tests.control_plane.scripted_engine import (
    ScriptedEngine,
    checkpoint,
    model_file,
    transcript,
)
from workflows.capabilities import Parameter
from workflows.causes import Cause, CauseCode
from workflows.engine import Activity, Observation
from workflows.job import Output
from workflows.run import Desired, Phase

pytestmark = pytest.mark.anyio
WITHIN_S = 60.0
_SETTLED = select(JOB.c.settled).where(JOB.c.id == bindparam("job"))


class Bench:
    """A platform, its reconciler and its engine, moved on one look at a time."""

    def __init__(self, platform: Platform, who: Principal) -> None:
        self.platform = platform
        self.who = who
        self.engine = ScriptedEngine()
        self.passes: list[float] = []
        self.reconciler = Reconciler(
            platform, self.engine, lambda: "http://127.0.0.1:1", self.passes.append
        )

    async def look(self) -> None:
        await self.engine.play(self.platform)
        await self.reconciler.look()

    async def job(self, job: str) -> Job:
        return (await get_job(self.platform, self.who, job)).value

    async def until(self, job: str, *phases: Phase) -> Job:
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            found = await self.job(job)
            assert found.phase.is_final or found.waits_for
            if found.phase in phases:
                return found
            await self.look()
            await asyncio.sleep(0.001)
        raise AssertionError(f"still {found.phase}, waiting for {found.waits_for}")

    async def until_settled(self, job: str) -> Job:
        found = await self.until(job, Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            await self.look()
            row = await self.platform.database.one_or_none(_SETTLED, {"job": job})
            if row is None or row.settled:
                return found
        raise AssertionError("it is over, and not settled")

    async def kinds(self, job: str) -> list[str]:
        events = (await list_events(self.platform, self.who, job, 0, 500)).items
        assert [event.id for event in events] == list(range(1, len(events) + 1))
        return [event.kind for event in events]


@pytest.fixture
async def bench(platform: Platform, admin: Principal) -> Bench:
    return Bench(platform, admin)


async def submit(bench: Bench, **changes: object) -> str:
    return (await submit_job(bench.platform, bench.who, job_spec(**changes), None)).id


async def test_a_job_runs_through_all_phases_and_publishes_its_model(bench: Bench) -> None:
    job = await submit(bench)

    done = await bench.until_settled(job)

    assert done.phase is Phase.SUCCEEDED
    assert (done.round, done.attempt, done.waits_for, done.cause) == (3, 1, "", None)
    assert done.metrics == {"accuracy": 0.75}
    events = (await list_events(bench.platform, bench.who, job, 0, 500)).items
    moves = [e.fields["after"] for e in events if e.kind == "run.transitioned"]
    assert moves == [
        "admitted",
        "provisioning",
        "recruiting",
        "running",
        "finalizing",
        "succeeded",
    ]
    assert [e.kind for e in events[-3:]] == ["model.published", "run.transitioned", "run.closed"]
    artifacts = await list_artifacts(bench.platform, bench.who, job)
    assert {a.name: a.digest for a in artifacts}["model.onnx"] == digest_of(b"onnx")
    model = await get_model(bench.platform, bench.who, done.model or "")
    assert {v.name for v in model.variants} == {"safetensors", "onnx-fp32"}
    assert model.metrics == {"accuracy": 0.75}
    assert bench.engine.wrappers == {}


async def test_the_models_arrays_are_read_from_its_file(bench: Bench) -> None:
    from control_plane.records.tables import MODEL
    from control_plane.views import text_of

    await bench.until_settled(await submit(bench))

    row = await bench.platform.database.one_or_none(select(MODEL.c.parameters))
    assert row is not None
    assert row.parameters == text_of((Parameter(name="w", shape=(2,), dtype="float32"),))


async def test_every_open_phase_says_what_it_waits_for(bench: Bench) -> None:
    job = await submit(bench)
    said: list[str] = []

    while not (found := await bench.job(job)).phase.is_final:
        if found.waits_for not in said:
            said.append(found.waits_for)
        await bench.look()

    assert said == [
        "its turn",
        "the attempt to start",
        "the first round",
        "round 1 of 3",
        "round 2 of 3",
        "round 3 of 3",
        "the trained model",
        "the ONNX export",
        "the model's card",
        "the results to be verified",
    ]


async def test_more_jobs_than_slots_wait_in_order(bench: Bench) -> None:
    jobs = [await submit(bench) for _ in range(5)]

    await bench.look()

    found = [await bench.job(job) for job in jobs]
    assert [job.phase is Phase.PENDING for job in found] == [False, False, True, True, True]
    assert [job.waits_for for job in found[2:]] == [
        "a free slot: it is next",
        "a free slot: 1 job is ahead",
        "a free slot: 2 jobs are ahead",
    ]
    for job in jobs:
        assert (await bench.until_settled(job)).phase is Phase.SUCCEEDED


@pytest.mark.parametrize("looks", range(0, 34, 3))
async def test_cancelling_is_legal_in_every_open_phase(bench: Bench, looks: int) -> None:
    job = await submit(bench)
    for _ in range(looks):
        await bench.look()
    before = await bench.job(job)

    cancelled = await change_desired(bench.platform, bench.who, job, Desired.CANCELLED)
    again = await change_desired(bench.platform, bench.who, job, Desired.CANCELLED)

    assert not before.phase.is_final
    assert cancelled.value.waits_for == "the run to stop"
    assert again == cancelled
    done = await bench.until_settled(job)
    assert done.phase is Phase.CANCELLED
    kinds = await bench.kinds(job)
    assert kinds.count("cancel.requested") == 1
    assert kinds[-1] == "run.closed"
    assert bench.engine.wrappers == {}


async def test_a_lost_attempt_goes_on_from_the_last_round_on_record(bench: Bench) -> None:
    bench.engine.lose[1] = 12
    job = await submit(bench)

    done = await bench.until_settled(job)

    assert (done.phase, done.attempt) == (Phase.SUCCEEDED, 2)
    kinds = await bench.kinds(job)
    assert kinds.count("attempt.started") == 2
    assert kinds.count("attempt.lost") == 1
    rounds = (await list_rounds(bench.platform, bench.who, job, 0, 100)).items
    assert [r.number for r in rounds] == [1, 2, 3]


async def test_a_second_attempt_is_laid_checkpoint_and_transcripts(bench: Bench) -> None:
    bench.engine.lose[1] = 12
    job = await submit(bench)
    while (job, 2) not in bench.engine.wrappers:
        await bench.look()
        await asyncio.sleep(0.001)

    await bench.look()

    wrapper = bench.engine.wrappers[job, 2]
    assert wrapper.laid["checkpoint.safetensors"] == checkpoint(2)
    assert wrapper.laid["transcripts.jsonl"] == transcript(1) + b"\n" + transcript(2) + b"\n"


async def test_a_checkpoint_that_is_gone_gives_way_to_the_one_before(bench: Bench) -> None:
    bench.engine.lose[1] = 12
    job = await submit(bench)
    while (await bench.job(job)).round < 2:
        await bench.look()
    await bench.platform.store.delete(digest_of(checkpoint(2)))

    while (job, 2) not in bench.engine.wrappers:
        await bench.look()
        await asyncio.sleep(0.001)
    await bench.look()

    wrapper = bench.engine.wrappers[job, 2]
    assert wrapper.laid["checkpoint.safetensors"] == checkpoint(1)
    assert (await bench.until_settled(job)).phase is Phase.SUCCEEDED


async def test_attempts_without_progress_are_bounded(bench: Bench) -> None:
    bench.engine.lose = dict.fromkeys(range(1, 100), 2)
    job = await submit(bench)

    done = await bench.until_settled(job)

    assert done.phase is Phase.FAILED
    assert done.cause is not None
    assert done.cause.code is CauseCode.ATTEMPTS_EXHAUSTED
    assert "attempt-lost: its processes ended without a word" in done.cause.detail
    assert done.attempt == bench.platform.rules.max_attempts


async def test_attempts_that_get_on_do_not_count(bench: Bench) -> None:
    # Each attempt brings one round: inputs, log, start, round started, two objects, finished.
    bench.engine.lose = dict.fromkeys(range(1, 8), 7)
    job = await submit(bench, rounds=8)

    done = await bench.until_settled(job)

    assert done.phase is Phase.SUCCEEDED
    assert done.attempt == 8 > bench.platform.rules.max_attempts


async def test_a_full_disk_is_waited_for_and_not_counted(bench: Bench) -> None:
    full = Cause(code=CauseCode.DISK_FULL, detail="no room")
    bench.engine.fail = dict.fromkeys(range(1, 8), full)
    job = await submit(bench)

    done = await bench.until_settled(job)

    assert (done.phase, done.attempt) == (Phase.SUCCEEDED, 8)


async def test_a_failure_for_good_closes_the_job_with_its_cause(bench: Bench) -> None:
    bench.engine.fail[1] = Cause(
        code=CauseCode.PROGRAM_RAISED, detail="ValueError: no", site="site-0001", round=1
    )
    job = await submit(bench)

    done = await bench.until_settled(job)

    assert done.phase is Phase.FAILED
    assert done.cause is not None
    assert (done.cause.code, done.cause.site) == (CauseCode.PROGRAM_RAISED, "site-0001")
    assert (done.attempt, done.ended_at is None) == (1, False)


async def test_an_attempt_that_its_engine_forgot_is_not_started_twice(bench: Bench) -> None:
    job = await submit(bench)
    while (await bench.job(job)).round < 1:
        await bench.look()
    del bench.engine.wrappers[job, 1]

    done = await bench.until_settled(job)

    assert (done.phase, done.attempt) == (Phase.SUCCEEDED, 2)
    assert bench.engine.started[job, 1] == 1


async def test_a_manifest_that_does_not_verify_is_no_success(bench: Bench) -> None:
    job = await submit(bench)
    while (job, 1) not in bench.engine.wrappers:
        await bench.look()
    wrapper = bench.engine.wrappers[job, 1]
    while wrapper.activity is Activity.RUNNING:
        await bench.engine.play(bench.platform)
    await bench.platform.store.delete(digest_of(b"onnx"))

    await bench.reconciler.look()

    events = (await list_events(bench.platform, bench.who, job, 0, 500)).items
    lost = next(event for event in events if event.kind == "attempt.lost")
    assert lost.fields["cause"]["code"] == "manifest-invalid"
    assert (await bench.until_settled(job)).phase is Phase.SUCCEEDED


async def test_an_output_that_was_altered_is_no_success(bench: Bench) -> None:
    job = await submit(bench)
    while (job, 1) not in bench.engine.wrappers:
        await bench.look()
    while bench.engine.wrappers[job, 1].activity is Activity.RUNNING:
        await bench.engine.play(bench.platform)
    name = digest_of(b"onnx").removeprefix("sha256:")
    [path] = bench.platform.folder.glob(f"objects/**/{name}")
    path.chmod(0o644)
    path.write_bytes(b"xnno")

    await bench.reconciler.look()

    assert "attempt.lost" in await bench.kinds(job)
    assert (await bench.until_settled(job)).phase is Phase.SUCCEEDED


async def test_a_job_that_is_not_to_be_published_has_artifacts_and_no_model(bench: Bench) -> None:
    job = await submit(bench, output=Output(publish=False))

    done = await bench.until_settled(job)

    assert (done.phase, done.model) == (Phase.SUCCEEDED, None)
    assert (await list_models(bench.platform, bench.who, 10)).items == ()
    assert len(await list_artifacts(bench.platform, bench.who, job)) == 5


async def test_only_the_last_two_checkpoints_are_kept(bench: Bench) -> None:
    job = await submit(bench, rounds=6)

    await bench.until_settled(job)

    kept = [await is_stored(bench.platform, checkpoint(n)) for n in range(1, 7)]
    assert kept == [False, False, False, False, True, True]
    assert all([await is_stored(bench.platform, transcript(n)) for n in range(1, 7)])


async def test_replaced_checkpoints_go_while_the_run_goes_on(bench: Bench) -> None:
    job = await submit(bench, rounds=6)
    while (await bench.job(job)).round < 5:
        await bench.look()
    await bench.reconciler.look()

    assert not (await bench.job(job)).phase.is_final
    assert not await is_stored(bench.platform, checkpoint(1))


async def test_an_object_that_another_job_needs_is_kept(bench: Bench) -> None:
    first, second = await submit(bench, rounds=5), await submit(bench, rounds=2)

    await bench.until_settled(first)
    await bench.until_settled(second)

    assert await is_stored(bench.platform, checkpoint(1))
    assert await is_stored(bench.platform, checkpoint(2))
    assert not await is_stored(bench.platform, checkpoint(3))


async def test_deleting_a_job_takes_what_only_it_needs_and_leaves_its_model(bench: Bench) -> None:
    job = await submit(bench)
    with pytest.raises(JobOpen):
        await delete_job(bench.platform, bench.who, job)
    done = await bench.until_settled(job)

    await delete_job(bench.platform, bench.who, job)

    assert (await list_models(bench.platform, bench.who, 10)).items[0].id == done.model
    assert await is_stored(bench.platform, model_file())
    assert await is_stored(bench.platform, b"onnx")
    assert not await is_stored(bench.platform, transcript(1))
    assert not (bench.platform.folder / "logs" / job).exists()
    assert await bench.platform.database.rows(select(ROUND.c.job)) == []
    assert await bench.platform.database.rows(select(JOB.c.id)) == []


async def test_an_engine_that_is_away_changes_nothing(bench: Bench) -> None:
    job = await submit(bench)
    while (await bench.job(job)).round < 1:
        await bench.look()
    bench.engine.is_away = True
    before = await bench.job(job)

    for _ in range(5):
        await bench.reconciler.look()

    assert await bench.job(job) == before
    bench.engine.is_away = False
    assert (await bench.until_settled(job)).attempt == 1


async def test_an_attempt_whose_token_was_lost_gets_another(bench: Bench) -> None:
    job = await submit(bench)
    bench.engine.is_away = True
    for _ in range(3):
        await bench.reconciler.look()
    first = await bench.platform.database.one_or_none(select(ATTEMPT.c.token_hash))

    bench.engine.is_away = False
    done = await bench.until_settled(job)

    second = await bench.platform.database.one_or_none(select(ATTEMPT.c.token_hash))
    assert first != second
    assert (done.phase, done.attempt) == (Phase.SUCCEEDED, 1)


async def test_an_update_before_the_first_round_is_planned_anew(bench: Bench) -> None:
    job = await submit(bench)
    before = await bench.job(job)
    other = digest_of(b"another environment")
    await _set(bench, job, plan_digest=other)

    done = await bench.until_settled(job)

    assert (done.phase, done.plan_digest) == (Phase.SUCCEEDED, before.plan_digest)


async def test_an_update_between_attempts_ends_a_run_that_has_rounds(bench: Bench) -> None:
    bench.engine.lose[1] = 12
    job = await submit(bench)
    while (await bench.job(job)).round < 1:
        await bench.look()
    await _set(bench, job, plan_digest=digest_of(b"another environment"))

    done = await bench.until_settled(job)

    assert done.phase is Phase.FAILED
    assert done.cause is not None
    assert done.cause.code is CauseCode.ENGINE_REFUSED
    assert "updated" in done.cause.detail


async def test_the_loop_runs_jobs_by_itself_and_beats(bench: Bench) -> None:
    loop = asyncio.create_task(bench.reconciler.run())
    job = await submit(bench)

    async with asyncio.timeout(20):
        while not (await bench.job(job)).phase.is_final:
            await bench.engine.play(bench.platform)
            await asyncio.sleep(0.001)
    loop.cancel()
    await asyncio.wait((loop,))

    assert bench.reconciler.last_pass > 0
    assert len(bench.passes) > 1
    assert all(0 < seconds < 5 for seconds in bench.passes)


async def test_who_cancels_while_results_are_verified_is_heard(bench: Bench) -> None:
    job = await submit(bench)
    while (job, 1) not in bench.engine.wrappers:
        await bench.look()
    while bench.engine.wrappers[job, 1].activity is Activity.RUNNING:
        await bench.engine.play(bench.platform)
    observe = bench.engine.observe

    async def cancelled_meanwhile(job: str, attempt: int) -> Observation | None:
        await change_desired(bench.platform, bench.who, job, Desired.CANCELLED)
        return await observe(job, attempt)

    bench.engine.observe = cancelled_meanwhile  # type: ignore[method-assign]
    await bench.reconciler.look()
    bench.engine.observe = observe  # type: ignore[method-assign]

    done = await bench.until_settled(job)
    assert (done.phase, done.model) == (Phase.CANCELLED, None)


async def test_a_change_of_what_is_not_so_any_more_is_refused(bench: Bench) -> None:
    job = await submit(bench)
    async with bench.platform.database.writing() as transaction:
        stale = await load(transaction, job)
        await record(transaction, bench.platform.hub, stale, bench.platform.now(), {})

        with pytest.raises(DatabaseUnavailable):
            await record(transaction, bench.platform.hub, stale, bench.platform.now(), {})


async def test_trouble_with_one_run_does_not_hold_up_another(bench: Bench) -> None:
    broken, sound = await submit(bench), await submit(bench)
    await _set(bench, broken, spec="not json")

    done = await bench.until(sound, Phase.SUCCEEDED)

    assert done.phase is Phase.SUCCEEDED
    await _set(bench, broken, spec=await _spec_of(bench, sound))
    assert (await bench.until_settled(broken)).phase is Phase.SUCCEEDED


async def is_stored(platform: Platform, content: bytes) -> bool:
    try:
        await platform.store.stat(digest_of(content))
    except ObjectMissing:
        return False
    return True


async def _set(bench: Bench, job: str, **columns: object) -> None:
    async with bench.platform.database.writing() as transaction:
        await transaction.execute(update(JOB).where(JOB.c.id == job).values(**columns))


async def _spec_of(bench: Bench, job: str) -> str:
    row = await bench.platform.database.one_or_none(select(JOB.c.spec).where(JOB.c.id == job))
    assert row is not None
    return str(row.spec)
