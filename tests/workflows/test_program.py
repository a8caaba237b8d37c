from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.program import (
    ArchiveUnreadable,
    BundleError,
    BundleTooLarge,
    ManifestInvalid,
    MemberRefused,
    pack,
    read_manifest,
    unpack,
)

MANIFEST = b'name = "tiny"\nframework = "torch"\n'
GOOD = {"program.py": b"def build(): ...\n", "program.toml": MANIFEST}


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tar_of(files: dict[str, bytes], *more: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in more:
            tar.addfile(member)
    return buffer.getvalue()


def zip_of(files: dict[str, bytes], *more: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for member, content in more:
            archive.writestr(member, content)
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = target
    return member


def unpack_bytes(tmp_path: Path, content: bytes, **bounds: int) -> Path:
    archive = tmp_path / "archive"
    archive.write_bytes(content)
    unpack(archive, tmp_path / "out", **bounds)
    return tmp_path / "out"


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_unpacking_what_was_packed_gives_the_folder(tmp_path: Path) -> None:
    files = GOOD | {"layers/conv.py": b"x = 1\n", "déjà.txt": b"vu"}
    folder = write_folder(tmp_path / "program", files)

    pack(folder, tmp_path / "bundle.tar")
    manifest = unpack(tmp_path / "bundle.tar", tmp_path / "out")

    assert manifest.name == "tiny"
    assert content_of(tmp_path / "out") == files


def test_a_packed_bundle_depends_on_nothing_but_content(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "first", GOOD | {"b.py": b"", "a.py": b""})
    second = write_folder(tmp_path / "second", {"a.py": b"", "b.py": b""} | GOOD)
    write_folder(second, {"__pycache__/a.pyc": b"x", ".git/HEAD": b"x", "a.pyc": b"x"})
    os.utime(second / "a.py", (1, 1))
    (second / "b.py").chmod(0o700)

    pack(first, tmp_path / "first.tar")
    pack(second, tmp_path / "second.tar")

    assert (tmp_path / "first.tar").read_bytes() == (tmp_path / "second.tar").read_bytes()


@pytest.mark.parametrize(
    "content",
    [tar_of(GOOD), gzip.compress(tar_of(GOOD)), zip_of(GOOD)],
    ids=["tar", "tar.gz", "zip"],
)
def test_every_kind_of_archive_is_told_by_its_content(tmp_path: Path, content: bytes) -> None:
    assert content_of(unpack_bytes(tmp_path, content)) == GOOD


LINK_IN_ZIP = zipfile.ZipInfo("link")
LINK_IN_ZIP.external_attr = 0o120777 << 16


@pytest.mark.parametrize(
    ("content", "member"),
    [
        (tar_of(GOOD | {"../evil.py": b""}), "../evil.py"),
        (tar_of(GOOD | {"a/../../evil.py": b""}), "a/../../evil.py"),
        (tar_of(GOOD | {"/etc/evil.py": b""}), "/etc/evil.py"),
        (tar_of(GOOD | {"C:evil.py": b""}), "C:evil.py"),
        (tar_of(GOOD | {"a\\b.py": b""}), "a\\\\b.py"),
        (tar_of(GOOD | {"new\nline.py": b""}), "new\\nline.py"),
        (tar_of(GOOD, special("link", tarfile.SYMTYPE, "/etc/passwd")), "link"),
        (tar_of(GOOD, special("hard", tarfile.LNKTYPE, "program.py")), "hard"),
        (tar_of(GOOD, special("pipe", tarfile.FIFOTYPE)), "pipe"),
        (tar_of(GOOD, special("device", tarfile.CHRTYPE)), "device"),
        (tar_of(GOOD, special("sparse", tarfile.GNUTYPE_SPARSE)), "sparse"),
        (tar_of(GOOD, tarfile.TarInfo("program.py")), "program.py"),
        (tar_of(GOOD, tarfile.TarInfo("./program.py")), "./program.py"),
        (tar_of(GOOD, tarfile.TarInfo("program.py/inside")), "program.py/inside"),
        (tar_of(GOOD | {"x" * 300: b""}), "x" * 240 + "..."),
        (tar_of(GOOD | {"caf\udce9.py": b""}), "caf\\udce9.py"),
        (zip_of(GOOD | {"../evil.py": b""}), "../evil.py"),
        (zip_of(GOOD | {"/evil.py": b""}), "/evil.py"),
        (zip_of(GOOD, (LINK_IN_ZIP, b"/etc/passwd")), "link"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_member_that_may_do_harm_is_named_and_nothing_is_left(
    tmp_path: Path, content: bytes, member: str
) -> None:
    with pytest.raises(MemberRefused) as caught:
        unpack_bytes(tmp_path, content)

    assert caught.value.member == member
    assert [p.name for p in tmp_path.iterdir()] == ["archive"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_twice_in_a_zip_is_refused(tmp_path: Path) -> None:
    twice = zip_of(GOOD, (zipfile.ZipInfo("program.py"), b"import os"))

    with pytest.raises(MemberRefused, match="twice"):
        unpack_bytes(tmp_path, twice)


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    content = bytearray(zip_of(GOOD))
    content[content.index(b"PK\x01\x02") + 8] |= 1

    with pytest.raises(MemberRefused, match="encrypted"):
        unpack_bytes(tmp_path, bytes(content))


@pytest.mark.parametrize("wrap", [tar_of, lambda f: gzip.compress(tar_of(f)), zip_of])
def test_a_bomb_is_refused_before_it_is_on_disk(tmp_path: Path, wrap: object) -> None:
    bomb = wrap(GOOD | {"zeros": bytes(3_000_000)})  # type: ignore[operator]

    with pytest.raises(BundleTooLarge, match="1,000,000 bytes"):
        unpack_bytes(tmp_path, bomb, max_bytes=1_000_000)

    assert [p.name for p in tmp_path.iterdir()] == ["archive"]


def test_a_header_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("pax")
    header.type = tarfile.XHDTYPE
    header.size = 1 << 40
    bomb = gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(3_000_000))

    with pytest.raises(BundleTooLarge):
        unpack_bytes(tmp_path, bomb, max_bytes=1_000_000)


@pytest.mark.parametrize("wrap", [tar_of, zip_of])
def test_too_many_files_are_refused(tmp_path: Path, wrap: object) -> None:
    many = wrap(GOOD | {f"f{k}": b"" for k in range(1_000)})  # type: ignore[operator]

    with pytest.raises(BundleTooLarge, match="1,000 members"):
        unpack_bytes(tmp_path, many)


def test_a_zip_with_an_endless_table_is_refused_before_it_is_read(tmp_path: Path) -> None:
    many = zip_of({f"{k:05}": b"" for k in range(12_000)})

    with pytest.raises(BundleTooLarge, match="members"):
        unpack_bytes(tmp_path, many)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"hello", gzip.compress(tar_of(GOOD))[:90], zip_of(GOOD)[:-9], b"\x1f\x8bhello"],
    ids=["nothing", "two letters", "a word", "half a gzip", "most of a zip", "a word in gzip"],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises((ArchiveUnreadable, ManifestInvalid)):
        unpack_bytes(tmp_path, content)

    assert [p.name for p in tmp_path.iterdir()] == ["archive"]


@settings(max_examples=200)
@given(
    st.sampled_from([tar_of(GOOD), gzip.compress(tar_of(GOOD), mtime=0), zip_of(GOOD)]), st.data()
)
def test_damaged_bytes_give_a_bundle_error_or_a_bundle(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(content)
    noise = random.Random(data.draw(st.integers(0, 2**32)))
    for _ in range(noise.randint(1, 6)):
        damaged[noise.randrange(len(damaged))] = noise.randrange(256)
    tmp_path = tmp_path_factory.mktemp("damaged")

    try:
        unpack_bytes(tmp_path, bytes(damaged))
    except BundleError:
        assert [p.name for p in tmp_path.iterdir()] == ["archive"]


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", {"mine": b"1"})

    with pytest.raises(FileExistsError):
        unpack_bytes(tmp_path, tar_of(GOOD))

    assert content_of(tmp_path / "out") == {"mine": b"1"}


def test_what_a_killed_unpacking_left_is_replaced(tmp_path: Path) -> None:
    write_folder(tmp_path / "out.partial", {"half": b"1"})

    assert content_of(unpack_bytes(tmp_path, tar_of(GOOD))) == GOOD


def test_a_link_is_not_packed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "program", GOOD)
    (folder / "data").symlink_to("/etc")

    with pytest.raises(MemberRefused, match="data: is a link"):
        pack(folder, tmp_path / "bundle.tar")


def test_a_folder_that_is_too_large_is_not_packed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "program", GOOD)
    with (folder / "weights").open("wb") as file:
        file.truncate(64 << 20)

    with pytest.raises(BundleTooLarge, match="keep data and weights out"):
        pack(folder, tmp_path / "bundle.tar")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"program.py": b""}, "program.toml is missing"),
        ({"program.toml": MANIFEST}, "program.py is missing"),
        ({"mine/program.py": b"", "mine/program.toml": MANIFEST}, "at the top of the bundle"),
        (GOOD | {"program.toml": b"name = "}, "program.toml"),
        (GOOD | {"program.toml": b"\xff"}, "UTF-8"),
        (GOOD | {"program.toml": MANIFEST + b"colour = 1"}, "colour"),
        (GOOD | {"program.toml": b'name = "tiny"'}, "framework"),
        (GOOD | {"program.toml": MANIFEST.replace(b"torch", b"jax")}, "jax"),
        (GOOD | {"program.toml": MANIFEST + b'metrics = {f1 = "up"}'}, "up"),
        (GOOD | {"program.toml": MANIFEST + b"example_features = [0]"}, "example_features"),
    ],
)
def test_a_manifest_that_does_not_fit_is_named(
    tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    with pytest.raises(ManifestInvalid) as caught:
        read_manifest(write_folder(tmp_path, files))

    assert words in str(caught.value)
