"""Processes of this machine: which one is meant, who descends from whom, and how to end them all.

A process is known by number, start time and boot, so that a number that was given to another one
since is never mistaken for it. Descendants are found by parent and by session; a process that
adopts orphans (``adopt_orphans``) stays the ancestor of every process below it, whatever those do.

Source: man pages proc(5), prctl(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

_PR_SET_CHILD_SUBREAPER: Final = 36
_DEAD: Final = (b"Z", b"X")
_INHERITED: Final = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")
_PACKAGE_ROOT: Final = Path(__file__).resolve().parent.parent

_libc = ctypes.CDLL(None, use_errno=True)


class _Entry(NamedTuple):
    pid: int
    state: bytes
    parent: int
    session: int
    started: int


class ProcessIdentity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One process, and never a later one of the same number.

    Attributes:
        pid: Its number.
        started: When it started, in clock ticks since the boot.
        boot: Id of that boot.
    """

    pid: int
    started: int
    boot: str

    def is_alive(self) -> bool:
        """True if it still runs."""
        entry = _entry(self.pid)
        return (
            entry is not None
            and entry.state not in _DEAD
            and entry.started == self.started
            and _boot() == self.boot
        )

    def send(self, signal_number: signal.Signals) -> None:
        """Send a signal; to one that is gone, nothing happens."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal_number)


def identify(pid: int) -> ProcessIdentity:
    """The process that has this number now.

    Raises:
        ProcessLookupError: None has.
    """
    entry = _entry(pid)
    if entry is None:
        raise ProcessLookupError(pid)
    return ProcessIdentity(pid=pid, started=entry.started, boot=_boot())


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "can not adopt orphans")


def end_children(*, spare: int) -> None:
    """Kill and reap all children of this process but ``spare``, and those it adopts meanwhile."""
    me = os.getpid()
    while children := [one.pid for one in _entries() if one.parent == me and one.pid != spare]:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)


def end_session(leader: ProcessIdentity, *, within_s: float) -> bool:
    """Kill a session's leader, its descendants and the members of its session.

    The leader goes last: while it lives, what descends from it can be traced to it.

    Returns:
        True once nothing of it runs.
    """
    until = time.monotonic() + within_s
    while doomed := _below(leader):
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def scrubbed(environ: Mapping[str, str], *, home: Path, tmp: Path) -> dict[str, str]:
    """What a child may know of ``environ``: where programs are and which language to speak.

    Args:
        environ: Of the parent; nothing else of it is passed on, so no secret can be.
        home: Folder the child takes for its user's.
        tmp: Folder for its temporary files.
    """
    passed = {name: environ[name] for name in _INHERITED if name in environ}
    return passed | {
        "HOME": str(home),
        "TMPDIR": str(tmp),
        "PYTHONPATH": str(_PACKAGE_ROOT),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }


def _below(leader: ProcessIdentity) -> list[int]:
    entries = {one.pid: one for one in _entries()}
    number_taken = leader.pid in entries and entries[leader.pid].started != leader.started
    if number_taken or _boot() != leader.boot:
        return []

    def belongs(one: _Entry) -> bool:
        seen = one
        while seen.session != leader.pid and seen.pid != leader.pid:
            if seen.parent not in entries or seen.parent == seen.pid:
                return False
            seen = entries[seen.parent]
        return one.started >= leader.started

    doomed = [one.pid for one in entries.values() if one.state not in _DEAD and belongs(one)]
    return sorted(doomed, key=lambda pid: pid == leader.pid)


def _entries() -> Iterator[_Entry]:
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (entry := _entry(int(path.name))) is not None:
            yield entry


def _entry(pid: int) -> _Entry | None:
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = line[line.rindex(b")") + 2 :].split()
    return _Entry(pid, fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
