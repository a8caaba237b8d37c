"""The lab's services, started when a test needs them; nothing here is collected without a lab."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import pytest

from sharing.s3_bucket import Address
from tests.cluster import minio_server
from tests.cluster.faults import Faults
from tests.cluster.kubernetes import Kubernetes, Namespace, build_image, started
from tests.cluster.own_postgres import OwnPostgres
from tests.control_plane.databases import new_database

LAB = os.environ.get("FOEDUS_LAB", "")
MINIO = Path(os.environ.get("LAB_HOME") or Path.home() / ".cache" / "lab") / "bin" / "minio"

FAULTS = Faults()

collect_ignore_glob = [] if LAB else ["test_*.py"]


@pytest.fixture
def faults() -> Faults:
    """Takes what a fault did."""
    return FAULTS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FAULTS.suffered:
        terminalreporter.write_sep("=", "faults")
        for line in FAULTS.table():
            terminalreporter.write_line(line)
        if os.environ.get("CHAOS_KEEP"):
            FAULTS.keep()


def services(*names: str) -> Mapping[str, str]:
    """Start the lab's services of these names; their addresses and credentials."""
    up = Path(LAB) / "services" / "up"
    started = subprocess.run([up, *names], capture_output=True, text=True, check=True, timeout=300)
    words = shlex.split(Path(started.stdout.split()[-1]).read_text(), comments=True)
    return dict(word.split("=", 1) for word in words if "=" in word)


@pytest.fixture(scope="session")
def s3() -> Address:
    """The lab's MinIO, as its administrator."""
    return minio_server.address_in(services("minio"))


@pytest.fixture
def bucket(s3: Address) -> Iterator[str]:
    """Name of a bucket that is not there yet, and is gone afterwards."""
    name = f"foedus-test-{uuid4().hex[:12]}"
    yield name
    minio_server.empty(s3, name)


@pytest.fixture
def own_server(s3: Address, tmp_path: Path) -> Iterator[minio_server.Server]:
    """A MinIO that may be killed."""
    server = minio_server.Server(MINIO, tmp_path / "minio")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def postgres() -> str:
    """URL of the lab's PostgreSQL, where databases may be made."""
    return services("postgres")["LAB_POSTGRES_URL"]


@pytest.fixture
def own_postgres() -> Iterator[OwnPostgres]:
    """A PostgreSQL that may be killed."""
    with OwnPostgres() as server:
        yield server


@pytest.fixture
def records_url(postgres: str) -> Iterator[str]:
    """URL of a database that is empty, and gone afterwards."""
    with new_database(postgres) as url:
        assert url is not None
        yield url


@pytest.fixture(scope="session")
def lab() -> Path:
    return Path(LAB).resolve()


@pytest.fixture(scope="session")
def kubernetes(lab: Path) -> Kubernetes:
    """The lab's cluster with Argo."""
    return started(lab)


@pytest.fixture(scope="session")
def image(lab: Path, kubernetes: Kubernetes) -> str:
    """This checkout and its environment."""
    return build_image(lab)


@pytest.fixture
def namespace(kubernetes: Kubernetes) -> Iterator[Namespace]:
    """One of the test's own, set up as an administrator would."""
    namespace = kubernetes.make_namespace()
    yield namespace
    namespace.delete()
