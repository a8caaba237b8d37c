"""A platform over real records and a real store, in a folder of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from clients.identity import Principal
from clients.resources import NewOrganisation, NewToken, NewUser, Role
from control_plane.accounts import add_organisation, add_token, add_user, bootstrap
from control_plane.platform import Platform, Rules, open_platform
from control_plane.records.sqlite import open_sqlite
from sharing.directory_store import DirectoryStore
from tests.control_plane import databases
from workflows.job import Builtin, JobSpec, Output, Partitioned, Runtime

MEMORY = Path("/dev/shm")
RULES = Rules(interval_s=0.01, retry_first_s=0.01, retry_longest_s=0.02)


def job_spec(**changes: object) -> JobSpec:
    parts: dict[str, object] = {
        "name": "digits",
        "program": Builtin(name="digits-mlp"),
        "data": Partitioned(dataset="digits", sites=4),
        "runtime": Runtime(kind="native"),
        "rounds": 3,
        "output": Output(),
    }
    return JobSpec(**{**parts, **changes})  # type: ignore[arg-type]


@dataclass
class Clock:
    """Stands still until it is put on."""

    now: datetime = datetime(2026, 11, 21, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def empty_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with all tables and nothing in them, to be copied."""
    folder = tmp_path_factory.mktemp("records")
    open_sqlite(folder / "foedus.db").close()
    return folder


@pytest.fixture(scope="session")
def tables() -> Iterator[str | None]:
    """URL of a database with all tables, where the tests run on PostgreSQL; else None."""
    with databases.new_database() as url:
        if url is not None:
            databases.open_records(Path(), url).close()
        yield url


@pytest.fixture
def database_url(tables: str | None) -> str | None:
    """URL of a database with nothing in its tables, where the tests run on PostgreSQL."""
    databases.empty(tables)
    return tables


@pytest.fixture
def data_folder(empty_records: Path) -> Iterator[Path]:
    """A data folder, in memory where that can be: these tests would mostly wait for the disk."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(shutil.copytree(empty_records, Path(folder) / "data"))


@pytest.fixture
async def platform(data_folder: Path, database_url: str | None) -> AsyncIterator[Platform]:
    store = DirectoryStore(data_folder / "objects")
    async with open_platform(
        folder=data_folder, store=store, rules=RULES, database_url=database_url
    ) as platform:
        yield platform


@dataclass(frozen=True)
class People:
    """Callers of three organisations."""

    admin: Principal
    token: str
    add: Callable[..., Awaitable[Principal]]


@pytest.fixture
async def people(platform: Platform) -> People:
    token = await bootstrap(platform)
    assert token is not None
    admin = await platform.identity.authenticate(token)
    organisations = {"home"}

    async def add(organisation: str, name: str, *roles: Role) -> Principal:
        if organisation not in organisations:
            await add_organisation(platform, admin, NewOrganisation(name=organisation))
            organisations.add(organisation)
        user = await add_user(
            platform, admin, NewUser(name=name, organisation=organisation, roles=roles)
        )
        made = await add_token(platform, admin, NewToken(user=user.id))
        assert made.secret is not None
        return await platform.identity.authenticate(made.secret)

    return People(admin, token, add)


@pytest.fixture
def admin(people: People) -> Principal:
    return people.admin
