"""Worker processes for code that is not ours, as a pool that outlives what that code does.

A worker is a fresh interpreter (never a fork) that keeps the program loaded. Each has a thread
here that hands it tasks over its own socket, and one watchdog looks ten times a second at all of
them: who takes longer or more memory than the job allows is killed and replaced, and only the
task at hand is lost. A worker that somebody else killed is replaced too, and its task is given
once more, so that the result does not show it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import msgspec
import numpy as np

from workflows.causes import Cause, CauseCode
from workflows.frames import Blob, FrameError, FrameTooLarge, receive_frame, send_frame
from workflows.job import Limits
from workflows.model_file import ModelRef, lay_model
from workflows.pool import Pool, T
from workflows.processes import scrubbed
from workflows.tasks import AnyAnswer, Failed, Reply, SiteFailure, Task

START_S: Final = 120.0
"""Longest a fresh interpreter may take to load the platform's own modules."""
WATCH_S: Final = 0.1
MOST_PROCESSES: Final = 64
"""That a worker may have below it."""
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_OUTSIDE_SIGNALS: Final = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT)


class Station(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told on its command line; it holds no secret.

    Attributes:
        connection: Descriptor of its socket.
        parent: Process that started it.
        folder: The one folder it may write to.
        readable: Files and folders it may read beyond what Python needs.
        limits: What it may take.
    """

    connection: int
    parent: int
    folder: str
    readable: tuple[str, ...]
    limits: Limits


class Ready(msgspec.Struct, frozen=True, tag_field="kind", tag="ready"):
    """A worker's first word.

    Attributes:
        confined: By what means it is confined, for the log.
    """

    confined: tuple[str, ...]


_ready_decoder = msgspec.msgpack.Decoder(Ready)


@dataclass(slots=True, eq=False)
class _Job:
    """A task on its way. ``standing`` is its place among the tasks that every worker runs."""

    task: Task
    blobs: Sequence[Blob]
    future: Future[Reply]
    standing: int | None = None


@dataclass(slots=True, eq=False)
class _Lane:
    """A place for one worker: the process in it is replaced when it dies.

    ``num_opened`` counts the standing tasks that its process has done; -1 before its first word.
    """

    mailbox: deque[_Job] = field(default_factory=deque)
    lock: threading.Lock = field(default_factory=threading.Lock)
    process: subprocess.Popen[bytes] | None = None
    connection: socket.socket | None = None
    num_opened: int = -1
    job: _Job | None = None
    due: float | None = None
    verdict: Cause | None = None

    def end(self, verdict: Cause | None) -> None:
        """Kill the worker and whatever it started; the first verdict stands."""
        with self.lock:
            if verdict and not self.verdict:
                self.verdict = verdict
            if self.process:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            if self.connection:
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)


class _Lost(Exception):
    """The worker ended before it answered."""

    def __init__(self, cause: Cause, *, from_outside: bool) -> None:
        super().__init__(cause.detail)
        self.cause = cause
        self.from_outside = from_outside


class WorkerPool(Pool[T]):
    """Some workers, replaced as they die.

    Use it as a context manager: leaving it ends every worker.
    """

    def __init__(
        self,
        *,
        num_workers: int,
        limits: Limits,
        folder: Path,
        entry: Sequence[str] = ("workflows.worker",),
        answers: Any = AnyAnswer,  # noqa: ANN401 - a msgspec union is no type to mypy
        readable: Sequence[Path] = (),
        log: IO[bytes] | int | None = None,
    ) -> None:
        """Prepare a pool; nothing is started yet.

        Args:
            num_workers: Processes.
            limits: What each may take.
            folder: Scratch; the workers may write there and nowhere else. Made if absent.
            entry: Module that a worker runs, and arguments before its station.
            answers: Union of what it may answer.
            readable: What workers may read beyond ``folder`` and Python itself.
            log: Where their stdout and stderr go; None for those of this process.
        """
        self.limits = limits
        self.folder = folder.resolve()
        self.confined: tuple[str, ...] = ()
        self._entry = tuple(entry)
        self._readable = tuple(str(path.resolve()) for path in readable)
        self._log = log
        self._decoder = msgspec.msgpack.Decoder(answers)
        self._lanes = [_Lane() for _ in range(num_workers)]
        self._threads: list[threading.Thread] = []
        self._queue: deque[_Job] = deque()
        self._standing: list[_Job] = []
        self._wake = threading.Condition()
        self._closing = threading.Event()
        self._model: tuple[Mapping[str, np.ndarray], ModelRef] | None = None
        self._versions = 0

    def __enter__(self) -> WorkerPool[T]:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._threads = [
            threading.Thread(target=self._work, args=(lane,), name=f"worker-{i}", daemon=True)
            for i, lane in enumerate(self._lanes)
        ]
        self._threads.append(threading.Thread(target=self._watch, name="watchdog", daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._wake:
            self._closing.set()
            self._wake.notify_all()
            waiting = [*self._queue, *(job for lane in self._lanes for job in lane.mailbox)]
        for job in waiting:
            job.future.cancel()
        for lane in self._lanes:
            lane.end(None)
        for thread in self._threads:
            thread.join()
        for lane in self._lanes:
            self._discard(lane)
        if self._model:
            Path(self._model[1].path).unlink(missing_ok=True)

    @property
    def num_workers(self) -> int:
        return len(self._lanes)

    @property
    def pids(self) -> tuple[int, ...]:
        """Processes of the workers that run now."""
        return tuple(lane.process.pid for lane in self._lanes if lane.process)

    def call(self, task: Task, blobs: Sequence[Blob] = ()) -> Future[Reply]:
        job = _Job(task, blobs, Future())
        with self._wake:
            self._queue.append(job)
            self._wake.notify()
        return job.future

    def broadcast_task(self, task: Task) -> list[Reply]:
        """Let every worker do ``task``, those that come as replacements too; waits for all.

        Raises:
            SiteFailure: One of them could not.
        """
        with self._wake:
            index = len(self._standing)
            jobs = [_Job(task, (), Future(), index) for _ in self._lanes]
            self._standing.append(jobs[0])
            for lane, job in zip(self._lanes, jobs, strict=True):
                lane.mailbox.append(job)
            self._wake.notify_all()
        return [job.future.result() for job in jobs]

    def broadcast(self, params: Mapping[str, np.ndarray]) -> ModelRef:
        if self._model and self._model[0] is params:
            return self._model[1]
        self._versions += 1
        before = self._model
        path = self.folder / f"model-{self._versions}.bin"
        self._model = (params, lay_model(params, path, self._versions))
        if before:
            Path(before[1].path).unlink(missing_ok=True)
        return self._model[1]

    def give_up(self, pending: Iterable[Future[Reply]]) -> None:
        running = {future for future in pending if not future.cancel() and not future.done()}
        for lane in self._lanes:
            if lane.job and lane.job.future in running:
                lane.end(Cause(code=CauseCode.DEADLINE_PASSED, detail="given up"))

    def _work(self, lane: _Lane) -> None:
        """Body of a lane's thread, which also starts its processes.

        (A process is bound to the life of the thread that started it: PR_SET_PDEATHSIG.)
        """
        self._start(lane)
        while (job := self._next(lane)) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            lane.job = job
            try:
                reply = self._answer(lane, job)
            except BaseException as error:  # noqa: BLE001 - it belongs to who waits for the future
                job.future.set_exception(error)
            else:
                job.future.set_result(reply)
            finally:
                lane.job = None
            del job

    def _next(self, lane: _Lane) -> _Job | None:
        with self._wake:
            while not self._closing.is_set():
                if lane.mailbox:
                    return lane.mailbox.popleft()
                if self._queue:
                    return self._queue.popleft()
                self._wake.wait()
        return None

    def _answer(self, lane: _Lane, job: _Job) -> Reply:
        place = len(self._standing) if job.standing is None else job.standing
        retried = False
        while True:
            try:
                self._bring_up(lane, place)
                reply = self._exchange(lane, job)
            except _Lost as lost:
                if lost.from_outside and not retried and not self._closing.is_set():
                    retried = True
                    continue
                raise SiteFailure(lost.cause) from lost
            if job.standing is not None:
                lane.num_opened = job.standing + 1
            return reply

    def _bring_up(self, lane: _Lane, place: int) -> None:
        """Make sure that a worker is there and has done the standing tasks before ``place``."""
        if not lane.process or lane.verdict or lane.process.poll() is not None:
            self._discard(lane)
            self._start(lane)
        if lane.num_opened < 0:
            ready, _ = self._converse(lane, None, _ready_decoder, 0, START_S)
            self.confined, lane.num_opened = ready.confined, 0
        while lane.num_opened < place:
            self._exchange(lane, self._standing[lane.num_opened])
            lane.num_opened += 1

    def _start(self, lane: _Lane) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            station = Station(
                connection=theirs.fileno(),
                parent=os.getpid(),
                folder=str(self.folder),
                readable=self._readable,
                limits=self.limits,
            )
            command = [sys.executable, "-P", "-m", *self._entry]
            process = subprocess.Popen(
                [*command, msgspec.json.encode(station).decode()],
                cwd=self.folder,
                env=environment(self.folder),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log if self._log is None else subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        with lane.lock:
            lane.process, lane.connection, lane.verdict = process, ours, None
            lane.num_opened = -1

    def _discard(self, lane: _Lane) -> None:
        """Reap what is left of a worker."""
        lane.end(None)
        if lane.process:
            lane.process.wait()
        if lane.connection:
            lane.connection.close()
        with lane.lock:
            lane.process = lane.connection = None

    def _exchange(self, lane: _Lane, job: _Job) -> Reply:
        """Have one task done by the worker that is there.

        Raises:
            SiteFailure: The task failed by the program's doing; the worker lives.
            _Lost: The worker is gone.
        """
        most_bytes = self.limits.output_mb << 20
        allowed_s = getattr(self.limits, job.task.clock)
        answer, blobs = self._converse(lane, job, self._decoder, most_bytes, allowed_s)
        if isinstance(answer, Failed):
            raise SiteFailure(answer.cause)
        if not isinstance(answer, job.task.answered_by):
            lane.end(Cause(code=CauseCode.PROGRAM_DIED, detail="it spoke out of turn"))
            raise SiteFailure(self._verdict(lane))
        return Reply(answer, blobs)

    def _converse(
        self,
        lane: _Lane,
        job: _Job | None,
        decoder: msgspec.msgpack.Decoder[Any],
        most_bytes: int,
        allowed_s: float,
    ) -> tuple[Any, list[bytes]]:
        assert lane.connection  # noqa: S101 - there is a worker
        lane.due = time.monotonic() + allowed_s
        try:
            if job:
                send_frame(lane.connection, job.task, job.blobs)
            return receive_frame(lane.connection, decoder, most_bytes)
        except FrameTooLarge as error:
            lane.end(Cause(code=CauseCode.PROGRAM_OUTPUT_TOO_LARGE, detail=str(error)))
            raise _Lost(self._verdict(lane), from_outside=False) from error
        except (FrameError, OSError) as error:
            raise self._post_mortem(lane, str(error)) from error
        finally:
            with lane.lock:
                lane.due = None

    def _post_mortem(self, lane: _Lane, symptom: str) -> _Lost:
        """Find out why a worker no longer answers."""
        assert lane.process  # noqa: S101 - there was a worker
        try:
            status = lane.process.wait(timeout=1.0)
            symptom = f"signal {-status}" if status < 0 else f"exit status {status}"
        except subprocess.TimeoutExpired:
            status = 0
        lane.end(Cause(code=CauseCode.PROGRAM_DIED, detail=f"the worker ended: {symptom}"))
        is_ours = self._verdict(lane).code is not CauseCode.PROGRAM_DIED
        return _Lost(self._verdict(lane), from_outside=not is_ours and status in _OUTSIDE_SIGNALS)

    @staticmethod
    def _verdict(lane: _Lane) -> Cause:
        assert lane.verdict  # noqa: S101 - it was ended for a reason
        return lane.verdict

    def _watch(self) -> None:
        """Body of the watchdog's thread."""
        most_kb = self.limits.memory_mb << 10
        while not self._closing.wait(WATCH_S):
            for lane in self._lanes:
                process, due, job = lane.process, lane.due, lane.job
                if not process or lane.verdict:
                    continue
                if due is not None and time.monotonic() > due:
                    clock = job.task.clock if job else "import_s"
                    detail = f"not done within limits.{clock} = {getattr(self.limits, clock):g} s"
                    lane.end(Cause(code=CauseCode.PROGRAM_HUNG, detail=detail))
                elif len(pids := list(islice(family(process.pid), MOST_PROCESSES + 2))) > (
                    MOST_PROCESSES + 1
                ):
                    detail = f"it started more than {MOST_PROCESSES} processes"
                    lane.end(Cause(code=CauseCode.PROGRAM_DIED, detail=detail))
                elif (used_kb := sum(map(resident_kb, pids))) > most_kb:
                    detail = f"{used_kb >> 10} MiB, of limits.memory_mb = {most_kb >> 10}"
                    lane.end(Cause(code=CauseCode.PROGRAM_OUT_OF_MEMORY, detail=detail))
                elif due is not None and process.poll() is not None:
                    lane.end(None)  # a grandchild may hold the connection open


def environment(folder: Path) -> dict[str, str]:
    """All that a worker gets to see of the environment."""
    return scrubbed(os.environ, home=folder, tmp=folder) | {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "JOBLIB_MULTIPROCESSING": "0",
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def family(pid: int) -> Iterator[int]:
    """A process and what descends from it, whichever thread started it, parents first."""
    waiting = deque([pid])
    while waiting:
        yield (pid := waiting.popleft())
        with contextlib.suppress(OSError):  # it is gone
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting.extend(map(int, (task / "children").read_text().split()))


def resident_kb(pid: int) -> int:
    """Resident memory of a process in KiB; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * (_PAGE_BYTES >> 10)
