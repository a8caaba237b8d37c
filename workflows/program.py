"""A program as a bundle: a folder with ``program.py`` and ``program.toml``, and its archive.

``pack`` writes an uncompressed tar whose bytes depend on the content alone, so that its digest
names the program and a site can approve exactly what it will run. ``unpack`` also takes .tar.gz and
.zip; it trusts nothing in an archive, counts bytes while they are decompressed, and leaves either
the whole folder or none. Neither runs any of the program.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Final, Literal, Protocol, cast

import msgspec
from msgspec import Meta

MAX_FILES: Final = 1_000
MAX_BYTES: Final = 64 << 20
CHUNK_BYTES: Final = 1 << 16
MAX_NAME_BYTES: Final = 240
TAR_HEADER_BYTES: Final = 4_096  # of one member at most, padding included
ZIP_DIRECTORY_BYTES: Final = MAX_FILES * 512
TEMPLATE: Final = Path(__file__).parent / "program_template"
LEFT_OUT: Final = frozenset({"__pycache__", "__MACOSX"})

UNREADABLE: Final = (  # what the archive modules raise on bytes that are no archive
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    ValueError,
)


class BundleError(Exception):
    """The folder or archive is not a program; the message names the place and the mend."""


class ArchiveUnreadable(BundleError):
    """The bytes are no whole tar, tar.gz or zip archive."""


class BundleTooLarge(BundleError):
    """It holds more files or bytes than a program may."""


class ManifestInvalid(BundleError):
    """``program.toml`` or ``program.py`` is missing, or ``program.toml`` cannot be understood."""


class MemberRefused(BundleError):
    """One member of the archive, or one file of the folder, may not be in a bundle.

    Attributes:
        member: Its name, with what is not printable escaped.
    """

    def __init__(self, member: str, problem: str, mend: str) -> None:
        name = member.encode("unicode_escape", "surrogateescape").decode("ascii", "replace")
        self.member = name if len(name) <= MAX_NAME_BYTES else name[:MAX_NAME_BYTES] + "..."
        super().__init__(f"{self.member}: {problem}; {mend}")


class ProgramManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``program.toml`` declares.

    Attributes:
        name: Of the program, for people and file names.
        summary: What it is, in one line.
        framework: What ``build()`` returns a model of, or for XGBoost the parameters.
        dependencies: Packages it imports beyond the framework and numpy; they must be in the
            runtime's environment.
        metrics: Names that its ``evaluate`` reports, and whether more or less is better.
        trainable: Patterns of the names of layers (as in the shell, by the whole name) that are
            trained and travel. The others are a frozen base: ``build()`` makes it, the same under
            every seed, and it stays where it was made.
        hooks: True if its own ``train`` adds ``config.hooks.penalty(model)`` to the loss.
        example_features: Shape of one example, for trying it without data.
        classes: Number of classes, for trying it without data; 0 for real-valued targets.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100)]
    framework: Literal["torch", "sklearn", "xgboost"]
    summary: Annotated[str, Meta(max_length=500)] = ""
    dependencies: tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9][\w.-]*$")], ...] = ()
    metrics: Mapping[
        Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*$")], Literal["maximize", "minimize"]
    ] = {}
    trainable: Annotated[tuple[Annotated[str, Meta(min_length=1)], ...], Meta(min_length=1)] = (
        "*",
    )
    hooks: bool = False
    example_features: tuple[Annotated[int, Meta(ge=1)], ...] = ()
    classes: Annotated[int, Meta(ge=0)] = 0


def read_manifest(folder: Path) -> ProgramManifest:
    """What the program in ``folder`` declares.

    Raises:
        ManifestInvalid: A file is missing, or ``program.toml`` does not say what it must.
    """
    for name in ("program.toml", "program.py"):
        if not (folder / name).is_file():
            raise ManifestInvalid(
                f"{name} is missing; it must be at the top of the bundle, not in a folder of it "
                "(`foedus program new DIR` writes both files)"
            )
    try:
        return msgspec.toml.decode((folder / "program.toml").read_bytes(), type=ProgramManifest)
    except UnicodeDecodeError as error:
        raise ManifestInvalid(f"program.toml: {error}; save it as UTF-8") from error
    except msgspec.DecodeError as error:  # of the form or of a field
        raise ManifestInvalid(f"program.toml: {error}") from error


def write_template(folder: Path) -> None:
    """Write a small program that works to ``folder``, for a developer to start from.

    Raises:
        FileExistsError: There is something in ``folder`` already; nothing was written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("program.py", "program.toml"):
        shutil.copyfile(TEMPLATE / name, folder / name)


