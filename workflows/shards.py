"""The server's side of simulation shards: a pool whose workers are on other machines.

Shards connect to the server step (``workflows.link``), are told the plan and given the inputs that
it names, and then do tasks, as the worker processes of one machine do: runs of sites are dealt to
whoever is free, and what comes back are sums in the exact ring, so neither the number of shards nor
which of them did what shows in the result. What a lost shard had at hand is dealt to another.
No code of a program runs in the server's process, nor beside it.

The rounds begin with the first shard and go on while there is one. While there is none they wait
``ALONE_S`` seconds for one to come back; then the attempt ends, and the next one goes on from the
checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import msgspec
import numpy as np

from workflows.causes import Cause, CauseCode
from workflows.frames import Blob, FrameError, describe, receive_frame, send_frame
from workflows.job import Analysis
from workflows.link import (
    GREETING_S,
    PORT,
    Link,
    cut,
    is_readable,
    make_links,
    notice_silence,
    server_tls,
)
from workflows.model_file import ModelRef
from workflows.plan import RESUMPTION, Plan
from workflows.pool import Pool, T
from workflows.processes import scrubbed
from workflows.run_folder import DONE, StepError, StepFolder
from workflows.shard import JOIN_S
from workflows.shard_words import (
    PIECE_BYTES,
    UNSERVED,
    Arrival,
    Brief,
    Dismissed,
    FirstWord,
    Lay,
    Line,
    Piece,
    Prints,
    Ready,
    Said,
    Wanted,
    WordOfShard,
)
from workflows.simulation import Simulation, lay_program, simulation_of
from workflows.tasks import (
    AnyAnswer,
    Done,
    Failed,
    Measure,
    Reply,
    SiteFailure,
    Task,
    Train,
    TrainMany,
)
from workflows.workers import START_S

ALONE_S: Final = 120.0
"""Longest wait for a shard when the last one was lost."""
RESTARTS: Final = 3
"""Of a shard that is a process of this machine."""
_MOST_GREETINGS: Final = 64
"""Peers at a time that have not proved who they are."""
_LOOK_S: Final = 0.2
_LEAVE_S: Final = 5.0

_first: Final = msgspec.msgpack.Decoder(FirstWord)
_words: Final = msgspec.msgpack.Decoder(WordOfShard)
_said: Final = msgspec.msgpack.Decoder(Said)
_answers: Final = msgspec.msgpack.Decoder(AnyAnswer)


@dataclass(slots=True, eq=False)
class _Job:
    """A task on its way.

    Attributes:
        line: Connection it is at.
        is_taken: Whether a shard had it before.
        is_given_up: Whether nobody waits for it.
    """

    task: Task
    blobs: Sequence[Blob]
    future: Future[Reply]
    line: ssl.SSLSocket | None = None
    is_taken: bool = False
    is_given_up: bool = False


@dataclass(slots=True, eq=False)
class _Shard:
    """A shard that takes tasks.

    Attributes:
        number: From 1.
        ready: What it told of itself.
        lines: Connections on which it takes them.
        version: Of the model that it has; 0 before the first.
        laying: Held while it is sent one.
    """

    number: int
    ready: Ready
    lines: set[ssl.SSLSocket] = field(default_factory=set)
    version: int = 0
    laying: threading.Lock = field(default_factory=threading.Lock)


class _Closing(Exception):
    """The pool is."""


class ShardPool(Pool[T]):
    """Workers of shards. Use it as a context manager: leaving it dismisses them."""

    def __init__(self, plan: Plan, inputs: Path, link: Link, listener: socket.socket) -> None:
        """Prepare a pool; nobody is met yet.

        Args:
            plan: What shards are part of.
            inputs: Folder of what they may fetch.
            link: This end of the link to them.
            listener: Where they connect.
        """
        self._plan = plan
        self._inputs = inputs
        self._tls = server_tls(link)
        self._listener = listener
        self._greetings = threading.BoundedSemaphore(_MOST_GREETINGS)
        self._threads: set[threading.Thread] = set()
        self._jobs: deque[_Job] = deque()
        self._at_work: set[_Job] = set()
        self._wake = threading.Condition()
        self._closing = threading.Event()
        self._shards: dict[str, _Shard] = {}
        self._opened: Future[Ready] = Future()
        self._failure: Exception | None = None
        self._alone_until = 0.0
        self._model: tuple[Mapping[str, np.ndarray], ModelRef] | None = None

    def __enter__(self) -> ShardPool[T]:
        self._alone_until = time.monotonic() + JOIN_S
        self._listener.settimeout(_LOOK_S)
        self._start(self._listen)
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
            lines = [line for shard in self._shards.values() for line in shard.lines]
            jobs, threads = [*self._jobs, *self._at_work], tuple(self._threads)
        for job in jobs:
            job.is_given_up = True
            job.future.cancel()
        for line in lines:
            cut(line)
        for thread in threads:
            thread.join(GREETING_S)

    @property
    def num_workers(self) -> int:
        with self._wake:
            return max(1, sum(shard.ready.num_workers for shard in self._shards.values()))

    def opened(self) -> Ready:
        """What the first shard tells of program and data, once it is there.

        Raises:
            StepError: None came, or the inputs are of no use to it.
            SiteFailure: It could not open the program or the data.
        """
        return self._opened.result()

    def call(self, task: Task, blobs: Sequence[Blob] = ()) -> Future[Reply]:
        job = _Job(task, blobs, Future())
        with self._wake:
            if self._failure:
                job.future.set_exception(self._failure)
            else:
                self._jobs.append(job)
                self._wake.notify()
        return job.future

    def broadcast(self, params: Mapping[str, np.ndarray]) -> ModelRef:
        """See there; each shard is sent the model with the first task of it."""
        if not self._model or self._model[0] is not params:
            version = self._model[1].version + 1 if self._model else 1
            self._model = (params, ModelRef("", version, describe(params)[0]))
        return self._model[1]

    def give_up(self, pending: Iterable[Future[Reply]]) -> None:
        """See there.

        Raises:
            StepError: There is no shard, so that it is not for the sites to answer.
        """
        given_up = set(pending)
        with self._wake:
            is_alone = not self._shards
            for job in [*self._jobs, *self._at_work]:
                if job.future in given_up:
                    job.is_given_up = True
                    if job.line:
                        cut(job.line)
            self._jobs = deque(job for job in self._jobs if not job.is_given_up)
        if given_up and is_alone:
            raise self._failure or _alone("when the round's time was over")

    def _start(self, work: Any, *arguments: Any) -> None:  # noqa: ANN401 - a thread's
        def body() -> None:
            try:
                work(*arguments)
            finally:
                with self._wake:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=body, name="shards", daemon=True)
        with self._wake:
            self._threads.add(thread)
        thread.start()

    def _listen(self) -> None:
        """Body of the listening thread, which also sees when nobody is there for too long."""
        while not self._closing.is_set():
            with self._wake:
                is_late = not self._shards and time.monotonic() > self._alone_until
            if is_late:
                after_s = ALONE_S if self._opened.done() else JOIN_S
                self.fail(_alone(f"for {after_s:g} s"))
            try:
                plain, _ = self._listener.accept()
            except TimeoutError:
                continue
            if self._greetings.acquire(blocking=False):
                self._start(self._meet, plain)
            else:
                plain.close()

    def _meet(self, plain: socket.socket) -> None:
        """Body of a connection's thread: find out who it is, and go on as that one wants."""
        with contextlib.suppress(FrameError, OSError, _Closing), plain:
            try:
                plain.settimeout(GREETING_S)
                notice_silence(plain)
                connection = self._tls.wrap_socket(plain, server_side=True)
            except BaseException:
                self._greetings.release()
                raise
            with connection:
                try:
                    word, _ = receive_frame(connection, _first, 0)
                finally:
                    self._greetings.release()
                match word:
                    case Arrival():
                        self._attend(connection, word)
                    case Line(session=session):
                        self._work(connection, session)
                    case Prints(shard=number):
                        self._pass_on(connection, number)

    def _attend(self, control: ssl.SSLSocket, arrival: Arrival) -> None:
        """Have a shard open the plan, and keep it in mind until it leaves.

        Raises:
            FrameError: It did, or says what it must not.
            OSError: It is lost.
            _Closing: It was dismissed.
        """
        limits = self._plan.spec.limits
        control.settimeout(2 * (START_S + limits.import_s + limits.train_s) + JOIN_S)
        send_frame(control, Brief(plan=self._plan))
        word = self._hear(control)
        while isinstance(word, Wanted):
            self._send_input(control, word.name)
            word = self._hear(control)
        if isinstance(word, Failed):
            self._miss(arrival.shard, word.cause)
            return
        self._require_alike(arrival.shard, word)
        _log(f"shard {arrival.shard} is there, with {word.num_workers} workers")
        shard = _Shard(arrival.shard, word)
        with self._wake:
            self._shards[arrival.session] = shard
            if not self._opened.done():
                self._opened.set_result(word)
        try:
            self._hear(control)
        finally:
            with self._wake:
                del self._shards[arrival.session]
                self._alone_until = time.monotonic() + ALONE_S
                for line in shard.lines:
                    cut(line)
                self._wake.notify_all()
            if not self._closing.is_set():
                _log(f"shard {arrival.shard} was lost")

    def _hear(self, control: ssl.SSLSocket) -> Any:  # noqa: ANN401 - one of WordOfShard
        """The shard's next word; meanwhile it is dismissed if the pool closes.

        Raises:
            FrameError: It is gone.
            OSError: It is lost, or too slow.
            _Closing: It was dismissed.
        """
        timeout_s = control.gettimeout()
        ends = None if timeout_s is None else time.monotonic() + timeout_s
        while not is_readable(control, _LOOK_S):
            if self._closing.is_set():
                send_frame(control, Dismissed())
                raise _Closing
            if ends is not None and time.monotonic() > ends:
                raise TimeoutError("the shard says nothing")
        word, _ = receive_frame(control, _words, 0)
        return word

    def _send_input(self, control: ssl.SSLSocket, name: str) -> None:
        if name not in self._plan.inputs or name in RESUMPTION:
            raise FrameError("it asks for what is no input of the sites")
        with (self._inputs / name).open("rb") as file:
            content = file.read(PIECE_BYTES)
            while True:
                following = file.read(PIECE_BYTES)
                send_frame(control, Piece(is_last=not following), (content,))
                if not following:
                    return
                content = following

    def _pass_on(self, prints: ssl.SSLSocket, number: int) -> None:
        """Log what programs print in a shard; at the end, what has come by then.

        Raises:
            FrameError: The shard is gone.
            OSError: It is lost.
        """
        prints.settimeout(GREETING_S)
        while True:
            if is_readable(prints, _LOOK_S):
                said, _ = receive_frame(prints, _said, 0)
                _log(f"shard {number}: {said.line}")
            elif self._closing.is_set():
                return

    def _miss(self, number: int, cause: Cause) -> None:
        """A shard could not open the plan: the step's failure, unless others could."""
        _log(f"shard {number} is of no use: {cause.code}: {cause.detail}")
        with self._wake:
            if not self._opened.done():
                self.fail(SiteFailure(cause))

    def _require_alike(self, number: int, ready: Ready) -> None:
        """Go on with a shard only if it opened what the first one did.

        Raises:
            FrameError: It did not; the step fails.
        """
        if not self._opened.done() or _opened_by(self._opened.result()) == _opened_by(ready):
            return
        detail = f"shard {number} opened another program or other data than the first one"
        self.fail(StepError(Cause(code=CauseCode.PLATFORM_BUG, detail=detail)))
        raise FrameError(detail)

    def fail(self, failure: Exception) -> None:
        """Tell whoever waits for an answer; the first failure stands."""
        with self._wake:
            if self._failure:
                return
            self._failure = failure
            waiting, self._jobs = self._jobs, deque()
            if not self._opened.done():
                self._opened.set_exception(failure)
        for job in waiting:
            if job.is_taken or job.future.set_running_or_notify_cancel():
                job.future.set_exception(failure)

    def _work(self, line: ssl.SSLSocket, session: str) -> None:
        """Deal tasks to one worker of a shard until that is gone."""
        with self._wake:
            shard = self._shards.get(session)
            if shard is None:
                return
            shard.lines.add(line)
        try:
            while (job := self._next(line, session)) is not None:
                self._deal(shard, line, job)
        finally:
            with self._wake:
                shard.lines.discard(line)

    def _next(self, line: ssl.SSLSocket, session: str) -> _Job | None:
        with self._wake:
            while not self._closing.is_set() and session in self._shards:
                while self._jobs:
                    job = self._jobs.popleft()
                    if job.is_taken or job.future.set_running_or_notify_cancel():
                        job.is_taken, job.line = True, line
                        self._at_work.add(job)
                        return job
                self._wake.wait()
        return None

    def _deal(self, shard: _Shard, line: ssl.SSLSocket, job: _Job) -> None:
        """Have one task done; if the shard is lost with it, it waits for another one.

        Raises:
            FrameError: The shard is lost.
            OSError: It is.
        """
        try:
            reply = self._exchange(shard, line, job)
        except SiteFailure as failure:
            self._lay_down(job)
            job.future.set_exception(failure)
        except (FrameError, OSError):
            self._lay_down(job)
            with self._wake:
                if self._failure:
                    job.future.set_exception(self._failure)
                elif not job.is_given_up:
                    self._jobs.appendleft(job)
                    self._wake.notify()
            raise
        else:
            self._lay_down(job)
            job.future.set_result(reply)

    def _lay_down(self, job: _Job) -> None:
        with self._wake:
            job.line = None
            self._at_work.discard(job)

    def _exchange(self, shard: _Shard, line: ssl.SSLSocket, job: _Job) -> Reply:
        """Have a task done.

        Raises:
            SiteFailure: It failed by the program's doing.
            FrameError: The shard is gone, or says what it must not.
            OSError: It is lost, or does not answer.
        """
        limits, task = self._plan.spec.limits, job.task
        # A worker is tried twice, and started anew for it; whatever takes longer is no answer.
        line.settimeout(2 * (START_S + 3 * limits.import_s + 2 * limits.train_s))
        if isinstance(task, Train | TrainMany | Measure):
            self._lay(shard, line, task.model)
        send_frame(line, task, job.blobs)
        answer, blobs = receive_frame(line, _answers, limits.output_mb << 20)
        if isinstance(answer, Failed):
            raise SiteFailure(answer.cause)
        if not isinstance(answer, task.answered_by):
            raise FrameError("it spoke out of turn")
        return Reply(answer, blobs)

    def _lay(self, shard: _Shard, line: ssl.SSLSocket, model: ModelRef) -> None:
        """Send the model of a task, unless the shard has it."""
        with shard.laying:
            if shard.version == model.version:
                return
            if not self._model or self._model[1].version != model.version:
                detail = "a task of a model that is no more"
                raise SiteFailure(Cause(code=CauseCode.PLATFORM_BUG, detail=detail))
            arrays, blobs = describe(self._model[0])
            send_frame(line, Lay(version=model.version, arrays=arrays), blobs)
            done, _ = receive_frame(line, _answers, 0)
            if not isinstance(done, Done):
                raise FrameError("it spoke out of turn")
            shard.version = model.version


