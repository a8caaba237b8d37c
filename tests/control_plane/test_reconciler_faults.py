"""The control plane dies at every point there is, and the run ends as if it had not.

A fail point stands before and after each call that changes something behind a port (engine, store,
records). At each of them in one story or another the process "dies": the platform is thrown away
with all that it had in memory, and another is opened over what is on disk. The attempts live on, as
other processes do, and make a request again that was not answered.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from control_plane.accounts import bootstrap
from control_plane.admission import submit_job
from control_plane.jobs import change_desired, delete_job
from control_plane.platform import Platform, open_platform
from control_plane.reconciler import Reconciler
from control_plane.records.database import Database, Transaction
from control_plane.records.tables import ARTIFACT, EVENT, JOB, MODEL, ROUND
from sharing.directory_store import DirectoryStore
from sharing.object_store import Digest, ObjectStore, StoredObject
from tests.control_plane import databases
from tests.control_plane.conftest import MEMORY, RULES, job_spec
from tests.control_plane.scripted_engine import ScriptedEngine
from workflows.engine import Credentials, Observation, WorkflowEngine
from workflows.plan import Plan
from workflows.run import Desired

pytestmark = pytest.mark.anyio
MAX_LOOKS = 300
STRIDE = 28
"""Points between two deaths; with as many stories, each point is died at in one of them."""


class Died(BaseException):
    """The process was killed here."""


class FailPoints:
    """Counts points; dies at number ``at``, and then at every ``step``-th again (0: once)."""

    def __init__(self, at: int, step: int = 0) -> None:
        self.at = at
        self.step = step
        self.passed = 0
        self.deaths = 0

    def point(self) -> None:
        self.passed += 1
        if self.passed == self.at:
            self.at += self.step
            self.deaths += 1
            raise Died


class MortalStore:
    """A store at whose changes the process may die."""

    def __init__(self, inner: ObjectStore, points: FailPoints) -> None:
        self._inner = inner
        self._points = points

    async def put(
        self,
        chunks: AsyncIterable[bytes],
        *,
        expect: Digest | None = None,
        max_bytes: int | None = None,
    ) -> StoredObject:
        self._points.point()
        stored = await self._inner.put(chunks, expect=expect, max_bytes=max_bytes)
        self._points.point()
        return stored

    def get(
        self, digest: Digest, *, start: int = 0, stop: int | None = None
    ) -> AsyncIterator[bytes]:
        return self._inner.get(digest, start=start, stop=stop)

    async def stat(self, digest: Digest) -> StoredObject:
        return await self._inner.stat(digest)

    async def delete(self, digest: Digest) -> None:
        self._points.point()
        await self._inner.delete(digest)
        self._points.point()


class MortalEngine:
    """An engine at whose calls the process may die."""

    def __init__(self, inner: WorkflowEngine, points: FailPoints) -> None:
        self._inner = inner
        self._points = points
        self.abilities = inner.abilities

    async def submit(self, plan: Plan, credentials: Credentials) -> None:
        self._points.point()
        await self._inner.submit(plan, credentials)
        self._points.point()

    async def observe(self, job: str, attempt: int) -> Observation | None:
        return await self._inner.observe(job, attempt)

    async def cancel(self, job: str, attempt: int) -> None:
        self._points.point()
        await self._inner.cancel(job, attempt)
        self._points.point()

    async def remove(self, job: str, attempt: int) -> None:
        self._points.point()
        await self._inner.remove(job, attempt)
        self._points.point()


class MortalDatabase:
    """Records at whose commits the process may die."""

    def __init__(self, inner: Database, points: FailPoints) -> None:
        self._inner = inner
        self._points = points

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def rows(self, *arguments: Any) -> Any:
        return await self._inner.rows(*arguments)

    async def one_or_none(self, *arguments: Any) -> Any:
        return await self._inner.one_or_none(*arguments)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Transaction]:
        async with self._inner.writing() as transaction:
            yield transaction
            self._points.point()
        self._points.point()


@asynccontextmanager
async def mortal(
    folder: Path, points: FailPoints, database_url: str | None
) -> AsyncIterator[Platform]:
    store = MortalStore(DirectoryStore(folder / "objects"), points)
    async with open_platform(
        folder=folder, store=store, rules=RULES, database_url=database_url
    ) as platform:
        database: Any = MortalDatabase(platform.database, points)
        # Who comes next need not wait for the leases of who died; that has a test of its own.
        yield replace(platform, database=database, replica="the only one")


class Story:
    """One job from its submission to its end, told over as many processes as it takes."""

    def __init__(
        self, folder: Path, points: FailPoints, rounds: int, database_url: str | None
    ) -> None:
        self.folder = folder
        self.points = points
        self.rounds = rounds
        self.database_url = database_url
        self.engine = ScriptedEngine()
        self.cancel_at_round: int | None = None
        self.deletes = False
        self._token = ""
        self._job: str | None = None

    async def tell(self) -> dict[str, Any]:
        """Start a process, and another whenever one dies; what is on record in the end."""
        for _ in range(MAX_LOOKS):
            async with AsyncExitStack() as stack:
                platform = await stack.enter_async_context(
                    mortal(self.folder, self.points, self.database_url)
                )
                try:
                    await self._live(platform)
                except (Died, BaseExceptionGroup) as error:
                    if isinstance(error, BaseExceptionGroup) and error.split(Died)[1]:
                        raise
                    continue
                return await self._end(platform)
        raise AssertionError("it does not end")

    async def _live(self, platform: Platform) -> None:
        await bootstrap(platform, self._keep_token)
        who = await platform.identity.authenticate(self._token)
        reconciler = Reconciler(platform, MortalEngine(self.engine, self.points), lambda: "here")
        # Whoever submits repeats it with the same key until it is answered.
        if self._job is None:
            spec = job_spec(rounds=self.rounds)
            self._job = (await submit_job(platform, who, spec, "the-same-key")).id
        for _ in range(MAX_LOOKS):
            row = await self._row(platform)
            if row is None:
                return
            if row.settled:
                if not self.deletes:
                    return
                await delete_job(platform, who, self._job)
                continue
            if row.round == self.cancel_at_round and row.desired != Desired.CANCELLED:
                await change_desired(platform, who, self._job, Desired.CANCELLED)
            await self.engine.play(platform)
            await reconciler.look()
            await asyncio.sleep(0)
        raise AssertionError(f"the job is still {row.phase}, waiting for {row.waits_for}")

    def _keep_token(self, token: str) -> None:
        self._token = token

    async def _row(self, platform: Platform) -> Any:
        return await platform.database.one_or_none(select(JOB).where(JOB.c.id == self._job))

    async def _end(self, platform: Platform) -> dict[str, Any]:
        row = await self._row(platform)
        rounds = await platform.database.rows(
            select(ROUND.c.number, ROUND.c.model, ROUND.c.checkpoint).order_by(ROUND.c.number)
        )
        events = await platform.database.rows(select(EVENT).order_by(EVENT.c.id))
        artifacts = await platform.database.rows(
            select(ARTIFACT.c.name, ARTIFACT.c.digest).order_by(ARTIFACT.c.name)
        )
        models = await platform.database.rows(select(MODEL.c.digest, MODEL.c.metrics))
        objects = [p.name for p in self.folder.glob("objects/objects/*/*")]
        return {
            "job": row and (row.phase, row.round, row.attempt, row.metrics, row.cause),
            "rounds": [tuple(r) for r in rounds],
            "events": [(e.id, e.kind, e.attempt, e.step, e.number) for e in events],
            # The model's card names the job, whose id is another in each story.
            "artifacts": [(a.name, a.digest) for a in artifacts if a.name != "model.json"],
            "models": [tuple(m) for m in models],
            "objects": len(objects),
            "left with the engine": list(self.engine.wrappers),
            "started": sorted(n for (_, n), times in self.engine.started.items() if times == 1),
        }


@dataclass(frozen=True)
class Records:
    """Tables with nothing in them, in a folder or in a database."""

    folder: Path
    database_url: str | None


@pytest.fixture
def records(empty_records: Path, database_url: str | None) -> Records:
    return Records(empty_records, database_url)


@asynccontextmanager
async def a_story(records: Records, points: FailPoints, rounds: int) -> AsyncIterator[Story]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        shutil.copytree(records.folder, folder, dirs_exist_ok=True)
        databases.empty(records.database_url)
        yield Story(Path(folder), points, rounds, records.database_url)


@pytest.mark.parametrize("first", [range(1, 15), range(15, STRIDE + 1)], ids=["early", "late"])
async def test_a_run_ends_the_same_wherever_the_control_plane_dies(
    records: Records, first: range
) -> None:
    async with a_story(records, FailPoints(0), rounds=1) as story:
        undisturbed = await story.tell()

    for at in first:
        async with a_story(records, FailPoints(at, STRIDE), rounds=1) as story:
            assert await story.tell() == undisturbed, f"dying at point {at} and every {STRIDE}"
            assert story.points.deaths >= 2

    assert undisturbed["job"][0] == "succeeded"


@pytest.mark.parametrize("offset", range(1, 12, 3))
async def test_a_lost_attempt_is_followed_however_often_the_control_plane_dies(
    records: Records, offset: int
) -> None:
    ends = []
    for points in (FailPoints(0), FailPoints(offset, step=11)):
        async with a_story(records, points, rounds=2) as story:
            story.engine.lose = {1: 8}
            ends.append(await story.tell())

    assert points.deaths >= 10
    assert ends[0]["job"][:3] == ("succeeded", 2, 2)
    assert ends[1] == ends[0]


@pytest.mark.parametrize("offset", range(1, 8, 3))
async def test_a_cancelled_run_is_cleared_away_however_often_the_control_plane_dies(
    records: Records, offset: int
) -> None:
    points = FailPoints(offset, step=7)
    async with a_story(records, points, rounds=2) as story:
        story.cancel_at_round = 1
        end = await story.tell()

    assert points.deaths >= 4
    assert end["job"][0] == "cancelled"
    assert (end["left with the engine"], end["artifacts"], end["models"]) == ([], [], [])
    kinds = [kind for _, kind, *_ in end["events"]]
    assert kinds.count("cancel.requested") == 1
    assert kinds[-1] == "run.closed"
    assert [id_ for id_, *_ in end["events"]] == list(range(1, len(kinds) + 1))


@pytest.mark.parametrize("offset", range(1, 12, 3))
async def test_a_deletion_goes_on_however_often_the_control_plane_dies(
    records: Records, offset: int
) -> None:
    points = FailPoints(offset, step=11)
    async with a_story(records, points, rounds=2) as story:
        story.deletes = True
        story.engine.lose = {1: 8}
        end = await story.tell()

    assert points.deaths >= 10
    assert end["job"] is None
    assert end["events"] == []
    assert len(end["models"]) == 1
    assert end["objects"] == 2  # the model and its ONNX form
