"""Control planes as processes over one database and one engine, and who plays their attempts."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import select

from control_plane.data_folder import write_private
from control_plane.platform import Platform
from control_plane.records.tables import ARTIFACT, EVENT, LEASE, MODEL, ROUND
from control_plane.records.tables import JOB as JOB_TABLE
from tests.cluster.mortal_replica import serve
from tests.cluster.shared_engine import FOLDER, Submitted
from tests.control_plane.scripted_engine import Wrapper
from workflows.engine import Activity, Credentials, Observation

PROCESSES = multiprocessing.get_context("forkserver")
"""Has read the program already, which takes some seconds, when a replica is started."""
PROCESSES.set_forkserver_preload(["tests.cluster.mortal_replica"])
HANDED_OVER = re.compile(r"job-\w+\.\d+")
LISTENS = re.compile(r"listens at (\S+)\n")
MAX_RUNNING = 20
LEASE_S = 3
JOB = {
    "name": "shared",
    "program": {"kind": "builtin", "name": "digits-mlp"},
    "data": {"kind": "partitioned", "dataset": "digits", "sites": 4},
    "runtime": {"kind": "native"},
    "rounds": 1,
}


Facts = frozenset[tuple[Any, ...]]


async def facts_of(platform: Platform, job: str) -> Facts:
    """All that is on record of a run, but for its id and its hours."""
    rows = platform.database.rows
    [row] = await rows(select(JOB_TABLE).where(JOB_TABLE.c.id == job))
    events = await rows(select(EVENT).where(EVENT.c.job == job))
    rounds = await rows(select(ROUND).where(ROUND.c.job == job))
    artifacts = await rows(select(ARTIFACT).where(ARTIFACT.c.job == job))
    models = await rows(select(MODEL).where(MODEL.c.job == job))
    leases = await rows(select(LEASE).where(LEASE.c.job == job))
    return frozenset(
        [
            ("job", row.phase, row.round, row.attempt, row.metrics, row.cause, row.last_event),
            *(("event", e.id, e.kind, e.attempt, e.step, e.number) for e in events),
            *(("round", r.number, r.model, r.transcript) for r in rounds),
            # The card of a model names the job.
            *(("artifact", a.name, a.digest) for a in artifacts if a.name != "model.json"),
            *(("model", m.digest, m.metrics) for m in models),
            *(("lease", one.holder) for one in leases),
        ]
    )


class Replica:
    """A control plane as a process; ``more`` are settings, and ``DIE_AT`` where it dies."""

    def __init__(self, folder: Path, name: str, url: str, **more: str) -> None:
        data = folder / name
        data.mkdir()
        for shared in ("objects", "engine"):
            (folder / shared).mkdir(exist_ok=True)
        (data / "objects").symlink_to(folder / "objects")
        settings = {
            "FOEDUS_DATA": str(data),
            "FOEDUS_PORT": "0",
            "FOEDUS_DATABASE_URL": url,
            "FOEDUS_LEASE_S": str(LEASE_S),
            "FOEDUS_MAX_RUNNING": str(MAX_RUNNING),
            "FOEDUS_FIRST_TOKEN_FILE": str(folder / "token"),
            FOLDER: str(folder / "engine"),
            **more,
        }
        self._log = folder / f"{name}.log"
        self._process = PROCESSES.Process(target=serve, args=(settings, self._log), daemon=True)
        self._process.start()

    def ready(self) -> str:
        """Where it listens."""
        while self.exit_code is None:
            told = self._log.read_text() if self._log.exists() else ""
            if found := LISTENS.search(told):
                return found[1]
            time.sleep(0.01)
        raise AssertionError(self._log.read_text())

    @property
    def exit_code(self) -> int | None:
        """The signal that killed it, negative; None while it runs or hangs."""
        return self._process.exitcode

    def send(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def end(self) -> None:
        self._process.kill()
        self._process.join()


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
                if path.name not in self.wrappers and HANDED_OVER.fullmatch(path.name):
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
