"""Files sent to the platform's object store itself, in parts, by links that the platform hands out.

What arrived stays for a day under the file's digest, so sending a file again goes on where it was
broken off, from whatever process.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import IO, Final

import msgspec

from clients.errors import ApiError, Conflict, NotFound, Unavailable, Unreachable
from clients.resources import NewUpload, PartLinks, PartsWanted, Upload
from clients.transport import JSON, Call, Retrying, Transport
from sharing.object_store import Digest, digest_of_file

LEAST_BYTES: Final = 16 << 20
"""Smaller files go the ordinary way, in one request."""
NO_DIRECT_UPLOADS: Final = ("no-direct-uploads", "route-unknown")


def send_in_parts(transport: Transport, file: Path) -> Digest | None:
    """Bring a file to the store; its digest, or None if it must go the ordinary way.

    That is so where the store takes none, or cannot be reached from here.

    Raises:
        ApiError: The platform or its store refused.
        Unreachable: The store stayed away after it had taken a part; what arrived is kept.
    """
    digest = digest_of_file(file)
    body = msgspec.json.encode(NewUpload(digest=digest, size_bytes=file.stat().st_size))
    call = Call(method="POST", path="/v1/uploads", headers=JSON, body=body)
    try:
        upload = transport.fetch(call, Upload)
    except (Conflict, NotFound) as error:
        if error.problem.type.endswith(NO_DIRECT_UPLOADS):
            return None
        raise
    has_arrived = bool(upload.stored)
    with file.open("rb") as content:
        for number in sorted(set(range(1, upload.num_parts + 1)) - set(upload.stored)):
            try:
                _send(transport, upload, number, content, is_first=not has_arrived)
            except Unreachable:
                if has_arrived:
                    raise
                with contextlib.suppress(ApiError, Unreachable):
                    transport.send(Call(method="DELETE", path=f"/v1/uploads/{digest}"))
                return None
            has_arrived = True
    return digest


def _send(
    transport: Transport, upload: Upload, number: int, content: IO[bytes], *, is_first: bool
) -> None:
    """Send a part as often as patience allows, by a new link each time, for they are void soon.

    If it ``is_first``, a store that cannot be reached is not waited for.
    """
    body = msgspec.json.encode(PartsWanted(numbers=(number,)))
    path = f"/v1/uploads/{upload.digest}/links"
    call = Call(method="POST", path=path, headers=JSON, body=body)
    content.seek((number - 1) * upload.part_bytes)
    part = content.read(upload.part_bytes)
    retrying = Retrying(transport.patience)
    while True:
        [link] = transport.fetch(call, PartLinks).links
        try:
            transport.put_to_link(link.url, part)
        except Unavailable as error:
            retrying.wait(error, error.retry_after_s)
        except Unreachable as error:
            if is_first:
                raise
            retrying.wait(error)
        else:
            return
