from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import anyio
import msgspec
import pytest

from tests.workflows.attempts import (
    end_of,
    engine_at,
    leader_of,
    plan_of,
    processes_of,
    step_of,
    steps_of,
    submit,
    until,
)
from tests.workflows.control_plane_double import TOKEN, ControlPlaneDouble
from workflows.engine import Activity, Credentials, EngineUnavailable
from workflows.local_engine import LocalEngine
from workflows.processes import identify

pytestmark = pytest.mark.anyio

SUBMIT = """
import sys, anyio, msgspec
from pathlib import Path
from workflows.engine import Credentials
from workflows.local_engine import LocalEngine
from workflows.plan import Plan
root, endpoint_file, url, token = sys.argv[1:]
engine = LocalEngine(Path(root), endpoint_file=Path(endpoint_file), environ={})
plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
anyio.run(engine.submit, plan, Credentials(url=url, token=token))
"""
REMOVE = """
import sys, anyio
from pathlib import Path
from workflows.local_engine import LocalEngine
root, endpoint_file = sys.argv[1:]
engine = LocalEngine(Path(root), endpoint_file=Path(endpoint_file), environ={})
anyio.run(engine.remove, "job-1", 1)
"""


@pytest.mark.parametrize("moment", range(6))
async def test_a_wrapper_killed_at_any_moment_is_lost_and_leaves_nobody_behind(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path, moment: int
) -> None:
    after_s = random.uniform(0, 0.8)
    plan = plan_of(step_of("federate", "rounds=20", "wait"))
    await submit(engine, plane, plan)
    await anyio.sleep(after_s)

    os.kill(leader_of(run).pid, signal.SIGKILL)
    observation = await end_of(engine)

    assert observation.activity is Activity.LOST, f"killed after {after_s} s"
    assert not processes_of(run)
    assert plane.numbers("federate") == list(range(1, len(plane.events["federate"]) + 1))


