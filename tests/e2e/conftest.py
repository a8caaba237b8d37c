from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.real_server import RealServer, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("server")
    with running(folder) as started:
        yield started


@pytest.fixture
def home(tmp_path: Path, server: RealServer) -> Path:
    """A home with a login in it."""
    from clients.settings import Login, write_login

    login = Login(server.url, server.token)
    write_login(tmp_path / ".config" / "foedus" / "credentials.json", login)
    return tmp_path
