"""The engine for one machine: each attempt is a wrapper process in a session of its own.

What an attempt does is read from its folder and never from a child's exit status, so a control
plane that was restarted sees what the one before it started. A wrapper holds a lock on a file from
the moment it is spawned until it ends: no lock and no exit record means that it was lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeVar

import anyio
import msgspec

from workflows.capabilities import EngineAbilities
from workflows.engine import (
    Activity,
    Credentials,
    EngineUnavailable,
    Observation,
    PlanRefused,
    require_job_id,
    require_safe,
)
from workflows.plan import Plan
from workflows.processes import ProcessIdentity, end_session, identify, scrubbed
from workflows.run_directory import Progress, RunDirectory, read_json, write_whole

_LOCK_WAIT_S: Final = 2.0
_POLL_S: Final = 0.005
_FIRM_S: Final = 5.0
_MARGIN_S: Final = 1.0

T = TypeVar("T")


class LocalEngine:
    """Child processes of this machine.

    Args:
        root: Holds the attempts' folders, ``root/JOB/ATTEMPT``.
        endpoint_file: Says where the control plane listens; wrappers read it when it moved.
        environ: Of this process; almost nothing of it reaches an attempt.
        python: Interpreter with the platform's packages.
        grace_s: Longest that a step may take to stop politely. A wrapper that does not end by
            itself within twice that is ended by the next ``cancel``.
    """

    abilities: EngineAbilities = EngineAbilities()

    def __init__(
        self,
        root: Path,
        *,
        endpoint_file: Path,
        environ: Mapping[str, str],
        python: str = sys.executable,
        grace_s: float = 10.0,
    ) -> None:
        self._root = root.absolute()
        self._endpoint_file = endpoint_file.absolute()
        self._environ = environ
        self._python = python
        self._grace_s = grace_s
        self._one_at_a_time = threading.Lock()

    async def submit(self, plan: Plan, credentials: Credentials) -> None:
        """Lay out the attempt's folder and spawn its wrapper."""
        require_safe(plan)
        await self._do(lambda: self._submit(plan, credentials))

    async def observe(self, job: str, attempt: int) -> Observation | None:
        """Read the attempt's folder; what is left of a lost attempt is ended first."""
        return await self._do(lambda: self._observe(self._folder(job, attempt)))

    async def cancel(self, job: str, attempt: int) -> None:
        """Signal the wrapper; end its whole session once its time to end by itself is over."""
        await self._do(lambda: self._cancel(self._folder(job, attempt)))

    async def remove(self, job: str, attempt: int) -> None:
        """Wipe the folder of an attempt that does not run."""
        await self._do(lambda: self._remove(self._folder(job, attempt)))

    def _folder(self, job: str, attempt: int) -> RunDirectory:
        require_job_id(job)
        return RunDirectory(self._root / job / str(attempt))

    async def _do(self, act: Callable[[], T]) -> T:
        def alone() -> T:
            with self._one_at_a_time:
                return act()

        try:
            return await anyio.to_thread.run_sync(alone)
        except (OSError, msgspec.DecodeError) as error:
            raise EngineUnavailable(str(error)) from error

    def _submit(self, plan: Plan, credentials: Credentials) -> None:
        run = self._folder(plan.job, plan.attempt)
        run.root.mkdir(parents=True, exist_ok=True)
        with _locked(run, unless=run.leader.exists) as lock:
            if lock is not None and not run.leader.exists():
                write_whole(run.job, msgspec.json.encode(plan))
                self._spawn(run, lock, credentials)
        if not run.leader.exists():
            raise EngineUnavailable("another one holds the attempt's lock")
        started = read_json(run.job, Plan)
        if started is not None and started.plan_digest != plan.plan_digest:
            raise PlanRefused(f"attempt {plan.attempt} of {plan.job} runs another plan")

    def _spawn(self, run: RunDirectory, lock: int, credentials: Credentials) -> None:
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as source, run.wrapper_log.open("ab") as log:
            with os.fdopen(writer, "wb") as sink:
                sink.write(msgspec.json.encode(credentials))
            process = subprocess.Popen(
                [
                    *(self._python, "-P", "-m", "workflows.wrapper", str(run.root)),
                    *("--endpoint-file", str(self._endpoint_file)),
                    *("--lock-fd", str(lock), "--token-fd", str(source.fileno())),
                    *("--grace-s", str(self._grace_s)),
                ],
                cwd=run.root,
                env=scrubbed(self._environ, home=run.home, tmp=run.tmp),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock, source.fileno()),
                start_new_session=True,
            )
        try:
            write_whole(run.leader, msgspec.json.encode(identify(process.pid)))
        finally:
            # Reaped, so that no zombie is left; what became of it is read from its folder alone.
            threading.Thread(target=process.wait, daemon=True).start()

    def _observe(self, run: RunDirectory) -> Observation | None:
        is_held = _is_held(run)
        if ended := read_json(run.exit, Observation):
            return ended
        leader = read_json(run.leader, ProcessIdentity)
        if is_held:
            progress = read_json(run.progress, Progress) or Progress()
            return Observation(
                activity=Activity.RUNNING, step=progress.step, manifests=progress.manifests
            )
        if leader is None:
            return None
        if not end_session(leader, within_s=_FIRM_S):
            raise EngineUnavailable("what is left of a lost attempt does not end")
        activity = Activity.CANCELLED if run.cancel.exists() else Activity.LOST
        return Observation(activity=activity)

    def _cancel(self, run: RunDirectory) -> None:
        if run.exit.exists() or not _is_held(run):
            return
        asked_at = read_json(run.cancel, float)
        if asked_at is None:
            asked_at = time.monotonic()
            write_whole(run.cancel, msgspec.json.encode(asked_at))
        leader = read_json(run.leader, ProcessIdentity)
        if leader is None:
            return  # It is just being started, and looks for this request when it is.
        if time.monotonic() - asked_at <= 2 * self._grace_s + _MARGIN_S:
            leader.send(signal.SIGTERM)
        elif not end_session(leader, within_s=_FIRM_S):
            raise EngineUnavailable("an attempt does not end")

    def _remove(self, run: RunDirectory) -> None:
        doomed = run.root.with_name(f".{run.root.name}.removed")
        if run.root.exists():
            with _locked(run, unless=lambda: not run.exit.exists()) as lock:
                if lock is None:
                    raise EngineUnavailable("the attempt still runs")
                leader = read_json(run.leader, ProcessIdentity)
                if leader is not None and not end_session(leader, within_s=_FIRM_S):
                    raise EngineUnavailable("what is left of an attempt does not end")
                _wipe(doomed)
                run.root.rename(doomed)
        _wipe(doomed)
        with contextlib.suppress(OSError):
            run.root.parent.rmdir()  # Unless other attempts of the job are there.


@contextlib.contextmanager
def _locked(run: RunDirectory, *, unless: Callable[[], bool]) -> Iterator[int | None]:
    """The lock, held; None if another one holds it and ``unless`` is true, or does so for long."""
    lock = os.open(run.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + _LOCK_WAIT_S
        while not _take(lock, fcntl.LOCK_EX):
            if unless() or time.monotonic() > until:
                yield None
                return
            time.sleep(_POLL_S)
        yield lock
    finally:
        os.close(lock)


def _is_held(run: RunDirectory) -> bool:
    try:
        lock = os.open(run.lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _take(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def _take(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wipe(folder: Path) -> None:
    """Delete a folder, even one in which a program took its own rights away."""
    if not folder.exists():
        return
    closed = [folder]
    while closed:
        opened = closed.pop()
        opened.chmod(stat.S_IRWXU)
        with os.scandir(opened) as entries:
            closed += [Path(one) for one in entries if one.is_dir(follow_symlinks=False)]
    shutil.rmtree(folder)
