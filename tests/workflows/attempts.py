"""Plans made of ``steps_for_tests``, and bounded waiting for what becomes of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import msgspec

from sharing.object_store import Digest
from tests.workflows.control_plane_double import TOKEN, ControlPlaneDouble
from workflows.engine import Activity, Credentials, Observation, WorkflowEngine
from workflows.job import Builtin, JobSpec, Limits, Partitioned
from workflows.local_engine import LocalEngine
from workflows.plan import Plan, Step, StepKind
from workflows.processes import ProcessIdentity, end_session
from workflows.run_directory import read_json

WITHIN_S = 90.0
PLAN_DIGEST = f"sha256:{'5' * 64}"


def step_of(
    name: StepKind,
    *orders: str,
    outputs: tuple[str, ...] = (),
    optional_outputs: tuple[str, ...] = (),
    timeout_s: float = 60.0,
) -> Step:
    return Step(
        name=name,
        argv=("tests.workflows.steps_for_tests", name, *orders),
        outputs=outputs,
        optional_outputs=optional_outputs,
        timeout_s=timeout_s,
    )


def plan_of(
    *steps: Step,
    job: str = "job-1",
    attempt: int = 1,
    inputs: Mapping[str, Digest] | None = None,
    log_mb: int = 1,
    plan_digest: Digest = PLAN_DIGEST,
) -> Plan:
    spec = JobSpec(
        name="for tests",
        program=Builtin(name="digits-mlp"),
        data=Partitioned(dataset="digits"),
        limits=Limits(log_mb=log_mb),
    )
    return Plan(
        job=job,
        attempt=attempt,
        plan_digest=plan_digest,
        spec=spec,
        inputs=inputs or {},
        steps=steps,
    )


async def submit(engine: WorkflowEngine, plane: ControlPlaneDouble, plan: Plan) -> None:
    await engine.submit(plan, Credentials(url=plane.url, token=TOKEN))


async def until(condition: Callable[[], object], within_s: float = WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        await anyio.sleep(0.005)


async def end_of(
    engine: WorkflowEngine, job: str = "job-1", attempt: int = 1, within_s: float = WITHIN_S
) -> Observation:
    deadline = time.monotonic() + within_s
    while True:
        observation = await engine.observe(job, attempt)
        assert observation is not None, "it was never started"
        if observation.activity is not Activity.RUNNING:
            return observation
        assert time.monotonic() < deadline, observation
        await anyio.sleep(0.01)


@contextmanager
def engine_at(
    root: Path, endpoint_file: Path, *, grace_s: float = 5.0, python: str | None = None
) -> Iterator[LocalEngine]:
    """An engine whose attempts are ended afterwards, whatever became of the test."""
    options = {} if python is None else {"python": python}
    environ = {**os.environ, "SECRET_OF_THE_CONTROL_PLANE": "hunter2"}
    yield LocalEngine(
        root, endpoint_file=endpoint_file, environ=environ, grace_s=grace_s, **options
    )
    for leader in root.glob("*/*/pid.json"):
        identity = read_json(leader, ProcessIdentity)
        assert identity is not None
        assert end_session(identity, within_s=10)


def leader_of(run: Path) -> ProcessIdentity:
    leader = msgspec.json.decode((run / "pid.json").read_bytes(), type=ProcessIdentity)
    assert leader.pid > 1
    return leader


def processes_of(run: Path) -> list[int]:
    """Every live process that was told of this run directory, by argument or environment."""
    needle = os.fsencode(run)
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if needle in told_to(pid) and _is_alive(pid)]


def steps_of(run: Path) -> list[int]:
    """The live processes of its steps: not the wrapper, nor what they leave behind."""
    return [pid for pid in processes_of(run) if b"steps_for_tests" in told_to(pid)]


def told_to(pid: int) -> bytes:
    """Arguments and environment of a process, as far as we may see them."""
    told = b""
    for what in ("cmdline", "environ"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            told += Path(f"/proc/{pid}/{what}").read_bytes() + b"\0"
    return told


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rsplit(b")", 1)[1].split()[0] not in (b"Z", b"X")
