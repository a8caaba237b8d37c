"""An attempt on this machine: what runs it, whom it tells, and where it lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workflows.attempts import engine_at
from tests.workflows.control_plane_double import ControlPlaneDouble
from workflows.local_engine import LocalEngine


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlaneDouble]:
    plane = ControlPlaneDouble(tmp_path / "endpoint")
    plane.start()
    yield plane
    plane.stop()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LocalEngine]:
    with engine_at(tmp_path / "attempts", tmp_path / "endpoint") as engine:
        yield engine


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "attempts" / "job-1" / "1"
