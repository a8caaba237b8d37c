"""The wrapper around the steps of one attempt: ``python -m workflows.wrapper RUN_DIR ...``.

It alone holds the attempt's token, which it gets through a descriptor. It lays inputs, runs each
step as a process without credentials, brings events, objects and logs on record while the step
goes on, and stores outputs and, last, the manifest that proves them. Its own last word is the exit
record, written when nothing is left to tell; the lock it holds says that it lives.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
import msgspec

from sharing.object_store import Digest, StoredObject, digest_of, digest_of_file
from workflows.canonical import canonical_bytes
from workflows.causes import Cause, CauseCode
from workflows.confinement import die_with, hide_memory
from workflows.courier import (
    EVENTS,
    AbsentObject,
    Courier,
    CourierError,
    EventFeed,
    Fenced,
    LogFeed,
    open_client,
)
from workflows.engine import Activity, Credentials, Observation
from workflows.events import AnyStepEvent, StepEvent, StepFailed, StepSucceeded
from workflows.manifest import Handover, Manifest
from workflows.plan import RESUMPTION, Plan, Step, StepKind
from workflows.processes import adopt_orphans, end_children, identify, scrubbed
from workflows.run_directory import (
    NO_ROOM,
    RESERVED_BYTES,
    Progress,
    RunDirectory,
    read_json,
    write_whole,
)
from workflows.step_log import StepLog

_PIPE_BYTES: Final = 1 << 20
_EVIDENCE_LINES: Final = 20
_EVIDENCE_CHARS: Final = 4_000
_LAST_EVENT_BYTES: Final = 1 << 20
_FULL_BYTES: Final = 16 << 20
"""A disk with less room than this when a step died is taken for the reason."""


class Over(Exception):
    """The attempt ends without success.

    Attributes:
        activity: As what.
        cause: Why, if it failed.
    """

    def __init__(self, activity: Activity, cause: Cause | None = None) -> None:
        super().__init__(activity)
        self.activity = activity
        self.cause = cause


class Wrapper:
    """One attempt, from its inputs to its exit record.

    Args:
        run: Its folder.
        plan: What is run.
        courier: Speaks for it.
        environ: Of this process; steps get next to nothing of it.
        grace_s: Longest that a step may take to stop politely, and that what is left to tell may
            take when the attempt was cancelled.
        earlier: Of the steps that ran on other machines, and whose files are laid first. None where
            all steps run here, so that no other process can have started one of them before.
        link: Secret on standard input of a step whose shards are started by others; empty where it
            starts them itself.
    """

    def __init__(
        self,
        run: RunDirectory,
        plan: Plan,
        courier: Courier,
        *,
        environ: Mapping[str, str],
        grace_s: float,
        earlier: Mapping[StepKind, Handover] | None = None,
        link: bytes = b"",
    ) -> None:
        self._run_directory = run
        self._plan = plan
        self._courier = courier
        self._environ = scrubbed(environ, home=run.home, tmp=run.tmp)
        self._grace_s = grace_s
        self._earlier = earlier
        self._link = link
        self._progress = Progress()
        self._feeds: tuple[EventFeed | LogFeed, ...] = ()

    async def run(self, only: StepKind | None = None) -> Observation:
        """Run the steps, tell everything there is to tell, and return how it ended.

        Args:
            only: The one step to run; None for all of them.
        """
        steps = [step for step in self._plan.steps if only in (None, step.name)]
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            over = await _until_over(signals, lambda: self._run_steps(steps))
            if over is not None and over.activity is Activity.FAILED:
                over = await _until_over(signals, self._tell_rest) or over
            elif over is not None and not isinstance(over.__cause__, Fenced):
                with anyio.move_on_after(self._grace_s):
                    await _until_over(signals, self._tell_rest)
        return Observation(
            activity=over.activity if over else Activity.SUCCEEDED,
            cause=over.cause if over else None,
            manifests=self._progress.manifests,
        )

    async def _run_steps(self, steps: Sequence[Step]) -> None:
        if self._run_directory.cancel.exists():
            raise Over(Activity.CANCELLED)
        for name, digest in self._plan.inputs.items():
            if not (self._earlier and name in RESUMPTION):
                await self._lay_input(self._run_directory.inputs / name, digest)
        for name, handover in (self._earlier or {}).items():
            await self._lay_step(name, handover)
        for step in steps:
            if self._earlier is not None:
                await self._require_first(step)
            await self._run_step(step)

    async def _require_first(self, step: Step) -> None:
        """End if the step was started before, as a pod is that a cluster replaces by itself.

        Under this attempt's number, what it tells would be taken for repetitions.
        """
        if await self._courier.post_events(step.name, []):
            detail = f"{step.name} was started again, after it had told something"
            raise Over(Activity.LOST, Cause(code=CauseCode.ATTEMPT_LOST, detail=detail))

    async def _lay_step(self, name: StepKind, handover: Handover) -> None:
        """Lay what an earlier step made and told, once its manifest proved to be of this attempt.

        Where files belong is the plan's word, not the manifest's.
        """
        run = self._run_directory
        await self._lay_input(run.manifest(name), handover.manifest)
        await self._lay_input(run.events(name), handover.events)
        manifest = _manifest_of(run, name)
        step = next(step for step in self._plan.steps if step.name == name)
        mine = (self._plan.job, self._plan.attempt, name, self._plan.plan_digest)
        if manifest is None or mine != (
            *(manifest.job, manifest.attempt, manifest.step, manifest.plan_digest),
        ):
            detail = f"what {name} handed over is not of this attempt"
            raise Over(Activity.FAILED, Cause(code=CauseCode.MANIFEST_INVALID, detail=detail))
        for file in (*step.outputs, *step.optional_outputs):
            if stored := manifest.outputs.get(file):
                await self._lay_input(run.root / file, stored.digest)

    async def _lay_input(self, path: Path, digest: Digest) -> None:
        is_there = await anyio.Path(path).exists()
        if is_there and await anyio.to_thread.run_sync(digest_of_file, path) == digest:
            return
        try:
            await self._courier.fetch(digest, path)
        except AbsentObject as error:
            cause = Cause(code=CauseCode.INPUT_MISSING, detail=f"{path.name}: {error}")
            raise Over(Activity.FAILED, cause) from error

    async def _run_step(self, step: Step) -> None:
        run = self._run_directory
        self._note(step=step.name)
        ended = anyio.Event()
        log_bytes = self._plan.spec.limits.log_mb << 20
        with StepLog(run.log(step.name), limit_bytes=log_bytes) as log:
            self._feeds = (
                EventFeed(
                    self._courier,
                    step.name,
                    run.events(step.name),
                    run.object,
                    lambda number: self._note(acknowledged=(step.name, number)),
                ),
                LogFeed(self._courier, step.name, run.log(step.name), log),
            )
            async with anyio.create_task_group() as tasks:
                for feed in self._feeds:
                    tasks.start_soon(feed.forward, ended)
                code = await self._run_process(step, log)
                log.close()
                made = await self._conclude(step, code, log)
                ended.set()
        if isinstance(made, Cause):
            raise Over(Activity.FAILED, made)
        self._note(manifest=(step.name, made))

    async def _run_process(self, step: Step, log: StepLog) -> int | None:
        """Exit code of the step's process; None if its time ran out."""
        reader, writer = os.pipe()
        with contextlib.ExitStack() as descriptors:
            descriptors.callback(os.close, reader)
            with contextlib.suppress(PermissionError):
                fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            try:
                process = self._spawn(step, writer)
            finally:
                os.close(writer)
            exited = os.pidfd_open(process.pid)
            descriptors.callback(os.close, exited)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_drain, reader, log)
                try:
                    with anyio.move_on_after(step.timeout_s) as limit:
                        await anyio.wait_readable(exited)
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._end(process, exited)
        return None if limit.cancelled_caught else process.returncode

    def _spawn(self, step: Step, output: int) -> subprocess.Popen[bytes]:
        me = os.getpid()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", *step.argv, str(self._run_directory.root)],
            cwd=self._run_directory.root,
            env=self._environ,
            stdin=subprocess.PIPE if step.shards else subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
            preexec_fn=lambda: die_with(me),
        )
        if process.stdin:
            with contextlib.suppress(BrokenPipeError), process.stdin as sink:
                sink.write(self._link)  # less than a pipe holds, so it is not waited for
        return process

    async def _end(self, process: subprocess.Popen[bytes], exited: int) -> None:
        """End the step's process, politely and then firmly, and all that descends from it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with anyio.move_on_after(self._grace_s):
            await anyio.wait_readable(exited)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await anyio.wait_readable(exited)  # only then are the processes that it leaves behind ours
        end_children(spare=process.pid)
        process.wait()

    async def _conclude(self, step: Step, code: int | None, log: StepLog) -> Digest | Cause:
        """Digest of the manifest of a step that has ended, or why there is none."""
        events = self._run_directory.events(step.name)
        last = _last_event(events)
        if isinstance(last, StepFailed):
            return last.cause
        missing = [name for name in step.outputs if not (self._run_directory.root / name).is_file()]
        cause = self._judge(step, code, missing)
        if cause is None:
            manifest = await self._store_outputs(step)
            _append_event(events, StepSucceeded(number=0, at=time.time(), manifest=manifest))
            return manifest
        cause = msgspec.structs.replace(cause, evidence=_bounded(log.last_lines(_EVIDENCE_LINES)))
        if code in (0, 1):
            _append_event(events, StepFailed(number=0, at=time.time(), cause=cause))
        return cause

    def _judge(self, step: Step, code: int | None, missing: Sequence[str]) -> Cause | None:
        if code == 0 and not missing:
            return None
        if code == 0:
            return Cause(
                code=CauseCode.MANIFEST_INVALID,
                detail=f"{step.name} ended well but left no {', '.join(missing)}",
            )
        if code == NO_ROOM or _free_bytes(self._run_directory.root) < _FULL_BYTES:
            return Cause(code=CauseCode.DISK_FULL, detail=f"{step.name} ended on a full disk")
        if code is None:
            detail = f"{step.name} ran longer than its {step.timeout_s:g} s"
        elif code < 0:
            detail = f"{step.name} was ended by {signal.Signals(-code).name}"
        else:
            detail = f"{step.name} exited with {code}"
        return Cause(code=CauseCode.STEP_DIED, detail=detail)

    async def _store_outputs(self, step: Step) -> Digest:
        outputs = {}
        for name in (*step.outputs, *step.optional_outputs):
            path = self._run_directory.root / name
            if path.is_file():
                digest = await anyio.to_thread.run_sync(digest_of_file, path)
                await self._courier.store(digest, path)
                outputs[name] = StoredObject(digest, path.stat().st_size)
        manifest = canonical_bytes(
            Manifest(
                job=self._plan.job,
                attempt=self._plan.attempt,
                step=step.name,
                plan_digest=self._plan.plan_digest,
                outputs=outputs,
            )
        )
        write_whole(self._run_directory.manifest(step.name), manifest)
        await self._courier.store(digest_of(manifest), self._run_directory.manifest(step.name))
        return digest_of(manifest)

    async def _tell_rest(self) -> None:
        """Bring on record what the step at hand left behind; nothing more of it will come."""
        ended = anyio.Event()
        ended.set()
        for feed in reversed(self._feeds):  # The log first: events can be what broke.
            await feed.forward(ended)

    def _note(
        self,
        *,
        step: StepKind | None = None,
        manifest: tuple[StepKind, Digest] | None = None,
        acknowledged: tuple[StepKind, int] | None = None,
    ) -> None:
        before = self._progress
        self._progress = Progress(
            step=step or before.step,
            manifests=before.manifests | dict([manifest] if manifest else []),
            acknowledged=before.acknowledged | dict([acknowledged] if acknowledged else []),
        )
        # Only a view for the engine: a full disk is noticed where something would be lost.
        with contextlib.suppress(OSError):
            write_whole(self._run_directory.progress, msgspec.json.encode(self._progress))


async def _until_over(
    signals: AsyncIterator[signal.Signals], work: Callable[[], Awaitable[None]]
) -> Over | None:
    """Do ``work`` unless a signal comes; how it ended if not well."""
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_on, signals)
            await work()
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        return _over(group)
    return None


async def _cancel_on(signals: AsyncIterator[signal.Signals]) -> None:
    async for _ in signals:
        raise Over(Activity.CANCELLED)


def _over(group: BaseExceptionGroup[BaseException]) -> Over:
    """What the errors of a task group mean; being cancelled outweighs having failed."""
    found = [_over_by(error) for error in _leaves(group)]
    return min(found, key=lambda over: over.activity is not Activity.CANCELLED)


def _over_by(error: BaseException) -> Over:
    match error:
        case Over():
            return error
        case Fenced():
            over = Over(Activity.CANCELLED)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            cause = Cause(code=CauseCode.DISK_FULL, detail="no room is left for the run's files")
            over = Over(Activity.FAILED, cause)
        case CourierError():
            over = Over(Activity.FAILED, Cause(code=CauseCode.PLATFORM_BUG, detail=str(error)))
        case _:
            lines = "".join(traceback.format_exception(error))
            sys.stderr.write(lines)
            cause = Cause(
                code=CauseCode.PLATFORM_BUG,
                detail=f"the wrapper stumbled over {type(error).__name__}",
                evidence=_bounded(lines),
            )
            over = Over(Activity.FAILED, cause)
    over.__cause__ = error
    return over


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error


async def _drain(reader: int, log: StepLog) -> None:
    """Take all that is printed, until no process is left that could print."""
    with anyio.CancelScope(shield=True):
        while True:
            await anyio.wait_readable(reader)
            chunk = os.read(reader, _PIPE_BYTES)
            if not chunk:
                return
            log.write(chunk)


def _manifest_of(run: RunDirectory, step: StepKind) -> Manifest | None:
    with contextlib.suppress(msgspec.DecodeError):
        return read_json(run.manifest(step), Manifest)
    return None


def _last_event(path: Path) -> AnyStepEvent | None:
    """The last whole line; None if there is none, or if it is not an event."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LAST_EVENT_BYTES))
            lines = file.read().split(b"\n")[:-1]
        return EVENTS.decode(lines[-1]) if lines else None
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _append_event(path: Path, event: StepEvent) -> None:
    """Write the last line of a step that has ended, over a line that it left unfinished."""
    last = _last_event(path)
    numbered = msgspec.structs.replace(event, number=last.number + 1 if last else 1)
    with path.open("ab+") as file:
        file.truncate(_whole_bytes(path))
        file.write(msgspec.json.encode(numbered) + b"\n")


