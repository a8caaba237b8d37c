"""Two control-plane processes over one PostgreSQL and one engine, of which one is killed."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from control_plane.platform import Platform, open_platform
from control_plane.records.tables import ATTEMPT, EVENT, LEASE, MODEL
from control_plane.records.tables import JOB as JOB_TABLE
from sharing.directory_store import DirectoryStore
from tests.cluster.faults import Faults
from tests.cluster.replicas import JOB, LEASE_S, MAX_RUNNING, Player, Replica

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]
JOBS = 100


@pytest.fixture
def replicas(tmp_path: Path, records_url: str) -> Iterator[list[Replica]]:
    started = [Replica(tmp_path, name, records_url) for name in ("a", "b")]
    yield started
    for replica in started:
        replica.end()


async def test_two_replicas_share_the_work_and_one_takes_on_what_the_other_leaves(
    replicas: list[Replica], tmp_path: Path, records_url: str, faults: Faults
) -> None:
    urls = [await asyncio.to_thread(replica.ready) for replica in replicas]
    token = (tmp_path / "token").read_text()
    store = DirectoryStore(tmp_path / "a")
    async with (
        open_platform(folder=tmp_path / "c", store=store, database_url=records_url) as platform,
        httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=30) as client,
    ):
        player = Player(platform, tmp_path / "engine")
        playing = asyncio.create_task(player.run())

        async def submit(i: int) -> str:
            headers = {"Idempotency-Key": f"the-key-{i:04}"}
            answers = [
                await client.post(f"{url}/v1/jobs", json=JOB, headers=headers) for url in urls
            ]
            assert [answer.status_code for answer in answers] == [202, 202], answers[0].text
            assert answers[0].json()["id"] == answers[1].json()["id"]
            return str(answers[0].json()["id"])

        began = time.monotonic()
        jobs = [await submit(i) for i in range(JOBS)]
        submitted_s = time.monotonic() - began
        shares = await _count(platform, select(LEASE.c.holder).where(LEASE.c.holder != ""))
        assert len(shares) == 2
        while await _num_settled(platform) < JOBS // 4:
            assert not playing.done(), playing.exception()
            await asyncio.sleep(0.05)
        # Who is killed: the one of whom runs are under way.
        replicas[0].send(signal.SIGKILL)
        killed = time.monotonic()
        left = await _count(platform, select(LEASE.c.holder).where(LEASE.c.holder != ""))
        taken_s = await _until_one_holder(platform, killed)
        while await _num_settled(platform) < JOBS:
            assert not playing.done(), playing.exception()
            await asyncio.sleep(0.05)
        whole_s = time.monotonic() - began
        playing.cancel()

        rows = await platform.database.rows(select(ATTEMPT.c.job, ATTEMPT.c.number))
        ends = await _count(platform, select(JOB_TABLE.c.phase))
        models = await platform.database.rows(select(MODEL.c.job).order_by(MODEL.c.job))
        starts = await _count(
            platform, select(EVENT.c.kind).where(EVENT.c.kind == "attempt.started")
        )
    sys.stderr.write(
        f"\n{JOBS} jobs: submitted (each twice) in {submitted_s:.1f} s, whole in {whole_s:.1f} s;"
        f" shares {sorted(shares.values())}, at the kill {sorted(left.values())}, taken over in"
        f" {taken_s:.1f} s (lease {LEASE_S} s); most at a time {player.most_running}\n"
    )
    faults.record(
        "kill -9 of one of two replicas, 20 runs under way at a time",
        f"{ends['succeeded']} succeeded, each in one attempt",
        taken_s,
        within_s=LEASE_S + 5,
        runs=JOBS,
        lost=JOBS - ends["succeeded"],
    )
    assert sorted((row.job, row.number) for row in rows) == [(job, 1) for job in sorted(jobs)]
    assert ends == {"succeeded": JOBS}
    assert [row.job for row in models] == sorted(jobs)
    assert starts == {"attempt.started": JOBS}
    assert sorted(player.wrappers) == sorted(f"{job}.1" for job in jobs)
    assert player.most_running <= MAX_RUNNING


async def _count(platform: Platform, query: Any) -> Counter[str]:
    return Counter(row[0] for row in await platform.database.rows(query))


async def _num_settled(platform: Platform) -> int:
    [row] = await platform.database.rows(
        select(func.count().label("jobs")).where(JOB_TABLE.c.settled.is_(True))
    )
    return int(row.jobs)


async def _until_one_holder(platform: Platform, since: float) -> float:
    """Seconds after which one replica holds every lease that anybody holds."""
    while True:
        held = select(LEASE.c.holder).where(LEASE.c.until > platform.database.clock)
        if len(await _count(platform, held)) < 2:
            return time.monotonic() - since
        await asyncio.sleep(0.05)
