"""Content-addressed storage of artifacts: the port.

An object is named by the SHA-256 of its bytes, so a write is idempotent, an object never
changes, and a reader can tell whether it got what it asked for. Nothing is ever held whole:
bytes go in and come out in chunks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Protocol, TypeAlias, runtime_checkable

import msgspec
from msgspec import Meta

DIGEST_PATTERN: Final = r"^sha256:[0-9a-f]{64}$"
Digest: TypeAlias = Annotated[str, Meta(pattern=DIGEST_PATTERN)]
"""Name of an object. The grammar is checked wherever one comes in over a wire."""

CHUNK_BYTES: Final = 1 << 20


class StoreError(Exception):
    """The store did not do what was asked."""


class ObjectMissing(StoreError):
    """No object has this digest."""


class ObjectCorrupt(StoreError):
    """The bytes do not have the digest they are named by, at rest or on their way in."""


class ObjectTooLarge(StoreError):
    """More bytes came than the caller allowed; nothing was stored."""


class StoreFull(StoreError):
    """No room is left; nothing was stored."""


class StoreUnavailable(StoreError):
    """The store did not answer; the same call may succeed later."""


class StoreRefused(StoreError):
    """The store does not serve us: whoever runs the platform must change something there."""


class RightMissing(StoreRefused):
    """The credentials are good, and lack the right that the message names."""


class BucketMissing(StoreRefused):
    """The place where the objects should lie does not exist."""


class UploadGone(StoreUnavailable):
    """An upload in parts was completed or discarded before."""


class PartsMissing(StoreError):
    """Not all parts of an upload are there, each of its size; those that are stay."""


class StoredObject(msgspec.Struct, frozen=True):
    """An object that is in the store.

    Attributes:
        digest: Its name.
        size_bytes: Its length.
    """

    digest: Digest
    size_bytes: int


def digest_of(content: bytes | memoryview) -> Digest:
    """Name of ``content``."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def digest_of_file(path: Path) -> Digest:
    """Name of the content of the file at ``path``, read in chunks."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def is_digest(text: str) -> bool:
    """True if ``text`` has the form of an object's name."""
    return re.fullmatch(DIGEST_PATTERN[1:-1], text) is not None


