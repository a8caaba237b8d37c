"""``python -m control_plane migrate``: tables are brought up to date, and nothing else happens."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from control_plane.data_folder import claimed
from control_plane.migrations import HEAD
from tests.clients.cli_process import environment


def control_plane(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "control_plane", *words],
        env=environment(folder, FOEDUS_DATA=str(folder / "data")),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_empty_folder_gets_the_newest_tables_and_nothing_more(tmp_path: Path) -> None:
    for _ in range(2):
        ended = control_plane(tmp_path, "migrate")
        assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr

    with sqlite3.connect(tmp_path / "data" / "foedus.db") as records:
        assert records.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]
        assert records.execute("SELECT count(*) FROM organisation").fetchall() == [(0,)]
    records.close()
    assert not (tmp_path / "data" / "endpoint").exists()


def test_tables_of_a_running_server_are_left_alone(tmp_path: Path) -> None:
    with claimed(tmp_path / "data"):
        ended = control_plane(tmp_path, "migrate")

    assert ended.returncode == 3
    assert "in use by another server" in ended.stderr


def test_records_that_cannot_be_opened_are_told(tmp_path: Path) -> None:
    (tmp_path / "data" / "foedus.db").mkdir(parents=True)

    ended = control_plane(tmp_path, "migrate")

    assert ended.returncode == 1
    assert "the database did not answer" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("words", [("migrat",), ("migrate", "now")], ids=" ".join)
def test_other_words_are_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    ended = control_plane(tmp_path, *words)

    assert ended.returncode == 2
    assert (
        ended.stderr
        == "foedus: usage: python -m control_plane [migrate | backup TO | restore FROM]\n"
    )
    assert not (tmp_path / "data").exists()
