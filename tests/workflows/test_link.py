"""Who gets onto the link of a server step and its shards, and what goes over it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator

import msgspec
import pytest

from workflows.frames import FrameError, FrameTooLarge, receive_frame, send_frame
from workflows.link import Link, cut, make_links, server_tls, shard_tls

NUMBER = msgspec.msgpack.Decoder(int)


@pytest.fixture
def ends() -> tuple[Link, Link]:
    return make_links()


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    for one in (ours, theirs):
        one.settimeout(5)
    with ours, theirs:
        yield ours, theirs


class Meeting:
    """A server that takes one frame, in a thread."""

    def __init__(self, link: Link, plain: socket.socket, max_bytes: int = 1 << 24) -> None:
        self.found: object = None
        self._max_bytes = max_bytes
        self._thread = threading.Thread(target=self._meet, args=(link, plain))
        self._thread.start()

    def _meet(self, link: Link, plain: socket.socket) -> None:
        try:
            with server_tls(link).wrap_socket(plain, server_side=True) as connection:
                self.found = receive_frame(connection, NUMBER, self._max_bytes)
        except (OSError, FrameError) as error:
            self.found = error

    def end(self) -> object:
        self._thread.join()
        return self.found


def test_a_frame_goes_over_it(
    ends: tuple[Link, Link], sockets: tuple[socket.socket, socket.socket]
) -> None:
    meeting = Meeting(ends[0], sockets[0])
    blob = bytes(range(256)) * 3000

    with shard_tls(ends[1]).wrap_socket(sockets[1]) as connection:
        send_frame(connection, 7, (blob, b""))
        assert connection.version() == "TLSv1.3"

    assert meeting.end() == (7, [blob, b""])


def test_a_frame_that_is_too_large_is_not_read(
    ends: tuple[Link, Link], sockets: tuple[socket.socket, socket.socket]
) -> None:
    meeting = Meeting(ends[0], sockets[0], max_bytes=10)

    with shard_tls(ends[1]).wrap_socket(sockets[1]) as connection:
        with contextlib.suppress(OSError):  # the other end may have gone by then
            send_frame(connection, 7, (bytes(11),))

        assert isinstance(meeting.end(), FrameTooLarge)


def without_a_certificate(link: Link) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    tls.load_verify_locations(cadata=link.peer)
    return tls


def of_another_attempt(link: Link) -> ssl.SSLContext:
    other = make_links()[1]
    return shard_tls(msgspec.structs.replace(other, peer=link.peer))


def as_its_own_server(link: Link) -> ssl.SSLContext:
    """A shard that knows the server's certificate, and shows that in the place of its own."""
    return shard_tls(msgspec.structs.replace(make_links()[0], peer=link.peer))


@pytest.mark.parametrize("who", [without_a_certificate, of_another_attempt, as_its_own_server])
def test_who_is_not_of_the_attempt_says_nothing_to_its_server(
    ends: tuple[Link, Link], sockets: tuple[socket.socket, socket.socket], who: type
) -> None:
    meeting = Meeting(ends[0], sockets[0])

    with contextlib.suppress(OSError), who(ends[1]).wrap_socket(sockets[1]) as connection:
        send_frame(connection, 7)

    assert isinstance(meeting.end(), ssl.SSLError)


def test_a_shard_says_nothing_to_another_shard(
    ends: tuple[Link, Link], sockets: tuple[socket.socket, socket.socket]
) -> None:
    pretender = msgspec.structs.replace(ends[1], peer=ends[1].certificate)
    meeting = Meeting(pretender, sockets[0])

    with pytest.raises(ssl.SSLCertVerificationError):
        shard_tls(ends[1]).wrap_socket(sockets[1])

    assert isinstance(meeting.end(), OSError)


def test_a_connection_that_is_cut_ends_for_who_reads_from_it(
    ends: tuple[Link, Link], sockets: tuple[socket.socket, socket.socket]
) -> None:
    meeting = Meeting(ends[0], sockets[0])

    with shard_tls(ends[1]).wrap_socket(sockets[1]) as connection:
        cut(connection)

        assert isinstance(meeting.end(), FrameError | OSError)
        cut(connection)


def test_an_end_does_not_show_its_key(ends: tuple[Link, Link]) -> None:
    assert "KEY" not in repr(ends) + str(ends)
