from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import msgspec
import pytest

from sharing.object_store import StoredObject, digest_of
from tests.workflows.attempts import (
    PLAN_DIGEST,
    end_of,
    engine_at,
    leader_of,
    plan_of,
    processes_of,
    step_of,
    steps_of,
    submit,
    told_to,
    until,
)
from tests.workflows.control_plane_double import TOKEN, ControlPlaneDouble
from workflows.causes import CauseCode
from workflows.engine import Activity, Credentials, Observation
from workflows.local_engine import LocalEngine
from workflows.manifest import Manifest
from workflows.plan import Plan

pytestmark = pytest.mark.anyio


async def result_of(engine: LocalEngine, plane: ControlPlaneDouble, plan: Plan) -> Observation:
    await submit(engine, plane, plan)
    return await end_of(engine)


async def test_steps_run_one_after_another_and_prove_what_they_made(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    federate = step_of(
        "federate",
        *("event", "rounds=3", "say=hello", "output=model.safetensors", "output=spent.json"),
        outputs=("model.safetensors",),
        optional_outputs=("spent.json", "model.onnx"),
    )
    publish = step_of(
        "publish", "until=model.safetensors", "output=model.json", outputs=("model.json",)
    )

    observation = await result_of(engine, plane, plan_of(federate, publish))

    assert observation.activity is Activity.SUCCEEDED
    assert plane.kinds("federate") == [
        "step.started",
        *["round.finished"] * 3,
        "step.succeeded",
    ]
    assert plane.kinds("publish") == ["step.succeeded"]
    assert plane.logs["federate"] == b"hello\n"
    digest = plane.events["federate"][-1]["manifest"]
    assert observation.manifests == {
        "federate": digest,
        "publish": plane.events["publish"][-1]["manifest"],
    }
    assert msgspec.json.decode(plane.objects[digest], type=Manifest) == Manifest(
        job="job-1",
        attempt=1,
        step="federate",
        plan_digest=PLAN_DIGEST,
        outputs={
            name: StoredObject(digest_of(content), len(content))
            for name in ("model.safetensors", "spent.json")
            for content in [f"content of {name}".encode()]
        },
    )
    assert plane.objects[digest_of(b"content of model.safetensors")]


async def test_an_object_is_stored_before_the_event_that_names_it_and_each_comes_once(
    engine: LocalEngine, plane: ControlPlaneDouble
) -> None:
    await result_of(engine, plane, plan_of(step_of("federate", "rounds=40")))

    arrived: set[str] = set()
    for kind, *what in plane.arrivals:
        if kind == "object":
            arrived.add(what[0])
        else:
            event = plane.events["federate"][what[1] - 1]
            named = {event.get(name) for name in ("checkpoint", "transcript", "manifest")} - {None}
            assert named
            assert named <= arrived
    assert len(plane.arrivals) == len(set(plane.arrivals)) == 2 * 40 + 40 + 1 + 1


async def test_events_and_logs_are_on_record_while_the_step_goes_on(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    await submit(engine, plane, plan_of(step_of("federate", "rounds=2", "say=hello", "until=go")))

    await until(lambda: plane.kinds("federate") == ["round.finished"] * 2)
    await until(lambda: plane.logs["federate"] == b"hello\n")
    observation = await engine.observe("job-1", 1)
    (run / "go").touch()

    assert observation == Observation(activity=Activity.RUNNING, step="federate")
    assert (await end_of(engine)).activity is Activity.SUCCEEDED


async def test_inputs_are_laid_before_the_first_step(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    content = os.urandom(3_000_000)
    plan = plan_of(
        step_of("federate", "until=inputs/init.safetensors"),
        inputs={"init.safetensors": plane.put_input(content)},
    )

    observation = await result_of(engine, plane, plan)

    assert observation.activity is Activity.SUCCEEDED
    assert (run / "inputs" / "init.safetensors").read_bytes() == content


@pytest.mark.parametrize("is_altered", [False, True], ids=["gone", "altered"])
async def test_an_input_that_is_gone_or_altered_fails_the_attempt_for_good(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path, is_altered: bool
) -> None:
    digest = digest_of(b"the original")
    if is_altered:
        plane.objects[digest] = b"something else"

    observation = await result_of(
        engine, plane, plan_of(step_of("federate", "event"), inputs={"bundle.tar": digest})
    )

    assert observation.activity is Activity.FAILED
    assert observation.cause is not None
    assert observation.cause.code is CauseCode.INPUT_MISSING
    assert "bundle.tar" in observation.cause.detail
    assert not plane.events["federate"]
    assert not list((run / "inputs").iterdir())


async def test_a_control_plane_that_dies_and_returns_elsewhere_misses_nothing(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    step = step_of(
        "federate", "rounds=100", "output=model.safetensors", outputs=("model.safetensors",)
    )
    await submit(engine, plane, plan_of(step))

    for seen in (10, 40):
        await until(lambda seen=seen: len(plane.events["federate"]) >= seen)
        plane.stop()
        plane.start()
    observation = await end_of(engine)

    assert observation.activity is Activity.SUCCEEDED
    assert plane.numbers("federate") == list(range(1, 102))
    assert len(plane.objects) == 2 * 100 + 1 + 1


async def test_the_exit_record_waits_until_everything_is_on_record(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    plan = plan_of(step_of("federate", "event", "until=go", "rounds=5", "say=bye", "exit=1"))
    await submit(engine, plane, plan)
    await until(lambda: plane.kinds("federate") == ["step.started"])
    plane.stop()
    (run / "go").touch()
    await until(lambda: b"step.failed" in (run / "federate.events.jsonl").read_bytes())

    observation = await engine.observe("job-1", 1)
    assert observation is not None
    assert observation.activity is Activity.RUNNING
    plane.start()

    assert (await end_of(engine)).activity is Activity.FAILED
    assert plane.numbers("federate") == list(range(1, 8))
    assert plane.logs["federate"] == b"bye\n"


@pytest.mark.parametrize("status", [500, 503, 507, 429])
async def test_a_control_plane_that_can_not_answer_just_now_is_asked_again(
    engine: LocalEngine, plane: ControlPlaneDouble, status: int
) -> None:
    plane.refuse_next(*[status] * 3)

    observation = await result_of(engine, plane, plan_of(step_of("federate", "rounds=3")))

    assert observation.activity is Activity.SUCCEEDED
    assert plane.refusals == {status: 3}
    assert plane.numbers("federate") == [1, 2, 3, 4]


async def test_events_that_a_control_plane_lost_are_told_again(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    await submit(engine, plane, plan_of(step_of("federate", "rounds=3", "until=go", "event")))
    await until(lambda: len(plane.events["federate"]) == 3)

    plane.forget()
    (run / "go").touch()
    observation = await end_of(engine)

    assert observation.activity is Activity.SUCCEEDED
    assert plane.numbers("federate") == [1, 2, 3, 4, 5]
    assert len(plane.objects) == 2 * 3 + 1


@pytest.mark.parametrize("is_known", [True, False], ids=["fenced", "token unknown"])
async def test_a_superseded_attempt_ends_itself(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path, is_known: bool
) -> None:
    plan = plan_of(step_of("federate", "event", "until=go", "event", "wait"))
    if is_known:
        await submit(engine, plane, plan)
        await until(lambda: plane.events["federate"])
        plane.is_fenced = True
        (run / "go").touch()
    else:
        await engine.submit(plan, Credentials(url=plane.url, token="of another attempt"))

    observation = await end_of(engine)

    assert observation.activity is Activity.CANCELLED
    await until(lambda: not processes_of(run))
    assert len(plane.events["federate"]) == int(is_known)


async def test_a_killed_step_is_tried_again_and_what_it_told_is_on_record(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    plan = plan_of(step_of("federate", "say=so far so good", "event", "torn", "wait"))
    await submit(engine, plane, plan)
    await until(lambda: plane.events["federate"])

    os.kill(steps_of(run)[0], signal.SIGKILL)
    observation = await end_of(engine)

    assert observation.activity is Activity.FAILED
    assert observation.cause is not None
    assert observation.cause.code is CauseCode.STEP_DIED
    assert observation.cause.detail == "federate was ended by SIGKILL"
    assert observation.cause.evidence == "so far so good"
    assert plane.kinds("federate") == ["step.started"]


async def test_a_step_says_itself_why_it_failed(
    engine: LocalEngine, plane: ControlPlaneDouble
) -> None:
    plan = plan_of(step_of("federate", "event", "fail", "exit=1"), step_of("publish", "event"))

    observation = await result_of(engine, plane, plan)

    assert observation.cause is not None
    assert observation.cause.code is CauseCode.UPDATE_NOT_FINITE
    assert observation.cause.round == 2
    assert plane.kinds("federate") == ["step.started", "step.failed"]
    assert not plane.events["publish"]


async def test_the_wrapper_says_it_for_a_step_that_did_not(
    engine: LocalEngine, plane: ControlPlaneDouble
) -> None:
    plan = plan_of(step_of("federate", "event", "torn", "say=Traceback: oh no", "exit=1"))

    observation = await result_of(engine, plane, plan)

    assert observation.cause is not None
    assert observation.cause.code is CauseCode.STEP_DIED
    assert plane.kinds("federate") == ["step.started", "step.failed"]
    cause = plane.events["federate"][-1]["cause"]
    assert cause["evidence"] == "Traceback: oh no"
    assert cause["detail"] == observation.cause.detail == "federate exited with 1"


@pytest.mark.parametrize(
    ("code", "cause"),
    [(75, CauseCode.STEP_DIED), (74, CauseCode.DISK_FULL)],
    ids=["stopped", "no room, though there is some now"],
)
async def test_try_again_is_not_a_failure_for_good(
    engine: LocalEngine, plane: ControlPlaneDouble, code: int, cause: CauseCode
) -> None:
    plan = plan_of(step_of("federate", "event", f"exit={code}"))

    observation = await result_of(engine, plane, plan)

    assert observation.cause is not None
    assert observation.cause.code is cause
    assert observation.cause.explanation.retryable
    assert plane.kinds("federate") == ["step.started"]


async def test_a_step_without_its_output_has_not_succeeded(
    engine: LocalEngine, plane: ControlPlaneDouble
) -> None:
    step = step_of("federate", "output=spent.json", outputs=("spent.json", "model.safetensors"))

    observation = await result_of(engine, plane, plan_of(step))

    assert observation.cause is not None
    assert observation.cause.code is CauseCode.MANIFEST_INVALID
    assert "model.safetensors" in observation.cause.detail
    assert observation.manifests == {}
    assert plane.kinds("federate") == ["step.failed"]
    assert not plane.objects


async def test_a_step_has_no_more_time_than_its_plan_says(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    plan = plan_of(step_of("federate", "event", "wait", timeout_s=1.0))

    observation = await result_of(engine, plane, plan)

    assert observation.cause is not None
    assert observation.cause.code is CauseCode.STEP_DIED
    assert observation.cause.detail == "federate ran longer than its 1 s"
    await until(lambda: not processes_of(run))


async def test_a_step_that_skips_a_number_breaks_the_contract(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    plan = plan_of(step_of("federate", "event", "say=see here", "skip", "event", "wait"))

    observation = await result_of(engine, plane, plan)

    assert observation.cause is not None
    assert observation.cause.code is CauseCode.PLATFORM_BUG
    assert observation.cause.detail == "event 3 where 2 must come"
    assert plane.logs["federate"] == b"see here\n"
    await until(lambda: not processes_of(run))


async def test_a_flood_of_output_is_bounded_and_holds_nobody_up(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    plan = plan_of(step_of("federate", "say=the beginning", "flood=200", "say=the end"), log_mb=1)
    began = time.monotonic()

    observation = await result_of(engine, plane, plan)

    assert observation.activity is Activity.SUCCEEDED
    assert time.monotonic() - began < 15
    log = plane.logs["federate"]
    assert log == (run / "federate.log").read_bytes()
    assert 900_000 < len(log) <= 1 << 20
    assert log.startswith(b"the beginning\n")
    assert log.endswith(b"spam and eggs!!\nthe end\n")
    assert b"[foedus] the log is at its limit" in log
    assert b"bytes are left out here" in log


async def test_nothing_that_a_step_started_outlives_it(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    observation = await result_of(engine, plane, plan_of(step_of("federate", "orphan")))

    orphan = int((run / "orphan").read_text())
    assert observation.activity is Activity.SUCCEEDED
    assert not Path(f"/proc/{orphan}").exists()


async def test_the_token_is_in_no_file_argument_or_environment(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    step = step_of("federate", "rounds=2", "output=model.json", "until=go", outputs=("model.json",))
    await submit(engine, plane, plan_of(step))
    await until(lambda: len(plane.events["federate"]) == 2)

    wrapper, child = leader_of(run).pid, steps_of(run)[0]
    told = [told_to(pid) for pid in (wrapper, child)]
    environ = Path(f"/proc/{child}/environ").read_bytes()
    (run / "go").touch()
    await end_of(engine)

    assert str(run).encode() in told[0]
    assert not [text for text in told if TOKEN.encode() in text or b"hunter2" in text]
    assert {line.split(b"=")[0] for line in environ.split(b"\0") if line} <= {
        *(b"PATH", b"LANG", b"LC_ALL", b"TZ", b"LD_LIBRARY_PATH", b"HOME", b"TMPDIR"),
        *(b"PYTHONPATH", b"PYTHONUNBUFFERED", b"OMP_NUM_THREADS"),
    }
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) >= 8
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


async def test_no_process_of_the_same_user_reads_the_wrappers_memory(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    # procfs gives what it says of a hidden process to root: root must not be who runs it.
    before = os.getresgid()
    if before[0] == 0:
        os.setresgid(54_321, 54_321, 0)
    group = os.getegid()
    try:
        await submit(engine, plane, plan_of(step_of("federate", "event", "until=go")))
    finally:
        os.setresgid(*before)
    await until(lambda: plane.events["federate"])

    groups = [
        Path(f"/proc/{pid}/environ").stat().st_gid for pid in (leader_of(run).pid, steps_of(run)[0])
    ]
    (run / "go").touch()
    await end_of(engine)

    assert groups == [0, group]


def start_wrapper(run: Path, plane: ControlPlaneDouble, *arguments: str) -> int:
    """Exit code of a wrapper that some other engine starts."""
    credentials = run / "credentials"
    credentials.write_bytes(msgspec.json.encode(Credentials(url=plane.url, token=TOKEN)))
    with (run / "lock").open("wb") as lock, credentials.open("rb") as source:
        return subprocess.run(
            [
                *(sys.executable, "-m", "workflows.wrapper", run, *arguments),
                *("--endpoint-file", run / "endpoint", "--grace-s", "1"),
                *("--lock-fd", str(lock.fileno()), "--token-fd", str(source.fileno())),
            ],
            pass_fds=(lock.fileno(), source.fileno()),
            cwd=Path(__file__).parents[2],
            stderr=subprocess.DEVNULL,
            check=False,
        ).returncode


async def test_another_engine_runs_one_step_alone(plane: ControlPlaneDouble, run: Path) -> None:
    plan = plan_of(step_of("federate", "event"), step_of("publish", "event"))
    run.mkdir(parents=True)
    (run / "job.json").write_bytes(msgspec.json.encode(plan))

    codes = [
        await anyio.to_thread.run_sync(start_wrapper, run, plane, "--step", step)
        for step in ("publish", "translate")
    ]

    assert codes == [0, 2]
    assert plane.kinds("publish") == ["step.started", "step.succeeded"]
    assert "federate" not in plane.events


async def test_a_wrapper_that_was_cancelled_before_it_began_does_not_begin(
    engine: LocalEngine, plane: ControlPlaneDouble, run: Path
) -> None:
    run.mkdir(parents=True)
    (run / "job.json").write_bytes(msgspec.json.encode(plan_of(step_of("federate", "event"))))
    (run / "cancel.json").write_bytes(b"1.0")

    code = await anyio.to_thread.run_sync(start_wrapper, run, plane)

    assert code == 0
    assert await engine.observe("job-1", 1) == Observation(activity=Activity.CANCELLED)
    assert not plane.events


async def test_a_full_disk_is_told_of_and_can_be_tried_again(
    tmp_path: Path, plane: ControlPlaneDouble
) -> None:
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    try:
        with engine_at(disk, tmp_path / "endpoint") as engine:
            observation = await result_of(
                engine, plane, plan_of(step_of("federate", "event", "fill"))
            )

            assert observation.activity is Activity.FAILED
            assert observation.cause is not None
            assert observation.cause.code is CauseCode.DISK_FULL
            assert plane.kinds("federate")[0] == "step.started"
            await engine.remove("job-1", 1)
            assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


async def test_an_input_that_does_not_fit_on_the_disk_can_be_tried_again(
    tmp_path: Path, plane: ControlPlaneDouble
) -> None:
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    plan = plan_of(
        step_of("federate", "event"),
        inputs={"dataset.npz": plane.put_input(os.urandom(3_000_000))},
    )
    try:
        with engine_at(disk, tmp_path / "endpoint") as engine:
            observation = await result_of(engine, plane, plan)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)

    assert observation.activity is Activity.FAILED
    assert observation.cause is not None
    assert observation.cause.code is CauseCode.DISK_FULL


@pytest.mark.parametrize("orders", [["flood=4"], ["flood=4", "wait"]], ids=["to the end", "early"])
async def test_a_log_that_does_not_fit_on_the_disk_is_a_full_disk(
    tmp_path: Path, plane: ControlPlaneDouble, orders: list[str]
) -> None:
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    try:
        with engine_at(disk, tmp_path / "endpoint") as engine:
            observation = await result_of(
                engine, plane, plan_of(step_of("federate", "event", *orders), log_mb=8)
            )
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)

    assert observation.activity is Activity.FAILED
    assert observation.cause is not None
    assert observation.cause.code is CauseCode.DISK_FULL
    assert plane.kinds("federate") == ["step.started"]
    assert plane.logs["federate"].startswith(b"spam and eggs!!\n")
