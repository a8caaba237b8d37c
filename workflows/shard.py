"""A shard's own process: workers of a machine that take their tasks from a server step elsewhere.

``python -P -m workflows.shard FOLDER --server HOST:PORT --shard NUMBER``, with its end of the link
(``workflows.link``) in a folder that is handed over, or on standard input. It holds no other secret
and knows no control plane: plan, program and data come from the server, by the digests in the plan,
and are what ``workflows.simulation`` makes workers of. These are confined as those beside a server
are, and what they do to each other or to themselves is dealt with here; the server sees answers.

Exit codes: 0 dismissed, or nothing that could be opened, of which the server knows; ``UNSERVED`` no
server came, or none came back. After any other a new start may help.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import socket
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Any, Final

import msgspec

from sharing.object_store import digest_of_file
from workflows.causes import Cause, CauseCode
from workflows.confinement import die_with, hide_memory
from workflows.frames import FrameError, arrays_from, receive_frame, send_frame
from workflows.link import GREETING_S, LINK, Link, cut, is_readable, notice_silence, shard_tls
from workflows.model_file import ModelRef
from workflows.plan import RESUMPTION, Plan
from workflows.pool import Pool
from workflows.prints import passed_on
from workflows.run_directory import RunDirectory, is_laid, take
from workflows.run_folder import DONE, FAILED, StepError, StepFolder
from workflows.shard_words import (
    PIECE_BYTES,
    UNSERVED,
    Arrival,
    Brief,
    Dealt,
    Dismissed,
    Lay,
    Line,
    Piece,
    Ready,
    Wanted,
    WordOfServer,
    most_dealt_bytes,
)
from workflows.simulation import simulate
from workflows.tasks import Answer, Done, Failed, Measure, SiteFailure, Task, Train, TrainMany

JOIN_S: Final = 600.0
"""Longest wait for a server that is yet to start, and for each of its inputs."""
REJOIN_S: Final = 30.0
"""Longest wait for one that was there."""
_REDIAL_S: Final = 0.5
_LOOK_S: Final = 0.2
_PAUSE_S: Final = 0.02
_FOR_THE_SERVER: Final = RESUMPTION | {"init.safetensors"}

_words: Final = msgspec.msgpack.Decoder(WordOfServer)
_dealt: Final = msgspec.msgpack.Decoder(Dealt)


class Unserved(Exception):
    """There is no server, for longer than is waited for one."""


class Lost(Exception):
    """The connection to the server broke."""


class _Dismissed(Exception):
    """The server needs this shard no more."""


class Server:
    """The server step, as it can be reached.

    Args:
        host: Name or address.
        port: Of TCP.
        link: This end of the link.
    """

    def __init__(self, host: str, port: int, link: Link) -> None:
        self._address = (host, port)
        self._tls = shard_tls(link)

    def dial(self) -> ssl.SSLSocket:
        """Connect once.

        Raises:
            OSError: It is not there, or is not the one.
        """
        plain = socket.create_connection(self._address, timeout=GREETING_S)
        try:
            notice_silence(plain)
            connection = self._tls.wrap_socket(plain)
        except BaseException:
            plain.close()
            raise
        connection.settimeout(None)
        return connection

    def find(self, patience_s: float) -> ssl.SSLSocket:
        """Connect as soon as it is there.

        Where a server has a name, that is there before it and goes when no server will come.

        Raises:
            Unserved: It was not there for ``patience_s`` seconds, or has no name.
        """
        began = time.monotonic()
        ends = began + patience_s
        named = began
        while True:
            try:
                return self.dial()
            except socket.gaierror:
                ends = min(ends, named + REJOIN_S)
            except OSError:
                named, ends = time.monotonic(), began + patience_s
            if time.monotonic() > ends:
                raise Unserved
            time.sleep(_REDIAL_S)


class Shard:
    """Workers that were opened for one plan, and outlive the connections to its server.

    Attributes:
        plan: What they were opened for.
        ready: What the server is told of them.
    """

    def __init__(self, plan: Plan, pool: Pool[Any], ready: Ready) -> None:
        """Take over a pool that is open."""
        self.plan = plan
        self.ready = ready
        self._pool = pool
        self._model: tuple[int, ModelRef] | None = None

    def serve(self, server: Server, control: ssl.SSLSocket, session: str) -> None:
        """Do tasks, on a line for each worker.

        Raises:
            _Dismissed: The server has no more.
            Lost: The server is lost.
        """
        self._model = None
        over = threading.Event()
        lines = [
            threading.Thread(target=self._keep_line, args=(server, control, session, over))
            for _ in range(self.ready.num_workers)
        ]
        for line in lines:
            line.start()
        try:
            _hear(control)  # a dismissal, as nothing else can come
            raise Lost
        finally:
            over.set()
            for line in lines:
                line.join()

    def _keep_line(
        self, server: Server, control: ssl.SSLSocket, session: str, over: threading.Event
    ) -> None:
        """Body of a line's thread: one connection after the other, as the server ends them."""
        try:
            while not over.is_set():
                with server.dial() as connection:
                    send_frame(connection, Line(session=session))
                    with contextlib.suppress(Lost):
                        self._do_tasks(connection, over)
                over.wait(_PAUSE_S)
        except OSError:
            cut(control)  # the server does not take it: all connect anew
        except BaseException:  # noqa: BLE001 - a bug; who started the shard starts it anew
            traceback.print_exc()
            os._exit(1)

    def _do_tasks(self, connection: ssl.SSLSocket, over: threading.Event) -> None:
        most_bytes = most_dealt_bytes(self.plan.spec.limits)
        while _is_spoken_to(connection, over):
            try:
                task, blobs = receive_frame(connection, _dealt, most_bytes)
            except (FrameError, OSError) as error:
                raise Lost from error
            if isinstance(task, Lay):
                ref = self._pool.broadcast(arrays_from(task.arrays, blobs))
                self._model = (task.version, ref)
                _say(connection, Done())
            else:
                _say(connection, *self._answer(connection, self._located(task), blobs))

    def _located(self, task: Any) -> Any:  # noqa: ANN401 - one of Dealt
        """The task, with the model where it lies here.

        Raises:
            Lost: It is of another model than the last that was sent.
        """
        if not isinstance(task, Train | TrainMany | Measure):
            return task
        if self._model is None or self._model[0] != task.model.version:
            raise Lost("a task of a model that did not come")
        return msgspec.structs.replace(task, model=self._model[1])

    def _answer(
        self, connection: ssl.SSLSocket, task: Task, blobs: Sequence[bytes]
    ) -> tuple[Answer, Sequence[bytes]]:
        """What a worker makes of a task.

        Raises:
            Lost: The server gave the task up; so does the worker, which is replaced.
        """
        future = self._pool.call(task, blobs)
        while not wait((future,), timeout=_LOOK_S).done:
            if is_readable(connection, 0):
                self._pool.give_up((future,))
                raise Lost
        try:
            reply = future.result()
        except SiteFailure as failure:
            return Failed(cause=failure.cause), ()
        return reply.answer, reply.blobs


