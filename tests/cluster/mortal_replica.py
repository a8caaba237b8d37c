"""A control plane over the shared engine, in a process of its own, which may die at one step.

Its points are those of ``test_reconciler_faults``: before and after each call that changes
something behind a port. Here the process is killed for good, by a signal that nothing can handle,
and each point has a name: whose work it is, and the how manieth of it. ``DIE_AT`` names the one to
die at; ``PASSED`` names a file that takes the names of all that are passed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import control_plane
from control_plane import app
from control_plane.__main__ import main
from control_plane.platform import Platform, open_platform
from sharing.object_store import ObjectStore
from tests.cluster.shared_engine import shared_engine
from tests.control_plane.test_reconciler_faults import (
    FailPoints,
    MortalDatabase,
    MortalEngine,
    MortalStore,
)

DIE_AT = "FOEDUS_TEST_DIE_AT"
PASSED = "FOEDUS_TEST_PASSED"
PACKAGE = str(Path(control_plane.__file__).parent)
BY_THE_CLOCK = "renew"
"""Work that is done so often as time goes by: its points are none of a run's."""
IN_BETWEEN = "_changing"
"""What has others work in it."""


class NamedPoints(FailPoints):
    """Points with names as ``reconciler._admit 1``: the first that work of this name passes."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(0)
        self._die_at = environ.get(DIE_AT, "")
        self._passed = Path(environ[PASSED]) if PASSED in environ else None
        self._counts: Counter[str] = Counter()

    def point(self) -> None:
        work = _work(sys._getframe(1))
        if work is None:
            return
        self._counts[work] += 1
        name = f"{work} {self._counts[work]}"
        if self._passed is not None:
            with self._passed.open("a") as file:
                file.write(name + "\n")
        if name == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _work(frame: FrameType | None) -> str | None:
    """The innermost function of the control plane that is under way, but for its records."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE) and "/records/" not in code.co_filename:
            if code.co_name == BY_THE_CLOCK:
                return None
            if code.co_name != IN_BETWEEN:
                return f"{Path(code.co_filename).stem}.{code.co_name}"
        frame = frame.f_back
    return None


def serve(environ: Mapping[str, str], log: Path) -> None:
    """Be a replica with these settings until it is killed; all that it says goes to ``log``."""
    os.environ.update(environ)
    with log.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    points = NamedPoints(environ)

    @asynccontextmanager
    async def mortal_platform(*, store: ObjectStore, **options: Any) -> AsyncIterator[Platform]:
        async with open_platform(store=MortalStore(store, points), **options) as platform:
            database: Any = MortalDatabase(platform.database, points)
            yield replace(platform, database=database)

    app.open_platform = mortal_platform  # type: ignore[assignment]
    sys.exit(main(lambda settings, environ: MortalEngine(shared_engine(settings, environ), points)))
