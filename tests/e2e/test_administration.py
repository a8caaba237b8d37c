"""An administrator's day: status, quotas, the audit log, and a backup in the middle of a run."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import httpx

from control_plane.backups import Place, back_up
from control_plane.platform import utc_now
from sharing.directory_store import DirectoryStore
from tests.clients.cli_process import foedus
from tests.e2e.jobs import small
from tests.e2e.real_server import RealServer, running

ROUNDS = 20
WAIT_S = 120.0


def told_by(home: Path, *arguments: str, **settings: str) -> str:
    done = foedus(*arguments, home=home, env=settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_administrator_sees_sets_and_verifies(server: RealServer, home: Path) -> None:
    use = json.loads(
        told_by(home, "admin", "quota", "set", "home", "--storage-mb", "512", "--json")
    )
    status = json.loads(told_by(home, "admin", "status", "--json"))
    newest = json.loads(told_by(home, "admin", "audit", "--since", "2026-01-01", "--json"))
    verified = told_by(home, "admin", "audit", "verify").split()[-1]

    assert use["quota"]["storage_bytes"] == 512 << 20
    assert status["organisations"][0]["quota"] == use["quota"]
    assert newest[0]["action"] == "quota.set"
    assert told_by(home, "admin", "audit", "verify", "--known", verified).startswith(
        verified.partition("=")[0]
    )
    assert "home" in told_by(home, "admin", "status")
    assert "512.0 MiB" in told_by(home, "admin", "quota", "show")
    told_by(home, "admin", "quota", "reset", "home")


def test_keys_are_rotated_while_a_run_and_a_list_are_under_way(
    server: RealServer, home: Path
) -> None:
    with server.client() as client:
        for i in range(2):
            client.submit(small(client, f"before-{i}", 1)).wait(WAIT_S)
        job = client.submit(small(client, "in-flight", ROUNDS))
        next(iter(job.rounds(timeout_s=WAIT_S)))
        headers = {"Authorization": f"Bearer {server.token}"}
        with httpx.Client(base_url=server.url, headers=headers, trust_env=False) as http:
            cursor = http.get("/v1/jobs", params={"limit": 1}).json()["next"]

            told_by(home, "admin", "keys", "rotate", "cursors")
            opened = http.get("/v1/jobs", params={"limit": 1, "cursor": cursor})
            told_by(home, "admin", "keys", "rotate", "cursors", "--at-once")
            refused = http.get("/v1/jobs", params={"limit": 1, "cursor": cursor})

        assert (opened.status_code, refused.status_code) == (200, 400)
        assert len(json.loads(told_by(home, "admin", "keys", "--json"))) == 1
        assert "seals" in told_by(home, "admin", "keys")
        ended = job.wait(WAIT_S)
        assert (ended.attempt, ended.round) == (1, ROUNDS)
        again = client.submit(small(client, "in-flight", ROUNDS)).wait(WAIT_S)
        digests = {client.models.get(one.model or "").digest for one in (ended, again)}
    assert len(digests) == 1
    assert "key.rotate" in told_by(home, "admin", "audit")
    assert foedus("admin", "keys", "rotate", "nothing", home=home).returncode != 0


def test_a_run_that_was_backed_up_midway_ends_elsewhere_with_the_same_model(
    server: RealServer, tmp_path: Path
) -> None:
    place = Place(folder=server.data, store=DirectoryStore(server.data))
    backup, elsewhere = tmp_path / "backup", tmp_path / "elsewhere"
    told_by(tmp_path, "admin", "backup", str(backup), FOEDUS_DATA=str(server.data))

    with server.client() as client:
        job = client.submit(small(client, "midway", ROUNDS))
        for done in job.rounds(timeout_s=WAIT_S):
            if done.number >= 3:
                break
        midway = asyncio.run(back_up(place, backup, utc_now()))
        undisturbed = client.models.get(job.wait(WAIT_S).model or "").digest

    restored = told_by(
        tmp_path, "admin", "restore", str(backup), FOEDUS_DATA=str(elsewhere / "data")
    )
    shutil.copy(server.data.parent / "token", elsewhere / "token")
    with running(elsewhere) as other, other.client() as client:
        resumed = client.job(job.id)
        ended = resumed.wait(WAIT_S)
        events = list(resumed.events(timeout_s=WAIT_S))
        digest = client.models.get(ended.model or "").digest

    assert f"{midway.objects} objects" in restored
    assert digest == undisturbed
    assert ended.attempt == 2
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    first = next(e for e in events if e.kind == "round.started" and e.attempt == 2)
    assert first.fields["round"] > 3