def attend(
    server: Server, number: int, root: Path, patience_s: float, log: int | None = None
) -> None:
    """Serve as the shard of this number until dismissed, however often the server is lost.

    Args:
        server: Whom.
        number: From 1.
        root: Scratch; emptied first.
        patience_s: How long to look for the server at first.
        log: File that programs print to; None for what this process prints to.

    Raises:
        Unserved: There is no server.
    """
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    shard: Shard | None = None
    with contextlib.ExitStack() as opened, contextlib.suppress(_Dismissed):
        while True:
            with contextlib.suppress(Lost), server.find(patience_s) as control:
                session = secrets.token_hex(16)
                control.settimeout(JOIN_S)
                _say(control, Arrival(shard=number, session=session))
                brief, _ = _hear(control)
                if not isinstance(brief, Brief) or (shard and shard.plan != brief.plan):
                    raise Lost("no plan came, or another one")
                try:
                    shard = shard or _open(opened, control, brief.plan, root, log)
                except (StepError, SiteFailure) as error:
                    _say(control, Failed(cause=error.cause))
                    return
                _say(control, shard.ready)
                control.settimeout(None)
                shard.serve(server, control, session)
            patience_s = REJOIN_S


def _open(
    opened: contextlib.ExitStack, control: ssl.SSLSocket, plan: Plan, root: Path, log: int | None
) -> Shard:
    """Fetch what the plan names, and open it in workers.

    Raises:
        StepError: An input is not what the plan names, or unusable.
        SiteFailure: The program or the data could not be opened.
        Lost: The server is.
    """
    files = RunDirectory(root)
    for folder in (files.inputs, files.home, files.tmp):
        folder.mkdir()
    for name, digest in plan.inputs.items():
        if name not in _FOR_THE_SERVER:
            _fetch(control, name, files.inputs / name)
            if digest_of_file(files.inputs / name) != digest:
                detail = f"{name} came to a shard with other bytes"
                raise StepError(Cause(code=CauseCode.INPUT_MISSING, detail=detail))
    files.job.write_bytes(msgspec.json.encode(plan))
    simulation = opened.enter_context(simulate(StepFolder(root, "federate"), log=log))
    ready = Ready(
        facts=simulation.facts,
        prepared=simulation.prepared,
        num_workers=simulation.pool.num_workers,
    )
    return Shard(plan, simulation.pool, ready)


