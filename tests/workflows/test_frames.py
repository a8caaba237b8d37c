from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workflows.frames import (
    ArraySpec,
    FrameError,
    FrameTooLarge,
    arrays_from,
    describe,
    receive_frame,
    send_frame,
)

anything: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder()
arrays = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(named=st.dictionaries(st.text(max_size=5), arrays, max_size=4), body=st.text())
def test_arrays_come_out_as_they_went_in(
    pair: tuple[socket.socket, socket.socket], named: dict[str, np.ndarray], body: str
) -> None:
    specs, blobs = describe(named)

    send_frame(pair[0], body, blobs)
    told, received = receive_frame(pair[1], anything, 1 << 20)

    assert told == body
    back = arrays_from(specs, received)
    assert list(back) == list(named)
    for name, x in named.items():
        assert (back[name].dtype, back[name].shape) == (x.dtype, x.shape)
        np.testing.assert_array_equal(back[name], x)


def test_a_blob_larger_than_the_socket_comes_through_whole(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    blob = np.random.default_rng(0).bytes(8 << 20)

    sender = threading.Thread(target=send_frame, args=(pair[0], None, [blob, b""]))
    sender.start()
    _, received = receive_frame(pair[1], anything, 8 << 20)
    sender.join()

    assert received == [blob, b""]


def test_more_than_the_reader_allows_is_refused_unread(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    send_frame(pair[0], None, [b"12", b"345"])

    with pytest.raises(FrameTooLarge):
        receive_frame(pair[1], anything, 4)


HEADER = msgspec.msgpack.encode((None, [-1]))


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\0\0",
        b"\0\0\0\4abc",
        b"\0\0\0\4abcd",
        b"\xff\xff\xff\xff",
        len(HEADER).to_bytes(4, "big") + HEADER,
    ],
    ids=["nothing", "cut", "cut in the header", "rubbish", "huge header", "negative length"],
)
def test_what_is_no_frame_is_refused(
    pair: tuple[socket.socket, socket.socket], sent: bytes
) -> None:
    pair[0].sendall(sent)
    pair[0].close()

    with pytest.raises(FrameError):
        receive_frame(pair[1], anything, 100)


@pytest.mark.parametrize(
    ("specs", "blobs"),
    [
        ([ArraySpec("a", "object", (1,))], [b"12345678"]),
        ([ArraySpec("a", "float32", (2,))], [b"1234"]),
        ([ArraySpec("a", "float32", (1,))], []),
        ([ArraySpec("a", "float32", (-1,)), ArraySpec("a", "float32", (1,))], [b"1234", b"1234"]),
    ],
    ids=["objects", "too few bytes", "no bytes", "one name twice"],
)
def test_arrays_that_are_not_as_announced_are_refused(
    specs: list[ArraySpec], blobs: list[bytes]
) -> None:
    with pytest.raises(FrameError):
        arrays_from(specs, blobs)
