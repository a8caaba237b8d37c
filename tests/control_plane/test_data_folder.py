from __future__ import annotations

import stat
from pathlib import Path

import pytest

from control_plane.data_folder import FolderInUse, claimed, write_private


def test_a_folder_is_one_servers_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "data"

    with claimed(folder), pytest.raises(FolderInUse, match="FOEDUS_DATA"), claimed(folder):
        pass

    with claimed(folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_private_file_is_replaced_whole_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "endpoint"
    path.write_text("old")
    path.chmod(0o644)

    write_private(path, b"new")

    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["endpoint"]
