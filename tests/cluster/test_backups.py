"""Backups of a platform whose records are in PostgreSQL and whose objects are in a bucket."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest

from clients.sdk import Foedus
from control_plane.backups import MANIFEST, BackupManifest
from sharing.object_store import digest_of_file
from sharing.s3_bucket import Address
from tests.clients.cli_process import environment
from tests.cluster import minio_server
from tests.cluster.test_s3_platform import settings
from tests.control_plane.databases import new_database
from tests.e2e.jobs import small
from tests.e2e.real_server import running

pytestmark = pytest.mark.timeout(300)
ROUNDS = 30
WAIT_S = 120.0
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def other_url(postgres: str) -> Iterator[str]:
    with new_database(postgres) as url:
        assert url is not None
        yield url


@pytest.fixture
def other_bucket(s3: Address) -> Iterator[str]:
    name = f"foedus-test-other-{os.getpid()}-{time.time_ns() % 10**9}"
    yield name
    minio_server.empty(s3, name)


def start(folder: Path, deed: str, backup: Path, given: dict[str, str]) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "control_plane", deed, str(backup)],
        env=environment(folder, FOEDUS_DATA=str(folder / "data"), **given),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(folder: Path, deed: str, backup: Path, given: dict[str, str]) -> tuple[int, str]:
    process = start(folder, deed, backup, given)
    out, err = process.communicate(timeout=120)
    return process.returncode, (out + err).decode()


def model_digest(client: Foedus, job: str) -> str:
    return client.models.get(client.job(job).wait(WAIT_S).model or "").digest


def contents_of(url: str) -> dict[str, list[tuple[object, ...]]]:
    """Every row of what cannot change by itself."""
    names = ("organisation", "user_account", "token", "secret", "program", "model", "artifact")
    with psycopg.connect(url) as connection:
        return {
            name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr)  # type: ignore[call-overload]
            for name in names
        }


def test_a_platform_is_restored_from_servers_to_servers_and_to_one_folder(
    s3: Address,
    bucket: str,
    other_bucket: str,
    records_url: str,
    other_url: str,
    tmp_path: Path,
) -> None:
    home, backup = tmp_path / "home", tmp_path / "backup"
    given = {"FOEDUS_DATABASE_URL": records_url, **settings(s3, bucket, tmp_path)}
    with running(home, **given) as server, server.client() as client:
        over = client.submit(small(client, "over"))
        finished = model_digest(client, over.id)
        midway = client.submit(small(client, "midway", ROUNDS))
        for done in midway.rounds(timeout_s=WAIT_S):
            if done.number >= 3:
                break
        began = time.monotonic()
        code, told = run(home, "backup", backup, given)
        seconds = time.monotonic() - began
        assert code == 0, told
        assert not midway.refresh().phase.is_final
        undisturbed = model_digest(client, midway.id)
        before = contents_of(records_url)
    manifest = msgspec.json.decode((backup / MANIFEST).read_bytes(), type=BackupManifest)
    sys.stderr.write(f"\nbackup of {manifest.objects} objects in {seconds:.1f} s: {told}")
    assert manifest.missing == ()
    hidden = (server.token.encode(), s3.secret_key.encode())
    files = [path.read_bytes() for path in backup.rglob("*") if path.is_file()]
    assert not [word for word in hidden for file in files if word in file]

    servers = {"FOEDUS_DATABASE_URL": other_url, **settings(s3, other_bucket, tmp_path)}
    for name, elsewhere in (("servers", servers), ("folder", {})):
        place = tmp_path / name
        code, told = run(place, "restore", backup, elsewhere)
        assert code == 0, told
        assert f"{manifest.objects} objects" in told
        again, said = run(place, "restore", backup, elsewhere)
        assert again == 1
        assert "has records already" in said
        shutil.copy(home / "token", place / "token")
        with running(place, **elsewhere) as server, server.client() as client:
            assert model_digest(client, over.id) == finished
            model = client.models.get(client.job(over.id).refresh().model or "")
            pulled = client.models.pull(model.id, "safetensors", place)
            assert digest_of_file(pulled) == finished
            assert client.admin.verify_audit().is_whole
            assert model_digest(client, midway.id) == undisturbed
            assert client.job(midway.id).refresh().attempt == 2
            events = [event.id for event in client.job(midway.id).events(timeout_s=WAIT_S)]
            assert events == list(range(1, len(events) + 1))
    after = contents_of(other_url)
    for table in ("organisation", "user_account", "token", "secret", "program"):
        strip = {row[0]: row[:3] for row in after[table]}
        assert {row[0]: row[:3] for row in before[table]} == strip, table
    [sealed] = backup.glob("database-*.db")
    assert sealed.stat().st_mode & 0o777 == 0o600


def test_the_records_of_one_folder_are_restored_into_postgres(
    records_url: str, tmp_path: Path
) -> None:
    home, place, backup = tmp_path / "home", tmp_path / "place", tmp_path / "backup"
    with running(home) as server, server.client() as client:
        job = client.submit(small(client, "moved"))
        expected = model_digest(client, job.id)
    assert run(home, "backup", backup, {})[0] == 0

    code, told = run(place, "restore", backup, {"FOEDUS_DATABASE_URL": records_url})

    assert code == 0, told
    shutil.copy(home / "token", place / "token")
    with (
        running(place, FOEDUS_DATABASE_URL=records_url) as server,
        server.client() as client,
    ):
        assert model_digest(client, job.id) == expected
        assert client.admin.verify_audit().is_whole
        assert model_digest(client, client.submit(small(client, "next")).id)


@pytest.mark.parametrize("deed", ["backup", "restore"])
def test_what_was_cut_short_at_any_moment_is_nothing_and_is_done_again(
    s3: Address,
    bucket: str,
    other_bucket: str,
    records_url: str,
    other_url: str,
    tmp_path: Path,
    deed: str,
) -> None:
    home, place, backup = tmp_path / "home", tmp_path / "place", tmp_path / "backup"
    given = {"FOEDUS_DATABASE_URL": records_url, **settings(s3, bucket, tmp_path)}
    servers = {"FOEDUS_DATABASE_URL": other_url, **settings(s3, other_bucket, tmp_path)}
    with running(home, **given) as server, server.client() as client:
        job = client.submit(small(client, "kept"))
        expected = model_digest(client, job.id)
        whole = run(home, "backup", tmp_path / "whole", given)
        assert whole[0] == 0, whole
        cut = 0
        for wait_s in (0.8, 1.2, 1.4, 1.5, 1.6, 1.7, 1.8, 2.0):
            shutil.rmtree(backup, ignore_errors=True)
            process = (
                start(home, "backup", backup, given)
                if deed == "backup"
                else start(place, "restore", tmp_path / "whole", servers)
            )
            time.sleep(wait_s)
            process.send_signal(signal.SIGTERM if cut % 3 == 2 else signal.SIGKILL)
            _, said = process.communicate(timeout=60)
            if (backup / MANIFEST).exists() or has_rows(other_url):
                break  # it was done, or all but
            cut += 1
            assert b"Traceback" not in said, said.decode()
            if deed == "backup":
                assert run(place, "restore", backup, servers)[0] == 1
        assert cut > 0
        if deed == "backup":
            assert run(home, "backup", backup, given)[0] == 0
            shutil.rmtree(tmp_path / "whole")
            shutil.copytree(backup, tmp_path / "whole")
    sys.stderr.write(f"\n{deed}: cut short {cut} times\n")
    if not has_rows(other_url):
        code, told = run(place, "restore", tmp_path / "whole", servers)
        assert code == 0, told
    shutil.copy(home / "token", place / "token")
    with running(place, **servers) as server, server.client() as client:
        assert model_digest(client, job.id) == expected


def has_rows(url: str) -> bool:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT to_regclass('organisation')").fetchone()
        if found == (None,):
            return False
        return connection.execute("SELECT count(*) FROM organisation").fetchone() != (0,)


def test_a_backup_is_of_one_moment_however_long_it_takes_to_read(
    records_url: str, tmp_path: Path
) -> None:
    """Rows that are written between two tables are in neither, or in both."""
    from control_plane.records import copies
    from control_plane.records.postgres import open_postgres, reading_one_moment

    open_postgres(records_url).close()
    with reading_one_moment(records_url) as moment:
        before = copies.contents(moment)
        with psycopg.connect(records_url, autocommit=True) as writer:
            writer.execute("INSERT INTO organisation VALUES ('o', 'late', now())")
            writer.execute("INSERT INTO secret (name, value) VALUES ('s', 'x')")

        assert copies.contents(moment) == before
        with pytest.raises(Exception, match="read-only"):
            moment.exec_driver_sql("DELETE FROM secret")


def test_text_with_nul_and_numbers_that_are_none_go_over_and_come_back(
    records_url: str, tmp_path: Path
) -> None:
    from control_plane.backups import _copy_postgres, _fill
    from control_plane.records.postgres import open_postgres
    from control_plane.records.sqlite import open_sqlite

    draft = tmp_path / "a.db"
    open_sqlite(draft).close()
    with sqlite3.connect(draft) as rows:
        row = ("o", "a\0b", "2026-11-21 00:00:00.000001")
        rows.execute("INSERT INTO organisation VALUES (?, ?, ?, NULL)", row)
        rows.execute("INSERT INTO secret (name, value) VALUES ('s', x'00ff')")
        rows.execute("UPDATE audit_head SET number = 0")
    rows.close()

    _fill(draft, records_url)
    back = tmp_path / "b.db"
    _copy_postgres(records_url, back)

    with sqlite3.connect(back) as rows:
        [(name, at)] = rows.execute("SELECT name, created_at FROM organisation").fetchall()
        [(value,)] = rows.execute("SELECT value FROM secret").fetchall()
    rows.close()
    assert name == "a\N{SYMBOL FOR NULL}b"
    assert at == "2026-11-21 00:00:00.000001"
    assert value == b"\0\xff"
    open_postgres(records_url).close()
