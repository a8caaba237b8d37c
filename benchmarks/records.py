"""Job reads and submissions a second over the records, in SQLite and in PostgreSQL beside it.

Both are asked in process, without HTTP, by as many callers at a time: a read is what ``GET
/v1/jobs/{id}`` does, a submission is a whole ``POST /v1/jobs`` with an idempotency key. SQLite lies
on this machine's disk and brings each commit to it. PostgreSQL is the server that
``FOEDUS_TEST_DATABASE_URL`` names, where a database is made and dropped; whether it waits for its
disk is told as 1 or 0.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

import uvloop
from sqlalchemy import text

from benchmarks.report import Figure, run_benchmark
from control_plane.accounts import bootstrap
from control_plane.admission import submit_job
from control_plane.jobs import get_job
from control_plane.platform import Platform, open_platform
from sharing.directory_store import DirectoryStore
from workflows.job import Builtin, JobSpec, Partitioned, Runtime

REPETITIONS: Final = 5
CALLERS: Final = 16
MEASURE_S: Final = 2.0
SPEC: Final = JobSpec(
    name="digits",
    program=Builtin(name="digits-mlp"),
    data=Partitioned(dataset="digits", sites=4),
    runtime=Runtime(kind="native"),
)


@contextmanager
def _new_database(server: str) -> Iterator[str]:
    import psycopg

    name = f"foedus_benchmark_{uuid4().hex[:8]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        try:
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def _per_second(act: Callable[[], Awaitable[object]]) -> float:
    """How often ``act`` is done a second by all callers together."""
    began, done = time.perf_counter(), 0

    async def call() -> None:
        nonlocal done
        while time.perf_counter() - began < MEASURE_S:
            await act()
            done += 1

    await asyncio.gather(*(call() for _ in range(CALLERS)))
    return done / (time.perf_counter() - began)


async def _measure(url: str | None) -> tuple[list[float], list[float], bool]:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        async with open_platform(
            folder=folder, store=DirectoryStore(folder), database_url=url
        ) as platform:
            who = await platform.identity.authenticate(await bootstrap(platform) or "")
            job = (await submit_job(platform, who, SPEC, None)).id
            reads, submissions = [], []
            for _ in range(REPETITIONS):
                reads.append(await _per_second(lambda: get_job(platform, who, job)))
                submissions.append(
                    await _per_second(lambda: submit_job(platform, who, SPEC, uuid4().hex))
                )
            return reads, submissions, url is None or await _waits_for_disk(platform)


async def _waits_for_disk(platform: Platform) -> bool:
    row = await platform.database.one_or_none(text("SELECT current_setting('fsync') AS fsync"))
    return row is not None and row.fsync == "on"


def measure() -> Sequence[Figure]:
    """Measure both, one after the other."""
    figures = []
    with _new_database(os.environ["FOEDUS_TEST_DATABASE_URL"]) as url:
        for name, where in (("SQLite", None), ("PostgreSQL", url)):
            reads, submissions, is_durable = uvloop.run(_measure(where))
            figures += [
                Figure(name=f"job reads, {name}", unit="/s", values=tuple(reads)),
                Figure(name=f"submissions, {name}", unit="/s", values=tuple(submissions)),
                Figure(name=f"waits for the disk, {name}", unit="", values=(float(is_durable),)),
            ]
    return figures


if __name__ == "__main__":
    sys.exit(
        run_benchmark(
            "records",
            "Records: SQLite and PostgreSQL",
            __doc__ or "",
            ("sqlalchemy", "psycopg", "uvloop"),
            measure,
        )
    )