@runtime_checkable
class ObjectStore(Protocol):
    """Port. Adapters raise ``StoreError`` and nothing else.

    Every call may raise ``StoreRefused`` where there are credentials and rights.

    Adapters: ``sharing.directory_store``, ``sharing.s3_store``.
    """

    async def put(
        self,
        chunks: AsyncIterable[bytes],
        *,
        expect: Digest | None = None,
        max_bytes: int | None = None,
    ) -> StoredObject:
        """Store a stream; storing the same bytes again is a no-op. All or nothing.

        Args:
            chunks: The bytes, in order.
            expect: Digest the bytes must turn out to have; None takes what comes.
            max_bytes: Most bytes to accept; None for no bound.

        Raises:
            ObjectCorrupt: The bytes do not have the digest ``expect``; nothing was stored.
            ObjectTooLarge: More than ``max_bytes`` came; nothing was stored.
            StoreFull: There is no room; nothing was stored.
            StoreUnavailable: It is unknown whether the object was stored.
        """
        ...

    def get(
        self, digest: Digest, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the bytes ``start`` to ``stop`` (exclusive; None for the end) of an object.

        A read of the whole object is verified as it goes: the error comes instead of the last
        chunk, so a consumer never sees a complete forgery. A part is served from an object whose
        whole was verified since it last changed at rest. What changes or deletes the object
        meanwhile may end the reading, but never falsifies it.

        Raises:
            ObjectMissing: No such object (any more).
            ObjectCorrupt: The object was altered at rest.
            StoreUnavailable: The store did not answer.
        """
        ...

    async def stat(self, digest: Digest) -> StoredObject:
        """Size of an object.

        Raises:
            ObjectMissing: No such object.
            StoreUnavailable: The store did not answer.
        """
        ...

    async def delete(self, digest: Digest) -> None:
        """Forget an object; forgetting an absent one is a no-op.

        Raises:
            StoreUnavailable: It may still be there.
        """
        ...


@runtime_checkable
class Presigning(Protocol):
    """Port of stores whose server hands objects out to whoever has a link."""

    async def link(self, digest: Digest, *, lifetime_s: int, file_name: str) -> str:
        """A URL that reads this one object and nothing else: a secret, never to be logged.

        What it yields is not verified by anybody but its reader.

        Args:
            digest: The object.
            lifetime_s: Seconds after which it is void.
            file_name: Name under which browsers keep it.

        Raises:
            ObjectMissing: No such object.
            StoreUnavailable: The store did not answer.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketAccess:
    """How an organisation reaches its own buckets for a while.

    Attributes:
        url: Of the S3 server.
        region: Of the buckets.
        access_key: Names the credentials.
        secret_key: Proves them; never shown.
        datasets: Bucket of what the organisation brings; it may read and write.
        models: Bucket of what the platform made for it; it may read.
    """

    url: str
    region: str
    access_key: str
    secret_key: str = field(repr=False)
    datasets: str
    models: str


@runtime_checkable
class Retaining(Protocol):
    """Port of stores whose server can keep an object from everybody who would remove it."""

    async def retain(self, digest: Digest, until: datetime) -> None:
        """Have the bytes kept until then, whatever becomes of the name; never for a shorter time.

        Raises:
            ObjectMissing: No such object.
            StoreRefused: The server does not do that for us.
            StoreUnavailable: The store did not answer.
        """
        ...


@runtime_checkable
class Granting(Protocol):
    """Port of stores whose server gives organisations buckets and credentials of their own."""

    async def grant(self, organisation: str, ends_at: datetime) -> BucketAccess:
        """New credentials for the buckets of an organisation, which are made if need be.

        Args:
            organisation: Its id, a DNS label.
            ends_at: When they end by themselves.

        Raises:
            StoreRefused: The server does not make us any.
            StoreUnavailable: It did not answer; the secret of what it may have made is lost.
        """
        ...

    async def revoke(self, access_key: str) -> None:
        """End credentials at once; may be repeated.

        Raises:
            StoreRefused: The server does not do that for us.
            StoreUnavailable: They may still count.
        """
        ...


@dataclass(frozen=True, slots=True)
class Staged:
    """An upload in parts that is under way, or waits to be taken in.

    Attributes:
        key: Where its bytes gather; nobody reads there as an object.
        upload: What the server calls it.
    """

    key: str
    upload: str


@runtime_checkable
class TakingParts(Protocol):
    """Port of stores whose server takes bytes in parts from whoever has links to send them to.

    Parts are numbered from 1; ``sizes`` gives the bytes of each. All but the last have the same, of
    5 MiB at least.
    """

    async def begin_parts(self) -> Staged:
        """Begin an upload; what nobody takes in within a day, the server forgets.

        Raises:
            StoreUnavailable: The server did not answer.
        """
        ...

    async def link_parts(
        self, staged: Staged, sizes: Mapping[int, int], lifetime_s: int
    ) -> Mapping[int, str]:
        """URLs by number, each of which takes a PUT of this part, of exactly this size.

        They are secrets, never to be logged.

        Args:
            staged: The upload.
            sizes: Of the parts to be sent.
            lifetime_s: Seconds after which the links are void.
        """
        ...

    async def parts_of(self, staged: Staged, sizes: Mapping[int, int]) -> frozenset[int]:
        """Numbers of the parts that are there, of their sizes.

        Raises:
            UploadGone: The upload is no more.
            StoreUnavailable: The server did not answer.
        """
        ...

    async def join_parts(self, staged: Staged, sizes: Mapping[int, int]) -> None:
        """Join all parts, to be read; no link takes another from then on. May be repeated.

        Raises:
            PartsMissing: Not all are there.
            UploadGone: The upload is no more.
            StoreUnavailable: The server did not answer.
        """
        ...

    def read_parts(self, staged: Staged) -> AsyncIterator[bytes]:
        """The joined bytes, of whatever digest they have.

        Raises:
            UploadGone: The upload is no more.
            StoreUnavailable: The server did not answer.
        """
        ...

    async def discard_parts(self, staged: Staged) -> None:
        """Leave nothing of an upload, joined or not; may be repeated.

        Raises:
            StoreUnavailable: It may still be there; the server forgets it within a day.
        """
        ...


@runtime_checkable
class Wiping(Protocol):
    """Port of stores whose medium is ours to write over."""

    async def wipe(self, digest: Digest) -> None:
        """Forget an object as ``delete`` does, after writing zeros over its bytes.

        A file system that copies on writing, or a disk that moves what wears out, may have them
        elsewhere still.

        Raises:
            StoreUnavailable: It may still be there.
        """
        ...