async def test_a_step_dies_with_its_wrapper_before_anybody_looks(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    await submit(engine, plane, plan_of(step_of("federate", "event", "deaf", "say=on", "wait")))
    await until(lambda: plane.logs["federate"])
    child = identify(steps_of(run)[0])

    os.kill(leader_of(run).pid, signal.SIGKILL)
    await until(lambda: not child.is_alive())

    assert (await end_of(engine)).activity is Activity.LOST


async def test_a_lost_attempt_is_not_started_again(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    plan = plan_of(step_of("federate", "event", "wait"))
    await submit(engine, plane, plan)
    os.kill(leader_of(run).pid, signal.SIGKILL)
    await end_of(engine)

    await submit(engine, plane, plan)

    assert (await end_of(engine)).activity is Activity.LOST


async def test_a_step_that_listens_is_cancelled_politely(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    await submit(engine, plane, plan_of(step_of("federate", "rounds=3", "say=last words", "wait")))
    await until(lambda: len(plane.events["federate"]) == 3)

    began = time.monotonic()
    await engine.cancel("job-1", 1)
    took_s = time.monotonic() - began
    observation = await end_of(engine)

    assert took_s < 1
    assert observation.activity is Activity.CANCELLED
    assert observation.cause is None
    assert plane.logs["federate"] == b"last words\n"
    await until(lambda: not processes_of(run))


async def test_a_step_that_does_not_listen_is_cancelled_firmly(
    tmp_path: Path, plane: ControlPlaneDouble, run: Path
) -> None:
    with engine_at(tmp_path / "attempts", tmp_path / "endpoint", grace_s=0.3) as engine:
        await submit(
            engine, plane, plan_of(step_of("federate", "deaf", "orphan", "say=deaf", "wait"))
        )
        await until(lambda: plane.logs["federate"])
        orphan = int((run / "orphan").read_text())

        await engine.cancel("job-1", 1)
        observation = await end_of(engine)

    assert observation.activity is Activity.CANCELLED
    await until(lambda: not processes_of(run))
    assert not Path(f"/proc/{orphan}").exists()


async def test_cancelling_does_not_wait_for_a_control_plane_that_is_away(
    tmp_path: Path, plane: ControlPlaneDouble, run: Path
) -> None:
    with engine_at(tmp_path / "attempts", tmp_path / "endpoint", grace_s=0.3) as engine:
        await submit(engine, plane, plan_of(step_of("federate", "event", "until=go", "rounds=3")))
        await until(lambda: plane.events["federate"])
        plane.stop()
        (run / "go").touch()
        await until(lambda: not steps_of(run))

        await engine.cancel("job-1", 1)

        assert (await end_of(engine)).activity is Activity.CANCELLED


async def test_a_wrapper_that_does_not_listen_is_ended_by_asking_again(
    tmp_path: Path, plane: ControlPlaneDouble, run: Path
) -> None:
    with engine_at(tmp_path / "attempts", tmp_path / "endpoint", grace_s=0.1) as engine:
        await submit(engine, plane, plan_of(step_of("federate", "event", "deaf", "orphan", "wait")))
        await until(lambda: (run / "orphan").exists() and (run / "orphan").read_text())
        orphan = int((run / "orphan").read_text())
        os.kill(leader_of(run).pid, signal.SIGSTOP)

        deadline = time.monotonic() + 20
        while (seen := await engine.observe("job-1", 1)) and seen.activity is Activity.RUNNING:
            assert time.monotonic() < deadline
            await engine.cancel("job-1", 1)
            await anyio.sleep(0.05)

    assert seen is not None
    assert seen.activity is Activity.CANCELLED
    assert not processes_of(run)
    await until(lambda: not Path(f"/proc/{orphan}").exists())


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.2, 0.4])
async def test_an_attempt_can_be_cancelled_before_it_is_up(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path, after_s: float
) -> None:
    await submit(engine, plane, plan_of(step_of("federate", "wait")))
    await anyio.sleep(after_s)

    await engine.cancel("job-1", 1)

    assert (await end_of(engine)).activity is Activity.CANCELLED
    await until(lambda: not processes_of(run))


async def test_racing_submissions_start_one_wrapper(
    tmp_path: Path, plane: ControlPlaneDouble, run: Path
) -> None:
    plan = plan_of(step_of("federate", "event", "until=go"))
    barrier = threading.Barrier(6)

    def race(engine: LocalEngine) -> None:
        barrier.wait()
        anyio.run(engine.submit, plan, Credentials(url=plane.url, token=TOKEN))

    with engine_at(tmp_path / "attempts", tmp_path / "endpoint") as one:
        others = [
            LocalEngine(
                tmp_path / "attempts", endpoint_file=tmp_path / "endpoint", environ=os.environ
            )
            for _ in range(2)
        ]
        async with anyio.create_task_group() as tasks:
            for engine in (one, *others) * 2:
                tasks.start_soon(anyio.to_thread.run_sync, race, engine)
        await until(lambda: plane.events["federate"])
        wrappers = set(processes_of(run)) - set(steps_of(run))
        (run / "go").touch()
        observation = await end_of(one)

    assert wrappers == {leader_of(run).pid}
    assert observation.activity is Activity.SUCCEEDED
    assert plane.arrivals.count(("event", "federate", 1)) == 1


async def test_a_spawn_that_was_cut_short_is_made_up_for(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    run.mkdir(parents=True)
    (run / "job.json").write_bytes(b"{ half of it")
    (run / "lock").touch()

    assert await engine.observe("job-1", 1) is None
    await submit(engine, plane, plan_of(step_of("federate")))

    assert (await end_of(engine)).activity is Activity.SUCCEEDED


async def test_an_engine_of_a_later_process_adopts_what_runs(
    tmp_path: Path, engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    plan = plan_of(step_of("federate", "event", "until=go", "event"))
    subprocess.run(
        [sys.executable, "-c", SUBMIT, run.parents[1], tmp_path / "endpoint", plane.url, TOKEN],
        input=msgspec.json.encode(plan),
        cwd=Path(__file__).parents[2],
        check=True,
    )
    await until(lambda: plane.events["federate"])

    seen = await engine.observe("job-1", 1)
    await submit(engine, plane, plan)
    (run / "go").touch()
    last = await end_of(engine)

    assert seen is not None
    assert seen.activity is Activity.RUNNING
    assert seen.step == "federate"
    assert last.activity is Activity.SUCCEEDED
    assert plane.numbers("federate") == [1, 2, 3]


@pytest.mark.parametrize("is_of_this_boot", [True, False], ids=["in this boot", "in another"])
async def test_a_number_that_went_to_another_process_is_left_alone(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path, is_of_this_boot: bool
) -> None:
    await submit(engine, plane, plan_of(step_of("federate", "event", "wait")))
    await until(lambda: plane.events["federate"])
    own = leader_of(run)
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    known = identify(stranger.pid)
    if is_of_this_boot:
        other = msgspec.structs.replace(known, started=known.started - 1)
    else:
        other = msgspec.structs.replace(known, boot="an earlier one")
    try:
        (run / "pid.json").write_bytes(msgspec.json.encode(other))
        await engine.cancel("job-1", 1)
        os.kill(own.pid, signal.SIGKILL)

        assert (await end_of(engine)).activity is Activity.CANCELLED
        assert stranger.poll() is None
    finally:
        (run / "pid.json").write_bytes(msgspec.json.encode(own))
        stranger.kill()
        stranger.wait()


async def test_a_wrapper_that_can_not_start_is_lost(
    tmp_path: Path, plane: ControlPlaneDouble
) -> None:
    with engine_at(tmp_path / "attempts", tmp_path / "endpoint", python="/bin/false") as engine:
        await submit(engine, plane, plan_of(step_of("federate")))

        assert (await end_of(engine)).activity is Activity.LOST


async def test_an_interpreter_that_is_not_there_is_no_start(
    tmp_path: Path, plane: ControlPlaneDouble
) -> None:
    with engine_at(tmp_path / "attempts", tmp_path / "endpoint", python="/no/python") as engine:
        with pytest.raises(EngineUnavailable, match="/no/python"):
            await submit(engine, plane, plan_of(step_of("federate")))

        assert await engine.observe("job-1", 1) is None


async def test_removing_wipes_even_what_took_its_own_rights_away(
    tmp_path: Path, engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    await submit(engine, plane, plan_of(step_of("federate", "output=model.json")))
    await end_of(engine)
    locked = run / "tmp" / "locked"
    (locked / "inner").mkdir(parents=True)
    (locked / "inner" / "file").touch()
    (locked / "inner").chmod(0)
    locked.chmod(stat.S_IRUSR)
    command = [sys.executable, "-c", REMOVE, run.parents[1], tmp_path / "endpoint"]
    if os.geteuid() == 0:  # Whom rights do not bind, until it has no powers.
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]

    subprocess.run(command, cwd=Path(__file__).parents[2], check=True)

    assert not list((run.parents[1]).iterdir())


async def test_ended_wrappers_leave_no_zombie(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    await submit(engine, plane, plan_of(step_of("federate")))
    await end_of(engine)

    await until(lambda: not Path(f"/proc/{leader_of(run).pid}").exists())