def _whole_bytes(path: Path) -> int:
    """Length of ``path`` up to the end of its last whole line."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _LAST_EVENT_BYTES))
        tail = file.read()
    return size - len(tail) + tail.rfind(b"\n") + 1


def _bounded(text: str) -> str:
    return text[-_EVIDENCE_CHARS:]


def _free_bytes(folder: Path) -> int:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


class ExitRecord:
    """Room for the attempt's last word, taken before the disk can be full."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        with self._part.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, RESERVED_BYTES)

    def write(self, observation: Observation) -> None:
        """Leave the last word, durably."""
        content = msgspec.json.encode(observation)
        with self._part.open("r+b") as file:
            file.write(content)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        self._part.replace(self._path)


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """Run an attempt, whose folder holds ``job.json``, and leave its exit record there."""
    parser = argparse.ArgumentParser(prog="python -m workflows.wrapper")
    parser.add_argument("run_directory", type=Path)
    parser.add_argument("--endpoint-file", type=Path, required=True, help="says where to report")
    parser.add_argument("--lock-fd", type=int, required=True, help="open and locked")
    parser.add_argument("--token-fd", type=int, required=True, help="credentials, as JSON")
    parser.add_argument("--grace-s", type=float, required=True)
    parser.add_argument("--step", help="the one step to run")
    given = parser.parse_args(arguments)
    hide_memory()
    with os.fdopen(given.token_fd, "rb") as source:
        credentials = msgspec.json.decode(source.read(), type=Credentials)
    os.set_inheritable(given.lock_fd, False)
    run = RunDirectory(given.run_directory.resolve())
    write_whole(run.leader, msgspec.json.encode(identify(os.getpid())))
    adopt_orphans()
    record = ExitRecord(run.exit)
    plan = read_json(run.job, Plan)
    if plan is None or given.step not in (None, *[step.name for step in plan.steps]):
        parser.error(f"{run.job} is not there, or has no such step")
    for folder in (run.inputs, run.objects, run.home, run.tmp):
        folder.mkdir(exist_ok=True)

    async def attempt() -> Observation:
        async with open_client(credentials) as client:
            courier = Courier(client, credentials, given.endpoint_file, plan.job, plan.attempt)
            wrapper = Wrapper(run, plan, courier, environ=environ, grace_s=given.grace_s)
            return await wrapper.run(given.step)

    record.write(anyio.run(attempt))


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)
