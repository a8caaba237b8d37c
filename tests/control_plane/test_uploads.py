from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from clients.identity import Principal
from clients.resources import Role
from control_plane import uploads
from control_plane.datasets import get_dataset, list_datasets, upload_dataset
from control_plane.pages import Slice
from control_plane.platform import Platform
from control_plane.programs import get_program, list_programs, upload_program
from control_plane.records.tables import DATASET, PROGRAM
from control_plane.refusals import Forbidden, NotFound, ProbeFailed, Unacceptable
from sharing.object_store import ObjectTooLarge, digest_of
from tests.control_plane.conftest import People
from workflows.causes import CauseCode
from workflows.program import BundleError, MemberRefused
from workflows.programs import BUILTIN, builtin_folder
from workflows.steps import probe

pytestmark = pytest.mark.anyio


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def bundle(**changes: bytes) -> bytes:
    folder = builtin_folder("digits-mlp")
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("program.*"))}
    return archive({**files, **{f"program.{suffix}": text for suffix, text in changes.items()}})


async def chunks(content: bytes, size: int = 1 << 16) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.fixture
def spotless(platform: Platform) -> Iterator[None]:
    """Nothing of an upload is left outside the store and the records."""
    yield
    assert list(platform.folder.glob("scratch/*")) == []


async def upload(platform: Platform, who: Principal, content: bytes) -> None:
    await upload_program(platform, who, None, chunks(content))


@pytest.mark.usefixtures("spotless")
async def test_a_program_is_tried_out_once_and_is_its_organisations_own(
    platform: Platform, people: People
) -> None:
    content = bundle()
    stranger = await people.add("elsewhere", "eve", Role.DEVELOPER)

    program, is_new = await upload_program(platform, people.admin, None, chunks(content))
    again, is_new_again = await upload_program(platform, people.admin, "other", chunks(content))

    assert (is_new, is_new_again) == (True, False)
    assert program == again
    assert (program.digest, program.name) == (digest_of(content), "digits-mlp")
    assert program.facts.parameters == BUILTIN["digits-mlp"].parameters
    assert b"".join([c async for c in platform.store.get(program.digest)]) == content
    assert (await list_programs(platform, people.admin, 10)).items == (program,)
    assert (await list_programs(platform, stranger, 10)).items == ()
    with pytest.raises(NotFound):
        await get_program(platform, stranger, program.digest)


@pytest.mark.usefixtures("spotless")
async def test_a_program_that_does_not_import_is_refused_and_forgotten(
    platform: Platform, admin: Principal
) -> None:
    content = bundle(py=b"import a_package_that_is_not_there\n")

    with pytest.raises(ProbeFailed) as refused:
        await upload(platform, admin, content)

    assert refused.value.cause.code is CauseCode.PROGRAM_IMPORT_FAILED
    assert "a_package_that_is_not_there" in str(refused.value)
    assert await platform.database.rows(select(PROGRAM.c.digest)) == []
    assert list(platform.folder.glob("objects/objects/*/*")) == []


@pytest.mark.usefixtures("spotless")
async def test_a_probe_that_takes_too_long_is_ended(platform: Platform, admin: Principal) -> None:
    impatient = replace(platform, rules=replace(platform.rules, probe_timeout_s=0.5))

    with pytest.raises(ProbeFailed) as refused:
        await upload(impatient, admin, bundle(py=b"while True: pass\n"))

    assert refused.value.cause.code is CauseCode.PROGRAM_HUNG


@pytest.mark.usefixtures("spotless")
async def test_a_caller_who_goes_away_leaves_nothing(platform: Platform, admin: Principal) -> None:
    task = asyncio.create_task(upload(platform, admin, bundle(py=b"while True: pass\n")))
    async with asyncio.timeout(10):
        while not list(platform.folder.glob("scratch/*/probe.json")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        archive({"readme.txt": b"no program"}),
        archive({"../program.py": b"", "program.toml": b""}),
        archive({"/program.py": b"", "program.toml": b""}),
    ],
    ids=[
        "nothing",
        "not an archive",
        "no program in it",
        "a path that leads out",
        "an absolute path",
    ],
)
@pytest.mark.usefixtures("spotless")
async def test_what_is_no_safe_bundle_is_refused(
    platform: Platform, admin: Principal, content: bytes
) -> None:
    with pytest.raises(BundleError):
        await upload(platform, admin, content)

    assert list(platform.folder.glob("objects/objects/*/*")) == []


