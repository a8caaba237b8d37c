"""Length-prefixed frames over a stream socket: one msgpack body and raw binary blobs after it.

Nothing in a frame is executable: the body is decoded into a declared msgspec type and the blobs are
the bytes of arrays. A blob is copied once into the kernel and once out of it; numpy reads it where
it lands.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np

Blob: TypeAlias = bytes | memoryview

_PREFIX: Final = struct.Struct("!I")
MAX_HEADER_BYTES: Final = 64 << 20
_RECORDS_BYTES: Final = 1 << 16
_DTYPES: Final = frozenset(
    ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
)


class FrameError(Exception):
    """What came is no frame, or the stream ended."""


class FrameTooLarge(FrameError):
    """A frame announced more bytes than the reader allows."""


class _Header(msgspec.Struct, frozen=True, array_like=True):
    body: msgspec.Raw
    blobs: tuple[int, ...]


class ArraySpec(msgspec.Struct, frozen=True, array_like=True):
    """What a blob is.

    Attributes:
        name: Of the array.
        dtype: As numpy spells it.
        shape: Its shape; the blob holds it in C order, little-endian.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(_Header)


def describe(arrays: Mapping[str, np.ndarray]) -> tuple[tuple[ArraySpec, ...], list[memoryview]]:
    """The arrays as specs and blobs, in their order; contiguous ones are not copied."""
    specs = tuple(ArraySpec(name, a.dtype.name, a.shape) for name, a in arrays.items())
    return specs, [np.ascontiguousarray(a).data for a in arrays.values()]


def arrays_from(specs: Sequence[ArraySpec], blobs: Sequence[Blob]) -> dict[str, np.ndarray]:
    """Read-only arrays over the blobs.

    Raises:
        FrameError: A blob is not what its spec says.
    """
    if len(specs) != len(blobs):
        raise FrameError(f"{len(specs)} arrays are announced, {len(blobs)} came")
    arrays: dict[str, np.ndarray] = {}
    for spec, blob in zip(specs, blobs, strict=True):
        if spec.dtype not in _DTYPES or spec.name in arrays:
            raise FrameError(f"array {spec.name!r} of {spec.dtype!r} cannot be read")
        try:
            arrays[spec.name] = np.frombuffer(blob, spec.dtype).reshape(spec.shape)
        except ValueError as error:
            raise FrameError(f"array {spec.name!r}: {error}") from error
    return arrays


def size_of(*blobs: Blob) -> int:
    """Bytes of the blobs."""
    return sum(memoryview(blob).nbytes for blob in blobs)


def send_frame(connection: socket.socket, body: object, blobs: Sequence[Blob] = ()) -> None:
    """Write one frame.

    Raises:
        OSError: The other end is gone.
    """
    views = [memoryview(blob).cast("B") if size_of(blob) else memoryview(b"") for blob in blobs]
    header = _encoder.encode(
        _Header(msgspec.Raw(_encoder.encode(body)), tuple(len(view) for view in views))
    )
    connection.sendall(_PREFIX.pack(len(header)) + header)
    for view in views:
        if view:
            connection.sendall(view)


def receive_frame(
    connection: socket.socket, decoder: msgspec.msgpack.Decoder[Any], max_bytes: int
) -> tuple[Any, list[bytes]]:
    """Read one frame: its body and its blobs.

    Raises:
        FrameTooLarge: Its blobs are larger than ``max_bytes`` together; they were not read.
        FrameError: The stream ended, or the bytes are no frame.
        OSError: The connection broke.
    """
    (length,) = _PREFIX.unpack(_receive(connection, _PREFIX.size))
    if length > MAX_HEADER_BYTES:
        raise FrameTooLarge(f"a header of {length} bytes")
    try:
        header = _header_decoder.decode(_receive(connection, length))
        body = decoder.decode(header.body)
    except msgspec.MsgspecError as error:
        raise FrameError(str(error)) from error
    if min(header.blobs, default=0) < 0:
        raise FrameError("a blob of negative length")
    if sum(header.blobs) > max_bytes:
        raise FrameTooLarge(f"{sum(header.blobs)} bytes, of at most {max_bytes}")
    return body, [_receive(connection, size) for size in header.blobs]


def _receive(connection: socket.socket, size: int) -> bytes:
    """Exactly ``size`` bytes, copied once unless they were encrypted or a signal came."""
    parts: list[bytes] = []
    is_encrypted = isinstance(connection, ssl.SSLSocket)  # takes no flags, gives records
    while size:
        part = (
            connection.recv(min(size, _RECORDS_BYTES))
            if is_encrypted
            else connection.recv(size, socket.MSG_WAITALL)
        )
        if not part:
            raise FrameError("the connection ended")
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
