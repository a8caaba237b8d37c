from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import select

from clients.identity import Principal
from clients.resources import NewCollaboration, Role, Visibility, Workflow
from control_plane.admission import submit_job
from control_plane.collaborations import found_collaboration
from control_plane.jobs import (
    change_desired,
    delete_job,
    get_artifact,
    get_job,
    list_artifacts,
    list_events,
    list_jobs,
    list_rounds,
    open_jobs_by_phase,
    read_logs,
)
from control_plane.models import get_model, get_variant, list_models
from control_plane.platform import Platform
from control_plane.reconciler import Reconciler
from control_plane.records.tables import JOB
from control_plane.refusals import (
    CancelIsFinal,
    Forbidden,
    JobClosed,
    NotFound,
    VersionChanged,
)
from tests.control_plane.conftest import People, job_spec
from tests.control_plane.scripted_engine import ScriptedEngine
from workflows.causes import Cause, CauseCode
from workflows.engine import Location
from workflows.run import Desired, Phase

pytestmark = pytest.mark.anyio


async def run_to_end(platform: Platform, who: Principal, job: str, **script: object) -> None:
    engine = ScriptedEngine()
    for name, value in script.items():
        setattr(engine, name, value)
    reconciler = Reconciler(platform, engine, lambda: "here")
    for _ in range(300):
        await engine.play(platform)
        await reconciler.look()
        if (await get_job(platform, who, job)).value.phase.is_final:
            await reconciler.look()
            return
    raise AssertionError("it does not end")


async def submit(platform: Platform, who: Principal, **changes: object) -> str:
    return (await submit_job(platform, who, job_spec(**changes), None)).id


async def test_jobs_are_listed_newest_first_in_slices(platform: Platform, admin: Principal) -> None:
    jobs = [await submit(platform, admin, name=f"job {i % 2}") for i in range(5)]

    first = await list_jobs(platform, admin, 2)
    second = await list_jobs(platform, admin, 2, before=first.next)
    third = await list_jobs(platform, admin, 2, before=second.next)

    listed = [job.id for part in (first, second, third) for job in part.items]
    assert listed == jobs[::-1]
    assert third.next is None
    named = await list_jobs(platform, admin, 10, name="job 1")
    assert [job.id for job in named.items] == [jobs[3], jobs[1]]
    assert (await list_jobs(platform, admin, 10, phase=Phase.RUNNING)).items == ()
    assert len((await list_jobs(platform, admin, 5, phase=Phase.PENDING)).items) == 5


async def test_a_job_names_its_workflow_while_it_is_one(
    platform: Platform, admin: Principal
) -> None:
    def locate(job: str, attempt: int) -> Location:
        return Location(namespace="runs", name=f"{job}-{attempt}", url=None)

    async def workflow() -> Workflow | None:
        return (await get_job(there, admin, job)).value.workflow

    there = replace(platform, locate=locate)
    job = await submit(there, admin)
    assert await workflow() is None
    engine = ScriptedEngine()
    reconciler = Reconciler(there, engine, lambda: "here")
    await until_started(there, reconciler, job)

    assert await workflow() == Workflow(namespace="runs", name=f"{job}-1", url=None)
    assert (await get_job(platform, admin, job)).value.workflow is None
    await run_to_end(there, admin, job)
    assert await workflow() is None


async def until_started(platform: Platform, reconciler: Reconciler, job: str) -> None:
    for _ in range(50):
        await reconciler.look()
        rows = await platform.database.rows(select(JOB.c.attempt).where(JOB.c.id == job))
        if rows[0].attempt:
            return
    raise AssertionError("it does not start")


