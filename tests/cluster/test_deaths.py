"""A replica is killed, or hangs, at every step of the reconciler; the other one ends the run."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from control_plane.platform import Platform, open_platform
from control_plane.records.tables import JOB, LEASE
from sharing.directory_store import DirectoryStore
from tests.cluster.faults import Faults
from tests.cluster.mortal_replica import DIE_AT, PASSED
from tests.cluster.replicas import JOB as ANY_JOB
from tests.cluster.replicas import Facts, Player, Replica, facts_of
from tests.control_plane.scripted_engine import Wrapper
from workflows.engine import Activity
from workflows.run import Phase

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(900)]
LEASE_S = 1
"""The least that the settings allow."""
ROUNDS = 3
RUNS = 16
LOST_AFTER = 9
"""Requests of the first attempt: it has then told of a round."""


class Unlucky(Player):
    """Loses the first attempt of every job.

    Attributes:
        is_held: Whether second attempts halt once they have told of a round.
    """

    def __init__(self, platform: Platform, folder: Path) -> None:
        super().__init__(platform, folder)
        self.is_held = False
        self._played: Counter[str] = Counter()

    async def _play(self, name: str, wrapper: Wrapper) -> None:
        self._played[name] += 1
        if name.endswith(".1") and self._played[name] > LOST_AFTER:
            wrapper.activity = Activity.LOST
        if not (self.is_held and name.endswith(".2") and self._played[name] > LOST_AFTER):
            await super()._play(name, wrapper)


@dataclass
class Stage:
    """Where stories are told: a platform to look from, and a replica that is woken when needed."""

    folder: Path
    url: str
    platform: Platform
    other: Replica
    other_url: str
    client: httpx.AsyncClient
    player: Unlucky
    playing: asyncio.Task[None]
    num_replicas: int = 0
    recovered_s: list[float] = field(default_factory=list)

    async def tell(self, *, cancels: bool, die_at: str = "") -> tuple[str, list[str]]:
        """One run to its end; its id, and the steps that the replica passed which began it."""
        self.num_replicas += 1
        self.player.is_held = cancels
        passed = self.folder / f"passed-{self.num_replicas}"
        more = {DIE_AT: die_at, PASSED: str(passed), "FOEDUS_LEASE_S": str(LEASE_S)}
        self.other.send(signal.SIGSTOP)
        first = Replica(self.folder, f"replica-{self.num_replicas}", self.url, **more)
        try:
            first_url = await asyncio.to_thread(first.ready)
            passed.unlink(missing_ok=True)
            job, began = await self.submit(first_url), time.monotonic()
            wants_end = cancels
            while first.exit_code is None:
                assert time.monotonic() < began + 60, f"{die_at} was not passed"
                if await self.is_settled(job):  # what follows that on record, follows at once
                    await asyncio.sleep(1)
                    break
                if wants_end and job and _is_held(await self.row(job)):
                    wants_end = not await self._cancel(first_url, job)
                await asyncio.sleep(0.01)
            died, holder = time.monotonic(), await self.holder(job)
            is_dead = first.exit_code is not None
            self.other.send(signal.SIGCONT)
            job = job or await self.submit(self.other_url)
            while await self.holder(job) == holder is not None:
                assert time.monotonic() < died + 60, f"{die_at}: nobody takes it on"
                await asyncio.sleep(0.01)
            if is_dead:
                assert first.exit_code == -signal.SIGKILL
                self.recovered_s.append(time.monotonic() - died)
            while not await self.is_settled(job):
                assert not self.playing.done(), self.playing.exception()
                row = await self.row(job)
                assert time.monotonic() < died + 60, f"{die_at}: {row.phase}, {row.waits_for}"
                if wants_end and _is_held(row):
                    wants_end = not await self._cancel(self.other_url, job)
                await asyncio.sleep(0.01)
        finally:
            self.other.send(signal.SIGCONT)
            first.end()
        return job, passed.read_text().splitlines() if passed.exists() else []

    async def submit(self, url: str) -> str:
        """Its id; nothing if the replica died over it."""
        headers = {"Idempotency-Key": f"the-key-{self.num_replicas:04}"}
        job = {**ANY_JOB, "rounds": ROUNDS}
        try:
            answer = await self.client.post(f"{url}/v1/jobs", json=job, headers=headers)
        except httpx.TransportError:
            return ""
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def _cancel(self, url: str, job: str) -> bool:
        """Whether it is answered."""
        try:
            answer = await self.client.patch(f"{url}/v1/jobs/{job}", json={"desired": "cancelled"})
        except httpx.TransportError:
            return False
        assert answer.is_success, answer.text
        return True

    async def is_settled(self, job: str) -> bool:
        return bool(job) and bool((await self.row(job)).settled)

    async def holder(self, job: str) -> str | None:
        """Who moves it on; None if nobody need."""
        found = await self.platform.database.rows(select(LEASE.c.holder).where(LEASE.c.job == job))
        return found[0].holder if found else None

    async def until_one_holds_all(self, jobs: list[str]) -> float:
        """When that was; of those that still are to be moved on."""
        holders = {"one", "another"}
        while len(holders) > 1:
            await asyncio.sleep(0.01)
            holders = {holder for job in jobs if (holder := await self.holder(job)) is not None}
        return time.monotonic()

    async def row(self, job: str) -> Any:
        [row] = await self.platform.database.rows(select(JOB).where(JOB.c.id == job))
        return row

    async def facts(self, job: str) -> Facts:
        """What is on record of a run, and what the engine was handed."""
        attempts = (path.name for path in (self.folder / "engine").glob(f"{job}.?"))
        handed = {("handed over", name.rpartition(".")[2]) for name in attempts}
        return await facts_of(self.platform, job) | handed


def _is_held(row: Any) -> bool:
    return bool(row.attempt == 2 and row.phase == Phase.RUNNING)


@pytest.fixture
async def stage(tmp_path: Path, records_url: str) -> AsyncIterator[Stage]:
    other = Replica(tmp_path, "other", records_url, FOEDUS_LEASE_S=str(LEASE_S))
    try:
        other_url = await asyncio.to_thread(other.ready)
        token = (tmp_path / "token").read_text()
        store = DirectoryStore(tmp_path / "other")
        async with (
            open_platform(folder=tmp_path / "c", store=store, database_url=records_url) as platform,
            httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=30) as client,
        ):
            player = Unlucky(platform, tmp_path / "engine")
            playing = asyncio.create_task(player.run())
            yield Stage(tmp_path, records_url, platform, other, other_url, client, player, playing)
            playing.cancel()
    finally:
        other.end()


async def test_wherever_a_replica_dies_the_other_ends_the_run_as_if_nothing_were(
    stage: Stage, faults: Faults
) -> None:
    told: set[str] = set()
    works: set[str] = set()
    lost = 0
    for cancels in (False, True):
        job, steps = await stage.tell(cancels=cancels)
        undisturbed = await stage.facts(job)
        for step in dict.fromkeys(steps):
            if step in told:
                continue
            told.add(step)
            deaths = len(stage.recovered_s)
            job, _ = await stage.tell(cancels=cancels, die_at=step)
            if len(stage.recovered_s) == deaths:
                continue  # checkpoints are given up earlier or later, a step more or less
            works.add(step.split()[0].partition(".")[2])
            if cancels:  # it may have got a little further than another
                assert (await stage.row(job)).phase == "cancelled", step
                continue
            found = await stage.facts(job)
            lost += len(undisturbed - found)
            assert found == undisturbed, step

    assert works >= {
        *("_submit", "take", "_admit", "_begin", "_record_loss", "_compose_transcripts"),
        *("_finalise", "_settle", "_act", "_close"),
    }
    faults.record(
        f"kill -9 of a replica at each of {len(stage.recovered_s)} steps of the reconciler",
        "the same on record as undisturbed, or cancelled as asked",
        max(stage.recovered_s),
        within_s=LEASE_S + 5,
        runs=len(stage.recovered_s),
        lost=lost,
    )


async def test_a_replica_that_hangs_and_wakes_up_does_nothing_twice(
    stage: Stage, faults: Faults
) -> None:
    job, _ = await stage.tell(cancels=False)
    undisturbed = await stage.facts(job)
    woken = Replica(stage.folder, "woken", stage.url, FOEDUS_LEASE_S=str(LEASE_S))
    try:
        urls = [await asyncio.to_thread(woken.ready), stage.other_url]
        jobs = []
        for i in range(RUNS):
            stage.num_replicas += 1
            jobs.append(await stage.submit(urls[i % 2]))
        holders = [await stage.holder(job) for job in jobs]
        woken.send(signal.SIGSTOP)
        since = time.monotonic()
        taken_s = await stage.until_one_holds_all(jobs) - since
        woken.send(signal.SIGCONT)
        for job in jobs:
            while not await stage.is_settled(job):
                assert time.monotonic() < since + 60
                await asyncio.sleep(0.02)
    finally:
        woken.end()

    found = [await stage.facts(job) for job in jobs]
    assert len(set(holders)) > 1
    faults.record(
        "One of two replicas hangs, and wakes up when the other has taken its runs",
        "the same on record as undisturbed",
        taken_s,
        within_s=LEASE_S + 5,
        runs=RUNS,
        lost=sum(len(undisturbed - one) for one in found),
    )
    assert set(found) == {undisturbed}
