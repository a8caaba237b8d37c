"""One suite for every adapter of ``workflows.engine``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workflows.attempts import end_of, engine_at, plan_of, step_of, submit, until
from tests.workflows.control_plane_double import ControlPlaneDouble
from workflows.causes import CauseCode
from workflows.engine import Activity, EngineUnavailable, PlanRefused, WorkflowEngine

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["local"])
def engine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[WorkflowEngine]:
    assert request.param == "local"
    with engine_at(tmp_path / "attempts", tmp_path / "endpoint") as engine:
        yield engine


async def test_it_is_a_workflow_engine(engine: WorkflowEngine) -> None:
    assert isinstance(engine, WorkflowEngine)


async def test_what_was_never_started_is_not_seen(engine: WorkflowEngine) -> None:
    assert await engine.observe("job-1", 1) is None


async def test_an_attempt_runs_and_succeeds(
    engine: WorkflowEngine, plane: ControlPlaneDouble
) -> None:
    await submit(engine, plane, plan_of(step_of("federate", "rounds=2")))
    first = await engine.observe("job-1", 1)
    last = await end_of(engine)

    assert first is not None
    assert first.activity is Activity.RUNNING
    assert last.activity is Activity.SUCCEEDED
    assert last.manifests == {"federate": plane.events["federate"][-1]["manifest"]}


async def test_an_attempt_that_fails_says_why(
    engine: WorkflowEngine, plane: ControlPlaneDouble
) -> None:
    await submit(engine, plane, plan_of(step_of("federate", "fail", "exit=1")))
    last = await end_of(engine)

    assert last.activity is Activity.FAILED
    assert last.cause is not None
    assert last.cause.code is CauseCode.UPDATE_NOT_FINITE


async def test_submitting_twice_is_submitting_once(
    engine: WorkflowEngine, plane: ControlPlaneDouble
) -> None:
    plan = plan_of(step_of("federate", "rounds=5"))

    await submit(engine, plane, plan)
    await submit(engine, plane, plan)
    last = await end_of(engine)
    await submit(engine, plane, plan)

    assert await engine.observe("job-1", 1) == last
    assert [what for what in plane.arrivals if what[0] == "event"] == [
        ("event", "federate", number) for number in range(1, 7)
    ]


async def test_attempts_do_not_know_of_each_other(
    engine: WorkflowEngine, plane: ControlPlaneDouble
) -> None:
    longer_than_the_others = step_of("federate", "wait", timeout_s=600.0)
    await submit(engine, plane, plan_of(longer_than_the_others, attempt=1))
    await submit(engine, plane, plan_of(step_of("translate"), attempt=2))
    await submit(engine, plane, plan_of(step_of("publish"), job="job-2"))

    assert (await end_of(engine, "job-1", 2)).activity is Activity.SUCCEEDED
    assert (await end_of(engine, "job-2", 1)).activity is Activity.SUCCEEDED
    still = await engine.observe("job-1", 1)
    assert still is not None
    assert still.activity is Activity.RUNNING


async def test_a_cancelled_attempt_ends(engine: WorkflowEngine, plane: ControlPlaneDouble) -> None:
    await submit(engine, plane, plan_of(step_of("federate", "event", "wait")))
    await until(lambda: plane.events["federate"])

    await engine.cancel("job-1", 1)
    await engine.cancel("job-1", 1)

    assert (await end_of(engine)).activity is Activity.CANCELLED
    assert plane.kinds("federate") == ["step.started"]


async def test_cancelling_what_is_over_or_never_was_changes_nothing(
    engine: WorkflowEngine, plane: ControlPlaneDouble
) -> None:
    await engine.cancel("job-1", 1)
    assert await engine.observe("job-1", 1) is None

    await submit(engine, plane, plan_of(step_of("federate")))
    last = await end_of(engine)
    await engine.cancel("job-1", 1)

    assert last.activity is Activity.SUCCEEDED
    assert await engine.observe("job-1", 1) == last


async def test_a_removed_attempt_was_never_there(
    engine: WorkflowEngine, plane: ControlPlaneDouble
) -> None:
    await submit(engine, plane, plan_of(step_of("federate")))
    await end_of(engine)

    await engine.remove("job-1", 1)
    await engine.remove("job-1", 1)

    assert await engine.observe("job-1", 1) is None


async def test_an_attempt_that_runs_is_not_removed(
    engine: WorkflowEngine, plane: ControlPlaneDouble
) -> None:
    await submit(engine, plane, plan_of(step_of("federate", "event", "wait")))
    await until(lambda: plane.events["federate"])

    with pytest.raises(EngineUnavailable, match="still runs"):
        await engine.remove("job-1", 1)

    still = await engine.observe("job-1", 1)
    assert still is not None
    assert still.activity is Activity.RUNNING


async def test_an_attempt_is_not_submitted_with_another_plan(
    engine: WorkflowEngine, plane: ControlPlaneDouble
) -> None:
    await submit(engine, plane, plan_of(step_of("federate", "wait")))

    with pytest.raises(PlanRefused, match="another plan"):
        await submit(engine, plane, plan_of(step_of("federate"), plan_digest=f"sha256:{'6' * 64}"))


@pytest.mark.parametrize("name", ["../bundle.tar", "/etc/passwd", "", ".hidden", "a\0b"])
async def test_names_that_lead_out_of_the_run_directory_are_refused(
    engine: WorkflowEngine, plane: ControlPlaneDouble, name: str
) -> None:
    digest = plane.put_input(b"anything")

    for plan in (
        plan_of(step_of("federate"), inputs={name: digest}),
        plan_of(step_of("federate", outputs=(name,))),
        plan_of(step_of("federate", optional_outputs=(name,))),
        plan_of(step_of("federate"), job=name),
    ):
        with pytest.raises(PlanRefused):
            await submit(engine, plane, plan)


async def test_steps_out_of_order_are_refused(
    engine: WorkflowEngine, plane: ControlPlaneDouble
) -> None:
    with pytest.raises(PlanRefused, match="comes twice, or before"):
        await submit(engine, plane, plan_of(step_of("federate"), step_of("federate")))