def pack(folder: Path, archive: Path) -> None:
    """Write the bundle in ``folder`` to ``archive``; the same content gives the same bytes.

    Left out are hidden files, bytecode and ``__pycache__``.

    Raises:
        ManifestInvalid: It is no program.
        MemberRefused: A link or another special file is in the way.
        BundleTooLarge: It holds more than a program may.
    """
    read_manifest(folder)
    files = sorted(_files_of(folder), key=lambda path: path.relative_to(folder).as_posix())
    size = sum(path.stat().st_size + TAR_HEADER_BYTES for path in files)
    if len(files) > MAX_FILES or size > MAX_BYTES:
        raise BundleTooLarge(
            f"{folder}: {len(files)} files with {size:,} bytes; a program may have {MAX_FILES:,} "
            f"files with {MAX_BYTES:,} bytes, so keep data and weights out of it"
        )
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in files:
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size = path.stat().st_size
            member.mode = 0o644
            with path.open("rb") as content:
                tar.addfile(member, content)


def _files_of(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith(".") or path.name in LEFT_OUT or path.suffix == ".pyc":
            continue
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise MemberRefused(name, "is a link or a special file", "put the file itself there")
        if path.is_dir():
            yield from _files_of(path)
        else:
            yield path


def unpack(archive: Path, folder: Path, max_bytes: int = MAX_BYTES) -> ProgramManifest:
    """Lay the bundle out in ``folder``, which must not be there yet; all or nothing.

    Args:
        archive: A .tar, .tar.gz or .zip file, told apart by its content.
        folder: Where to; a folder of this name with ``.partial`` is used on the way.
        max_bytes: Most bytes it may hold unpacked.

    Raises:
        BundleError: The archive is refused; ``folder`` is not there.
        FileExistsError: ``folder`` is there already.
    """
    if folder.exists():
        raise FileExistsError(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        layout = _Layout(partial, max_bytes)
        with archive.open("rb") as file, _reading_errors():
            magic = file.read(4)
            file.seek(0)
            if magic[:2] == b"PK":
                _unpack_zip(file, layout)
            elif magic[:2] == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=file) as plain:
                    _unpack_tar(plain, layout)
            else:
                _unpack_tar(file, layout)
        manifest = read_manifest(partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


class Readable(Protocol):
    """All that is asked of a stream."""

    def read(self, size: int, /) -> bytes: ...


class _Layout:
    """The folder being filled; owns the checks that every kind of archive shares."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._num_members = 0
        self._size = 0
        self._files: set[PurePosixPath] = set()
        self._folders: set[PurePosixPath] = set()

    def count(self, size: int) -> None:
        """Count decompressed bytes before they are kept.

        Raises:
            BundleTooLarge: They are too many.
        """
        self._size += size
        if self._size > self._max_bytes:
            raise BundleTooLarge(
                f"the archive unpacks to more than {self._max_bytes:,} bytes; keep data and "
                "weights out of the program"
            )

    def place(self, name: str, is_folder: bool) -> Path | None:
        """Where the member goes; None for one that is left out.

        Raises:
            MemberRefused: It may not go anywhere.
            BundleTooLarge: It is one too many.
        """
        self._num_members += 1
        if self._num_members > MAX_FILES:
            raise BundleTooLarge(f"the archive has more than {MAX_FILES:,} members; leave some out")
        path = PurePosixPath(name)
        _require_plain(name, path)
        if LEFT_OUT & set(path.parts) or (not path.parts and is_folder):
            return None
        if path in self._files or (path in self._folders and not is_folder):
            raise MemberRefused(name, "is there twice", "leave one of them out")
        if self._files & set(path.parents):
            raise MemberRefused(name, "lies in what is a file of the archive", "rename one of them")
        self._folders.update(path.parents)
        (self._folders if is_folder else self._files).add(path)
        target = self._folder / path
        (target if is_folder else target.parent).mkdir(parents=True, exist_ok=True)
        return None if is_folder else target


def _require_plain(name: str, path: PurePosixPath) -> None:
    mend = "pack the folder anew with `foedus program push DIR`"
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise MemberRefused(name, "its name is not UTF-8", "rename it") from None
    if len(encoded) > MAX_NAME_BYTES:
        raise MemberRefused(name, f"its name is over {MAX_NAME_BYTES} bytes", "shorten it")
    if re.search(r"[\x00-\x1f\x7f\\]", name):
        raise MemberRefused(name, "its name has a control character or a backslash", "rename it")
    if path.is_absolute() or re.match(r"[A-Za-z]:", name):
        raise MemberRefused(name, "its path is absolute", mend)
    if ".." in path.parts:
        raise MemberRefused(name, "its path leads out of the folder with `..`", mend)


class _Counting:
    """A stream that counts what is read of it, headers included."""

    def __init__(self, source: Readable, layout: _Layout) -> None:
        self._source = source
        self._layout = layout

    def read(self, size: int, /) -> bytes:
        chunk = self._source.read(min(size, CHUNK_BYTES))
        self._layout.count(len(chunk))
        return chunk


def _write(target: Path, content: Readable) -> None:
    with target.open("xb") as file:
        while chunk := content.read(CHUNK_BYTES):
            file.write(chunk)


def _unpack_tar(file: Readable, layout: _Layout) -> None:
    counting = cast("IO[bytes]", _Counting(file, layout))  # of a stream it calls `read` alone
    with tarfile.open(fileobj=counting, mode="r|", errors="surrogateescape") as tar:
        for member in tar:
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise MemberRefused(
                    member.name, "is a link or a special file", "put the file itself there"
                )
            target = layout.place(member.name, member.isdir())
            content = tar.extractfile(member) if target else None
            if target and content:
                _write(target, content)


def _unpack_zip(file: IO[bytes], layout: _Layout) -> None:
    _require_small_directory(file)
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            name = _name_in_zip(member)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise MemberRefused(
                    name, "is a link or a special file", "put the file itself there"
                )
            if member.flag_bits & 1:
                raise MemberRefused(name, "is encrypted", "store it in the clear")
            target = layout.place(name, member.is_dir())
            if target:
                with archive.open(member) as content:
                    _write(target, _Counting(content, layout))


def _name_in_zip(member: zipfile.ZipInfo) -> str:
    """The member's name as it is in the archive, before ``zipfile`` made it harmless."""
    name = member.orig_filename
    if member.flag_bits & 0x800:
        return name
    return name.encode("cp437", "surrogateescape").decode("utf-8", "surrogateescape")


def _require_small_directory(file: IO[bytes]) -> None:
    """Raise unless the zip's table of contents is small; ``zipfile`` would read it whole.

    Source: PKWARE APPNOTE 6.3.10, 4.3.16 (end of central directory) and 4.3.15 (zip64 locator).
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - (1 << 16) - 22 - 20))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        raise ArchiveUnreadable("the zip archive is cut off; upload it whole")
    (size,) = struct.unpack_from("<L", tail, at + 12)
    if size > ZIP_DIRECTORY_BYTES or b"PK\x06\x07" in tail[max(0, at - 20) : at]:
        raise BundleTooLarge(f"the archive has more than {MAX_FILES:,} members; leave some out")
    file.seek(0)


@contextlib.contextmanager
def _reading_errors() -> Iterator[None]:
    """Turn what the archive modules raise into our own."""
    try:
        yield
    except UNREADABLE as error:
        raise ArchiveUnreadable(f"it is no whole .tar, .tar.gz or .zip archive: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # which a seek to a forged offset gives
            raise
        raise ArchiveUnreadable("it is no whole .zip archive: an offset is wrong") from error
