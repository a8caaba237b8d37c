"""``python -m control_plane backup|restore FOLDER``: the platform that the settings describe.

There is no route for this on purpose: whoever could call it would have every organisation's models.

Exit codes: 0 done; 1 not done; 2 wrong usage; 130 stopped by SIGINT or SIGTERM. What was stopped
leaves the backup before as it was, and no platform where there was none.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from control_plane.backups import BackupError, BackupManifest, Place, Tell, back_up, restore
from control_plane.data_folder import FolderInUse
from control_plane.platform import utc_now
from control_plane.refusals import DatabaseUnavailable
from control_plane.settings import Settings
from control_plane.stores import open_store
from sharing.object_store import StoreError

EXIT_STOPPED: Final = 130
_TROUBLES: Final = (
    BackupError,
    FolderInUse,
    DatabaseUnavailable,
    StoreError,
    OSError,
    sqlite3.Error,
)


def run(settings: Settings, argv: Sequence[str]) -> int:
    """Back up or restore as the command line says; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m control_plane")
    parser.add_argument("deed", choices=("backup", "restore"))
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args(argv)
    try:
        manifest = asyncio.run(_do(settings, asked.deed, asked.folder))
    except asyncio.CancelledError:
        sys.stderr.write(f"foedus: {asked.deed} was stopped\n")
        return EXIT_STOPPED
    except _TROUBLES as error:
        sys.stderr.write(f"foedus: {asked.deed} failed: {error}\n")
        return 1
    where = asked.folder if asked.deed == "backup" else settings.data
    sys.stdout.write(
        f"{where}: the platform of {manifest.made_at.isoformat()}, {manifest.tables['job']} jobs, "
        f"{manifest.objects} objects, {manifest.size_bytes} bytes, every one verified\n"
    )
    return 0


async def _do(settings: Settings, deed: str, folder: Path) -> BackupManifest:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - asyncio.run made it
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with open_store(settings) as store:
        place = Place(folder=settings.data, store=store, url=settings.records_url)
        if deed == "backup":
            return await back_up(place, folder, utc_now(), _progress(deed))
        return await restore(folder, place, _progress(deed))


def _progress(deed: str) -> Tell:
    """Tell on a terminal, in one line that is written over, how far it is."""
    if not sys.stderr.isatty():
        return lambda _done, _of: None

    def tell(done: int, of: int) -> None:
        sys.stderr.write(f"\r{deed}: {done} of {of} objects" + ("\n" if done == of else ""))
        sys.stderr.flush()

    return tell