async def test_to_a_stranger_a_job_is_as_if_it_were_not(platform: Platform, people: People) -> None:
    job = await submit(platform, people.admin)
    stranger = await people.add("elsewhere", "eve", *Role)

    for there in (job, "job-unknown"):
        with pytest.raises(NotFound, match=r"^no such job$"):
            await get_job(platform, stranger, there)
        with pytest.raises(NotFound, match=r"^no such job$"):
            await change_desired(platform, stranger, there, Desired.CANCELLED)
        with pytest.raises(NotFound, match=r"^no such job$"):
            await delete_job(platform, stranger, there)
        with pytest.raises(NotFound, match=r"^no such job$"):
            await list_rounds(platform, stranger, there, 0, 10)
        with pytest.raises(NotFound, match=r"^no such job$"):
            await list_events(platform, stranger, there, 0, 10)
        with pytest.raises(NotFound, match=r"^no such job$"):
            await list_artifacts(platform, stranger, there)
        with pytest.raises(NotFound, match=r"^no such job$"):
            await read_logs(platform, stranger, there)
    assert (await list_jobs(platform, stranger, 10)).items == ()


async def test_a_change_counts_only_if_nothing_changed_before(
    platform: Platform, admin: Principal
) -> None:
    job = await submit(platform, admin)
    seen = await get_job(platform, admin, job)

    with pytest.raises(VersionChanged):
        await change_desired(platform, admin, job, Desired.CANCELLED, seen.version + 1)
    changed = await change_desired(platform, admin, job, Desired.CANCELLED, seen.version)

    assert changed.version > seen.version
    assert changed.value.desired is Desired.CANCELLED


async def test_wanting_what_is_wanted_changes_nothing(platform: Platform, admin: Principal) -> None:
    job = await submit(platform, admin)
    before = await get_job(platform, admin, job)

    assert await change_desired(platform, admin, job, Desired.RUN) == before


async def test_cancelling_cannot_be_taken_back(platform: Platform, admin: Principal) -> None:
    job = await submit(platform, admin)
    await change_desired(platform, admin, job, Desired.CANCELLED)

    with pytest.raises(CancelIsFinal):
        await change_desired(platform, admin, job, Desired.RUN)


async def test_a_closed_job_is_not_changed(platform: Platform, admin: Principal) -> None:
    done, cancelled = await submit(platform, admin), await submit(platform, admin)
    await change_desired(platform, admin, cancelled, Desired.CANCELLED)
    await run_to_end(platform, admin, done)

    with pytest.raises(JobClosed):
        await change_desired(platform, admin, done, Desired.CANCELLED)
    again = await change_desired(platform, admin, cancelled, Desired.CANCELLED)
    assert again.value.phase is Phase.CANCELLED


@pytest.mark.parametrize(
    ("organisation", "roles", "is_allowed"),
    [
        ("home", (Role.DEVELOPER,), True),
        ("home", (Role.OPERATOR,), True),
        ("home", (Role.AUDITOR, Role.DATA_OWNER, Role.PRIVACY_OFFICER), False),
        ("partner", (Role.OPERATOR,), True),
        ("partner", (Role.DEVELOPER, Role.ADMIN), False),
    ],
)
async def test_who_may_cancel(
    platform: Platform,
    people: People,
    organisation: str,
    roles: tuple[Role, ...],
    is_allowed: bool,
) -> None:
    caller = await people.add(organisation, "carl", *roles)
    new = NewCollaboration(name="together", organisations=(caller.organisation,))
    await found_collaboration(platform, people.admin, new)
    job = await submit(platform, people.admin, collaboration="together")

    if is_allowed:
        changed = await change_desired(platform, caller, job, Desired.CANCELLED)
        assert changed.value.desired is Desired.CANCELLED
    else:
        with pytest.raises(Forbidden):
            await change_desired(platform, caller, job, Desired.CANCELLED)


