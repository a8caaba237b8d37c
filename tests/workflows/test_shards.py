"""The server's side of shards, against shards that the test plays, over the real link."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.runtimes.run_folders import job, planned
from workflows import shards
from workflows.capabilities import ProgramFacts
from workflows.causes import Cause, CauseCode
from workflows.frames import FrameError, receive_frame, send_frame
from workflows.link import Link, make_links, shard_tls
from workflows.plan import Plan
from workflows.pool import Pool
from workflows.run_folder import StepError
from workflows.shard_words import (
    Arrival,
    Brief,
    Dealt,
    Dismissed,
    Line,
    Piece,
    Prints,
    Ready,
    Said,
    Wanted,
    WordOfServer,
)
from workflows.shards import ShardPool
from workflows.tasks import Done, Failed, Initial, Measure, Measures, Prepared, Reply, SiteFailure

FACTS = ProgramFacts(framework="torch", parameters=())
PREPARED = Prepared(num_sites=5, num_examples=100, features=(64,), num_classes=10, central=0)
READY = Ready(facts=FACTS, prepared=PREPARED, num_workers=1)
INPUTS = {"dataset.npz": bytes(range(256)) * 40_000, "checkpoint.safetensors": b"of the server"}

_words = msgspec.msgpack.Decoder(WordOfServer)
_dealt = msgspec.msgpack.Decoder(Dealt)


class Played:
    """A shard, word by word."""

    def __init__(self, address: tuple[str, int], link: Link, number: int = 1) -> None:
        self._address, self._tls = address, shard_tls(link)
        self._connections: list[ssl.SSLSocket] = []
        self.session = f"session of {number} at {time.monotonic_ns()}"
        self.control = self._dial()
        send_frame(self.control, Arrival(shard=number, session=self.session))
        self.plan: Plan = self.hear(Brief).plan

    def _dial(self) -> ssl.SSLSocket:
        connection = self._tls.wrap_socket(socket.create_connection(self._address, timeout=10))
        self._connections.append(connection)
        return connection

    def stray(self) -> ssl.SSLSocket:
        """A line of no shard."""
        line = self._dial()
        send_frame(line, Line(session="somebody's"))
        return line

    def hear(self, kind: type) -> Any:
        word, blobs = receive_frame(self.control, _words, 1 << 23)
        assert isinstance(word, kind)
        return (word, blobs) if kind is Piece else word

    def line(self, ready: Ready = READY) -> ssl.SSLSocket:
        """Be ready, and take tasks."""
        send_frame(self.control, ready)
        time.sleep(0.05)  # until it is known to be
        line = self._dial()
        send_frame(line, Line(session=self.session))
        return line

    def say(self, *lines: str) -> None:
        """Pass on what a program prints."""
        prints = self._dial()
        send_frame(prints, Prints(shard=7))
        for line in lines:
            send_frame(prints, Said(line=line))

    def leave(self) -> None:
        for connection in self._connections:
            connection.close()


class Hall:
    """A pool, and the way in."""

    def __init__(self, pool: ShardPool[Any], address: tuple[str, int], link: Link) -> None:
        self.pool, self._address, self._link = pool, address, link
        self.played: list[Played] = []

    def play(self, number: int = 1) -> Played:
        self.played.append(Played(self._address, self._link, number))
        return self.played[-1]


@pytest.fixture
def hall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hall]:
    monkeypatch.setattr(shards, "ALONE_S", 0.5)
    for name, content in INPUTS.items():
        (tmp_path / name).write_bytes(content)
    ours, theirs = make_links()
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        ShardPool[Any](planned(job(), INPUTS), tmp_path, ours, listener) as pool,
    ):
        hall = Hall(pool, listener.getsockname(), theirs)
        yield hall
        for shard in hall.played:
            shard.leave()


def task_at(line: ssl.SSLSocket) -> Any:
    task, _ = receive_frame(line, _dealt, 1 << 20)
    return task


def measure(pool: Pool[Any], site: str) -> Measure:
    return Measure(site=site, model=pool.broadcast({}), metrics=())


def tell(line: ssl.SSLSocket, number: int) -> None:
    send_frame(line, Measures(values={}, num_examples=number))


def test_an_input_comes_in_pieces_and_nothing_else_of_the_server_does(hall: Hall) -> None:
    shard = hall.play()
    send_frame(shard.control, Wanted(name="dataset.npz"))
    content = b""
    while True:
        piece, blobs = shard.hear(Piece)
        content += b"".join(blobs)
        if piece.is_last:
            break

    assert content == INPUTS["dataset.npz"]
    for name in ("checkpoint.safetensors", "../job.json", "/etc/passwd"):
        asking = hall.play()
        send_frame(asking.control, Wanted(name=name))
        with pytest.raises((FrameError, OSError)):
            asking.hear(Piece)


def test_what_a_lost_shard_had_at_hand_is_dealt_to_another(hall: Hall) -> None:
    first, second = hall.play(1), hall.play(2)
    line = first.line()
    assert hall.pool.opened() == READY
    answer = hall.pool.call(Initial())
    assert isinstance(task_at(line), Initial)

    first.leave()
    other = second.line()

    assert isinstance(task_at(other), Initial)
    send_frame(other, Failed(cause=Cause(code=CauseCode.PROGRAM_RAISED)))
    with pytest.raises(SiteFailure, match="program-raised"):
        answer.result(10)


def test_a_model_is_sent_to_a_shard_once(hall: Hall) -> None:
    line = hall.play().line()
    hall.pool.opened()
    task = measure(hall.pool, "site-0")
    answers = [hall.pool.call(task) for _ in range(2)]

    kinds = []
    for number in (1, 2):
        while not isinstance(told := task_at(line), Measure):
            kinds.append(type(told).__name__)
            send_frame(line, Done())
        kinds.append(type(told).__name__)
        tell(line, number)

    assert kinds == ["Lay", "Measure", "Measure"]
    assert [answer.result(10).answer.num_examples for answer in answers] == [1, 2]


def test_a_task_whose_time_is_over_is_given_up_and_its_line_cut(hall: Hall) -> None:
    line = hall.play().line()
    hall.pool.opened()
    found: list[Any] = []
    tasks = [(Initial(), ())]

    def ask() -> None:
        found.extend(outcome for _, outcome in hall.pool.as_completed(tasks, 0.5))

    asking = threading.Thread(target=ask)
    asking.start()
    assert isinstance(task_at(line), Initial)
    asking.join()

    assert [one.cause.code for one in found] == [CauseCode.DEADLINE_PASSED]
    with pytest.raises((FrameError, OSError)):
        task_at(line)


def test_nobody_there_for_too_long_ends_the_attempt_and_no_site_is_blamed(hall: Hall) -> None:
    shard = hall.play()
    shard.line()
    hall.pool.opened()

    shard.leave()
    with pytest.raises(StepError, match=r"no shard was there for 0\.5 s") as caught:
        list(hall.pool.as_completed([(Initial(), ())], 30.0))

    assert caught.value.cause.code is CauseCode.ATTEMPT_LOST
    assert caught.value.cause.explanation.retryable


def test_a_round_that_ends_while_nobody_is_there_is_no_site_s_failure(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "ALONE_S", 60.0)
    shard = hall.play()
    shard.line()
    hall.pool.opened()

    shard.leave()
    time.sleep(0.5)
    with pytest.raises(StepError, match="when the round's time was over"):
        list(hall.pool.as_completed([(Initial(), ())], 0.2))


def test_a_shard_that_opened_other_data_ends_the_step(hall: Hall) -> None:
    hall.play(1).line()
    hall.pool.opened()
    slower = msgspec.structs.replace(READY, facts=msgspec.structs.replace(FACTS, import_s=3.0))
    hall.play(2).line(slower)
    other = msgspec.structs.replace(PREPARED, num_examples=101)
    send_frame(hall.play(3).control, msgspec.structs.replace(READY, prepared=other))

    time.sleep(0.3)
    with pytest.raises(StepError, match="shard 3 opened another program or other data"):
        hall.pool.call(Initial()).result(10)


def test_the_first_shard_s_trouble_with_the_program_is_the_step_s(hall: Hall) -> None:
    send_frame(hall.play().control, Failed(cause=Cause(code=CauseCode.PROGRAM_IMPORT_FAILED)))

    with pytest.raises(SiteFailure, match="program-import-failed"):
        hall.pool.opened()


def test_an_answer_to_something_else_is_none(hall: Hall) -> None:
    shard = hall.play()
    line = shard.line()
    hall.pool.opened()
    answer = hall.pool.call(Initial())
    task_at(line)

    tell(line, 1)

    with pytest.raises((FrameError, OSError)):
        task_at(line)
    assert not answer.done()


def test_shards_are_dismissed_when_the_pool_is_left(hall: Hall) -> None:
    shard, opening = hall.play(1), hall.play(2)
    line = shard.line()
    hall.pool.opened()

    hall.pool.__exit__(None, None, None)

    shard.hear(Dismissed)
    opening.hear(Dismissed)
    with pytest.raises((FrameError, OSError)):
        task_at(line)


def test_what_programs_print_in_a_shard_is_in_the_log_of_the_server(
    hall: Hall, capfd: pytest.CaptureFixture[str]
) -> None:
    hall.play().say("epoch 1", "epoch 2")
    hall.pool.__exit__(None, None, None)

    assert capfd.readouterr().err == "shard 7: epoch 1\nshard 7: epoch 2\n"


def test_who_is_of_no_shard_gets_no_task(hall: Hall) -> None:
    with pytest.raises((FrameError, OSError)):
        task_at(hall.play().stray())


def test_a_reply_is_what_the_shard_said(hall: Hall) -> None:
    line = hall.play().line()
    hall.pool.opened()
    answer = hall.pool.call(measure(hall.pool, "site-0"))
    task_at(line)
    send_frame(line, Done())
    task_at(line)
    tell(line, 42)

    reply = answer.result(10)
    assert isinstance(reply, Reply)
    assert reply.answer.num_examples == 42