@contextlib.contextmanager
def simulate_on_shards(folder: StepFolder, source: IO[bytes]) -> Iterator[Simulation]:
    """Have shards lay out program and data, and deal the sites to them.

    Args:
        folder: Of the step.
        source: Holds this end of the link where an engine starts the shards; where it is empty,
            they are processes of this machine.

    Raises:
        StepError: An input is missing or unusable, or no shard came.
        SiteFailure: The program or the data could not be opened.
    """
    plan = folder.plan
    manifest = None if isinstance(plan.spec.program, Analysis) else lay_program(folder)[1]
    secret = source.read()
    with contextlib.ExitStack() as stack:
        if secret:
            link = msgspec.json.decode(secret, type=Link)
            listener = stack.enter_context(_listen_everywhere())
        else:
            link, theirs = make_links()
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        pool: ShardPool[Any] = ShardPool(plan, folder.files.inputs, link, listener)
        if not secret:
            port = listener.getsockname()[1]
            stack.enter_context(_processes(folder, theirs, port, pool.fail))
        stack.enter_context(pool)
        ready = pool.opened()
        yield simulation_of(ready.prepared, ready.facts, manifest, pool)


def _listen_everywhere() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", PORT))


@contextlib.contextmanager
def _processes(
    folder: StepFolder, link: Link, port: int, fail: Callable[[Exception], None]
) -> Iterator[None]:
    """Shards that are processes of this machine, and started anew if they die."""
    closing = threading.Event()
    running: dict[int, subprocess.Popen[bytes]] = {}
    kept = set(range(1, folder.plan.spec.runtime.shards + 1))

    def keep(number: int) -> None:
        """Body of a shard's thread, to whose life its process is bound (PR_SET_PDEATHSIG)."""
        for _ in range(1 + RESTARTS):
            if closing.is_set():
                return
            process = running[number] = _spawn(folder, number, link, port)
            if process.wait() in (DONE, UNSERVED):
                return
        kept.discard(number)
        if not kept:
            fail(_alone(f"any more: each ended {1 + RESTARTS} times"))

    keepers = [
        threading.Thread(target=keep, args=(number,), name=f"shard-{number}", daemon=True)
        for number in sorted(kept)
    ]
    for keeper in keepers:
        keeper.start()
    try:
        yield
    finally:
        closing.set()
        ends = time.monotonic() + _LEAVE_S
        for keeper in keepers:
            keeper.join(max(0.0, ends - time.monotonic()))
        for process in running.values():
            process.kill()
        for keeper in keepers:
            keeper.join()


def _spawn(folder: StepFolder, number: int, link: Link, port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "workflows.shard", str(folder.scratch("shards"))),
            *("--server", f"127.0.0.1:{port}", "--shard", str(number)),
            *("--parent", str(os.getpid())),
        ],
        env=scrubbed(os.environ, home=folder.files.home, tmp=folder.files.tmp),
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin  # noqa: S101 - a pipe was asked for
    with contextlib.suppress(BrokenPipeError), process.stdin as sink:
        sink.write(msgspec.json.encode(link))
    return process


def _opened_by(ready: Ready) -> tuple[object, object]:
    """What all shards must agree on; how long they took to get there is their own affair."""
    return msgspec.structs.replace(ready.facts, import_s=0.0), ready.prepared


def _alone(when: str) -> StepError:
    detail = f"no shard was there {when}"
    return StepError(Cause(code=CauseCode.ATTEMPT_LOST, detail=detail))


def _log(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201