async def test_a_partner_sees_what_the_collaboration_shows(
    platform: Platform, people: People
) -> None:
    seeing = await people.add("seeing", "sue", Role.DEVELOPER)
    blind = await people.add("blind", "bea", Role.DEVELOPER)
    shown = (seeing.organisation,)
    await found_collaboration(
        platform,
        people.admin,
        NewCollaboration(
            name="together",
            organisations=("seeing", "blind"),
            visibility=Visibility(models=shown, metrics=shown, site_names=shown),
        ),
    )
    job = await submit(platform, people.admin, collaboration="together")
    await run_to_end(platform, people.admin, job)

    full = (await get_job(platform, seeing, job)).value
    less = (await get_job(platform, blind, job)).value
    assert full.metrics
    assert full.model
    assert (less.metrics, less.loss, less.model) == ({}, None, None)
    assert (await get_model(platform, seeing, full.model)).metrics
    for model in (full.model, "model-unknown"):
        with pytest.raises(NotFound, match=r"^no such model$"):
            await get_model(platform, blind, model)
        with pytest.raises(NotFound, match=r"^no such model$"):
            await get_variant(platform, blind, model, "onnx-fp32")
    assert (await list_models(platform, blind, 10)).items == ()
    assert len((await list_models(platform, seeing, 10)).items) == 1
    assert await list_artifacts(platform, blind, job) == ()
    assert len(await list_artifacts(platform, seeing, job)) == 6
    rounds = (await list_rounds(platform, blind, job, 0, 10)).items
    assert [(r.number, r.loss, r.metrics) for r in rounds] == [(n, None, {}) for n in (1, 2, 3)]
    events = (await list_events(platform, blind, job, 0, 100)).items
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert not any("metrics" in event.fields or "loss" in event.fields for event in events)


async def test_evidence_is_for_those_who_may_read_logs(platform: Platform, people: People) -> None:
    auditor = await people.add("home", "ada", Role.AUDITOR)
    job = await submit(platform, people.admin)
    cause = Cause(code=CauseCode.PROGRAM_RAISED, detail="ValueError", evidence="Traceback ...")
    await run_to_end(platform, people.admin, job, fail={1: cause})

    full = (await get_job(platform, people.admin, job)).value.cause
    less = (await get_job(platform, auditor, job)).value.cause

    assert full is not None
    assert less is not None
    assert (full.evidence, less.evidence) == ("Traceback ...", "")
    assert less.detail == "ValueError"


async def test_an_artifact_is_found_by_its_name(platform: Platform, admin: Principal) -> None:
    job = await submit(platform, admin)
    await run_to_end(platform, admin, job)

    found = await get_artifact(platform, admin, job, "transcripts.jsonl")

    assert (found.step, found.media_type) == ("federate", "application/x-ndjson")
    with pytest.raises(NotFound):
        await get_artifact(platform, admin, job, "../secret")


async def test_models_are_listed_in_slices_and_have_variants(
    platform: Platform, admin: Principal
) -> None:
    for _ in range(3):
        await run_to_end(platform, admin, await submit(platform, admin))

    first = await list_models(platform, admin, 2)
    second = await list_models(platform, admin, 2, before=first.next)

    assert [len(part.items) for part in (first, second)] == [2, 1]
    assert second.next is None
    newest = first.items[0]
    variant = await get_variant(platform, admin, newest.id, "onnx-fp32")
    chunks = [chunk async for chunk in platform.store.get(variant.digest)]
    assert b"".join(chunks) == b"onnx"
    with pytest.raises(NotFound, match="it has onnx-fp32, safetensors"):
        await get_variant(platform, admin, newest.id, "onnx-int8")


async def test_open_jobs_are_counted_by_phase(platform: Platform, admin: Principal) -> None:
    for _ in range(2):
        await submit(platform, admin)
    await run_to_end(platform, admin, await submit(platform, admin))

    counts = await open_jobs_by_phase(platform)

    assert sum(counts.values()) == 0
    await submit(platform, admin)
    assert (await open_jobs_by_phase(platform))[Phase.PENDING] == 1
    assert set(counts) == {phase for phase in Phase if not phase.is_final}