def _fetch(control: ssl.SSLSocket, name: str, path: Path) -> None:
    _say(control, Wanted(name=name))
    with path.open("wb") as file:
        while True:
            piece, blobs = _hear(control)
            if not isinstance(piece, Piece):
                raise Lost("something else came than the input")
            for blob in blobs:
                file.write(blob)
            if piece.is_last:
                return


def _say(connection: ssl.SSLSocket, word: object, blobs: Sequence[bytes] = ()) -> None:
    try:
        send_frame(connection, word, blobs)
    except OSError as error:
        raise Lost from error


def _hear(control: ssl.SSLSocket) -> tuple[Any, list[bytes]]:
    try:
        word, blobs = receive_frame(control, _words, PIECE_BYTES)
    except (FrameError, OSError) as error:
        raise Lost from error
    if isinstance(word, Dismissed):
        raise _Dismissed
    return word, blobs


def _is_spoken_to(connection: ssl.SSLSocket, over: threading.Event) -> bool:
    """Wait until something comes; False once the session is over."""
    while not over.is_set():
        if is_readable(connection, _LOOK_S):
            return True
    return False


def main(arguments: Sequence[str]) -> int:
    """Entry of the process."""
    parser = argparse.ArgumentParser(prog="python -m workflows.shard")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument("--shard", type=int, required=True, help="its number, from 1")
    parser.add_argument("--handover", type=Path, help=f"folder with {LINK}; else standard input")
    parser.add_argument("--starts", type=int, default=0, help="times that it was started before")
    parser.add_argument("--parent", type=int, help="process to end with")
    given = parser.parse_args(arguments)
    if given.parent is not None:
        die_with(given.parent)
    hide_memory()
    if given.handover and not is_laid(given.handover):
        print("nothing was handed over", file=sys.stderr)  # noqa: T201
        return FAILED
    secret = take(given.handover, LINK) if given.handover else sys.stdin.buffer.read()
    host, _, port = given.server.rpartition(":")
    server = Server(host, int(port), msgspec.json.decode(secret, type=Link))
    root = given.folder.resolve() / f"shard-{given.shard}"
    patience_s = REJOIN_S if given.starts else JOIN_S
    try:
        with contextlib.ExitStack() as stack:
            log = None  # beside the server step, what it prints is in that step's log
            if given.parent is None:
                log = stack.enter_context(passed_on(server.dial, given.shard))
            attend(server, given.shard, root, patience_s, log)
    except Unserved:
        print("there is no server step any more", file=sys.stderr)  # noqa: T201
        return UNSERVED
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
