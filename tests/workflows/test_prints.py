"""What programs print in a shard, on its way to the server."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from workflows.frames import FrameError, receive_frame
from workflows.prints import MOST_BYTES, MOST_LINES, passed_on
from workflows.shard_words import Prints, Said

_words = msgspec.msgpack.Decoder(Prints | Said)


class Hearer:
    """A server, or its absence."""

    def __init__(self) -> None:
        self.is_there = True
        self.num_refused = 0
        self.heard: list[list[Any]] = []
        self._threads: list[threading.Thread] = []

    def dial(self) -> Any:
        if not self.is_there:
            self.num_refused += 1
            raise ConnectionRefusedError
        ours, theirs = socket.socketpair()
        self._last = theirs
        self.heard.append([])
        self._threads.append(threading.Thread(target=self._hear, args=(ours, self.heard[-1])))
        self._threads[-1].start()
        return theirs

    def vanish(self) -> None:
        """Break the connection."""
        self._last.shutdown(socket.SHUT_RDWR)

    def _hear(self, connection: socket.socket, heard: list[Any]) -> None:
        with connection, suppress(FrameError, OSError):
            while True:
                heard.append(receive_frame(connection, _words, 0)[0])

    def lines(self) -> list[str]:
        for thread in self._threads:
            thread.join(10)
        return [said.line for heard in self.heard for said in heard[1:]]


def until(condition: Callable[[], object]) -> None:
    ends = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.005)


def test_each_line_goes_to_stdout_and_to_the_server(capfdbinary: Any) -> None:
    server = Hearer()

    with passed_on(server.dial, 3) as log:
        os.write(log, b"one\ntwo, \xff\n")
        os.write(log, b"without an end")

    assert server.lines() == ["one", "two, \ufffd", "without an end"]
    assert server.heard[0][0] == Prints(shard=3)
    assert capfdbinary.readouterr().out == b"one\ntwo, \xff\nwithout an end"


def test_nothing_is_dialled_for_a_program_that_says_nothing() -> None:
    server = Hearer()

    with passed_on(server.dial, 1):
        pass

    assert server.heard == []


def test_a_long_line_is_told_as_several() -> None:
    server = Hearer()

    with passed_on(server.dial, 1) as log:
        os.write(log, b"x" * (2 * MOST_BYTES + 1))

    assert [len(line) for line in server.lines()] == [MOST_BYTES, MOST_BYTES, 1]


def test_who_prints_waits_for_no_server(capfd: pytest.CaptureFixture[str]) -> None:
    server = Hearer()
    server.is_there = False
    lines = 4 * MOST_LINES

    with passed_on(server.dial, 1) as log:
        for _ in range(lines):
            os.write(log, b"x" * 100 + b"\n")

    assert capfd.readouterr().out.count("\n") == lines


def test_a_server_that_comes_back_hears_what_is_said_from_then_on() -> None:
    server = Hearer()

    with passed_on(server.dial, 1) as log:
        server.is_there = False
        os.write(log, b"lost\n")
        until(lambda: server.num_refused)
        server.is_there = True
        os.write(log, b"heard\n")
        until(lambda: server.heard and len(server.heard[0]) == 2)

    assert server.lines() == ["heard"]


def test_a_connection_that_breaks_is_followed_by_another() -> None:
    server = Hearer()

    with passed_on(server.dial, 1) as log:
        os.write(log, b"heard\n")
        until(lambda: server.heard and len(server.heard[0]) == 2)
        server.vanish()
        os.write(log, b"lost\n")
        os.write(log, b"heard again\n")
        until(lambda: len(server.heard) == 2 and len(server.heard[1]) == 2)

    assert server.lines() == ["heard", "heard again"]
