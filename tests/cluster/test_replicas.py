"""Two control-plane processes over one PostgreSQL and one engine, of which one is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import func, select

from control_plane.data_folder import write_private
from control_plane.platform import Platform, open_platform
from control_plane.records.tables import ATTEMPT, EVENT, LEASE, MODEL
from control_plane.records.tables import JOB as JOB_TABLE
from sharing.directory_store import DirectoryStore
from tests.cluster.shared_engine import FOLDER, Submitted
from tests.control_plane.scripted_engine import Wrapper
from workflows.engine import Activity, Credentials, Observation

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]
ROOT = Path(__file__).parent.parent.parent
JOBS = 100
MAX_RUNNING = 20
LEASE_S = 3
JOB = {
    "name": "shared",
    "program": {"kind": "builtin", "name": "digits-mlp"},
    "data": {"kind": "partitioned", "dataset": "digits", "sites": 4},
    "runtime": {"kind": "native"},
    "rounds": 1,
}


class Replica:
    """A control plane as a process."""

    def __init__(self, folder: Path, name: str, url: str) -> None:
        data = folder / name
        data.mkdir()
        (data / "objects").symlink_to(folder / "objects")
        settings = {
            "FOEDUS_DATA": str(data),
            "FOEDUS_PORT": "0",
            "FOEDUS_DATABASE_URL": url,
            "FOEDUS_LEASE_S": str(LEASE_S),
            "FOEDUS_MAX_RUNNING": str(MAX_RUNNING),
            "FOEDUS_FIRST_TOKEN_FILE": str(folder / "token"),
            FOLDER: str(folder / "engine"),
        }
        self.log = (folder / f"{name}.log").open("w")
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.shared_engine"],
            cwd=ROOT,
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def ready(self) -> str:
        """Where it listens."""
        assert self.child.stdout is not None
        for line in self.child.stdout:
            if "listens at" in line:
                return line.split()[-1]
        raise AssertionError(Path(self.log.name).read_text())

    def end(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.communicate()
        self.log.close()


@pytest.fixture
def replicas(tmp_path: Path, records_url: str) -> Iterator[list[Replica]]:
    (tmp_path / "engine").mkdir()
    (tmp_path / "objects").mkdir()
    started = [Replica(tmp_path, name, records_url) for name in ("a", "b")]
    yield started
    for replica in started:
        replica.end()


class Player:
    """Plays all attempts that the engine was handed, over a platform of its own."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        self.platform = platform
        self.folder = folder
        self.wrappers: dict[str, Wrapper] = {}
        self.most_running = 0

    async def run(self) -> None:
        while True:
            for path in self.folder.iterdir():
                if path.name not in self.wrappers and path.suffix not in (".end", ".draft"):
                    found = msgspec.json.decode(path.read_bytes(), type=Submitted)
                    credentials = Credentials(url=found.url, token=found.token)
                    self.wrappers[path.name] = Wrapper(found.plan, credentials)
            running = {n: w for n, w in self.wrappers.items() if w.activity is Activity.RUNNING}
            self.most_running = max(self.most_running, len(running))
            await asyncio.gather(*(self._play(name, w) for name, w in running.items()))
            await asyncio.sleep(0.02)

    async def _play(self, name: str, wrapper: Wrapper) -> None:
        await wrapper.play(self.platform)
        if wrapper.activity is not Activity.RUNNING:
            end = Observation(activity=wrapper.activity, manifests=dict(wrapper.manifests))
            write_private(self.folder / f"{name}.end", msgspec.json.encode(end))


async def test_two_replicas_share_the_work_and_one_takes_on_what_the_other_leaves(
    replicas: list[Replica], tmp_path: Path, records_url: str
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
        replicas[0].child.send_signal(signal.SIGKILL)
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
    assert sorted((row.job, row.number) for row in rows) == [(job, 1) for job in sorted(jobs)]
    assert ends == {"succeeded": JOBS}
    assert [row.job for row in models] == sorted(jobs)
    assert starts == {"attempt.started": JOBS}
    assert sorted(player.wrappers) == sorted(f"{job}.1" for job in jobs)
    assert player.most_running <= MAX_RUNNING
    assert taken_s < LEASE_S + 5


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