@pytest.mark.usefixtures("spotless")
async def test_a_link_in_a_bundle_is_refused(platform: Platform, admin: Principal) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("program.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)

    with pytest.raises(MemberRefused):
        await upload(platform, admin, buffer.getvalue())


@pytest.mark.usefixtures("spotless")
async def test_a_bundle_over_the_limit_is_cut_off(platform: Platform, admin: Principal) -> None:
    small = replace(platform, rules=replace(platform.rules, max_bundle_bytes=100_000))
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 10_000
            yield bytes(10_000)

    with pytest.raises(ObjectTooLarge):
        await upload_program(small, admin, None, endless())

    assert given == 110_000


@pytest.mark.parametrize("role", [Role.AUDITOR, Role.OPERATOR, Role.DATA_OWNER])
async def test_who_does_not_develop_may_not_upload(
    platform: Platform, people: People, role: Role
) -> None:
    reader = await people.add("home", "ada", role)

    with pytest.raises(Forbidden):
        await upload(platform, reader, bundle())
    with pytest.raises(Forbidden):
        await upload_dataset(platform, reader, "x", "csv", "y", chunks(b"a,y\n1,2\n"))


@pytest.mark.usefixtures("spotless")
async def test_data_sets_are_read_with_a_label_and_listed_in_slices(
    platform: Platform, people: People
) -> None:
    stranger = await people.add("elsewhere", "eve", Role.DEVELOPER)
    rows = "".join(f"{i},{i * 2},{i % 3}\n" for i in range(30))
    table = f"a,b,kind\n{rows}".encode()
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros((8, 4), np.float32), y=np.arange(8) % 2)

    (first, is_new), (second, _) = await asyncio.gather(
        upload_dataset(platform, people.admin, "flowers", "csv", "kind", chunks(table)),
        upload_dataset(platform, people.admin, "zeros", "npz", "y", chunks(buffer.getvalue())),
    )
    again, is_new_again = await upload_dataset(
        platform, people.admin, "flowers", "csv", "kind", chunks(table)
    )

    assert (is_new, is_new_again, first) == (True, False, again)
    assert (first.facts.num_examples, first.facts.features, first.facts.num_classes) == (
        30,
        (2,),
        3,
    )
    assert (second.facts.num_examples, second.facts.features) == (8, (4,))
    one = await list_datasets(platform, people.admin, 1)
    two = await list_datasets(platform, people.admin, 1, one.next)
    assert {one.items[0].name, two.items[0].name} == {"flowers", "zeros"}
    assert two.next is None
    assert await list_datasets(platform, stranger, 10) == Slice((), None)
    assert await get_dataset(platform, people.admin, first.digest) == first
    with pytest.raises(NotFound):
        await get_dataset(platform, stranger, first.digest)
    with pytest.raises(Unacceptable):
        await list_datasets(platform, people.admin, 1, "nonsense")


@pytest.mark.usefixtures("spotless")
async def test_text_where_numbers_belong_is_told_by_row_and_column(
    platform: Platform, admin: Principal
) -> None:
    table = b"a,b,y\n1,2,0\n3,oops,1\n"

    with pytest.raises(ProbeFailed, match="row 2, column `b`") as refused:
        await upload_dataset(platform, admin, "t", "csv", "y", chunks(table))

    assert refused.value.cause.code is CauseCode.DATA_UNREADABLE
    assert await platform.database.rows(select(DATASET.c.digest)) == []


def test_the_control_plane_does_not_import_what_runs_programs() -> None:
    code = (
        "import sys\n"
        "import control_plane.reconciler, control_plane.programs, control_plane.datasets\n"
        "import control_plane.admission, control_plane.ingest, control_plane.models\n"
        "print(*sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    heavy = {"torch", "flwr", "sklearn", "onnx", "onnxruntime", "ray", "matplotlib", "pyarrow"}
    assert set(done.stdout.split()) & heavy == set()


def test_the_names_of_the_probes_files_are_agreed_on() -> None:
    assert (uploads._QUESTION, uploads._ANSWER) == (probe.QUESTION, probe.ANSWER)
    assert (Path(uploads._ROOT) / "workflows/steps/probe.py").is_file()
