"""What a worker gives up before it meets code that is not ours.

Everything here only takes away, and can't be taken back by this process or its children. Kernels
and containers differ in what they allow, so each part is tried, and ``confine`` says which held.

How many processes may be started is bound in a user namespace alone, where nobody else's count.
The kernel does not hold root to RLIMIT_NPROC, and for a user without a namespace it would count
what is not ours; there, only the watchdog of ``workflows.workers`` counts, ten times a second.

Source: man pages prctl(2), setrlimit(2), network_namespaces(7), user_namespaces(7), landlock(7),
capset(2).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

MOST_TASKS: Final = 512
"""Threads count too: a framework has some for each processor."""
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_CAPABILITY_VERSION_3: Final = 0x20080522
_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_ADD_RULE: Final = 445
_LANDLOCK_RESTRICT_SELF: Final = 446
_PATH_BENEATH: Final = 1
_READ_FILE, _READ_DIR, _EXECUTE = 1 << 2, 1 << 3, 1 << 0
_OF_FILES: Final = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14  # execute, write, read, truncate
_ACCESSES_BY_ABI: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1}
_ACCESSES: Final = (1 << 15) - 1  # since ABI 3
_SYSTEM: Final = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/sys", "/dev")
_PACKAGES: Final = ("workflows", "strategies", "privacy", "sharing", "translation")

_libc = ctypes.CDLL(None, use_errno=True)


def die_with(parent: int) -> None:
    """Be killed when the thread that started this process ends; at once if ``parent`` is gone."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def hide_memory() -> None:
    """Let no other process of this user read this one's memory or environment."""
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def confine(
    *, writable: Path, readable: Iterable[Path], memory_mb: int, output_mb: int
) -> tuple[str, ...]:
    """Give up everything that training needs not, and say what was given up.

    Args:
        writable: The one folder that stays writable.
        readable: Files and folders that stay readable beyond what Python needs.
        memory_mb: Resident memory that the watchdog allows; the backstop here is wider, because
            it counts what is reserved and never used too.
        output_mb: Largest update or model.
    """
    held = [_set_limits(memory_mb, output_mb)]
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        held.append("no new privileges")
    held += _leave_network()
    if _libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)) == 0:
        held.append("no capabilities")
    if abi := _restrict_files(writable, readable):
        held.append(f"files by Landlock {abi}")
    return tuple(held)


def _leave_network() -> list[str]:
    if _libc.unshare(_CLONE_NEWNET) == 0:
        return ["no network"]
    if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return []
    _set_limit(resource.RLIMIT_NPROC, MOST_TASKS)
    return ["no network", f"at most {MOST_TASKS} processes and threads"]


def _set_limits(memory_mb: int, output_mb: int) -> str:
    data_bytes = (2 * memory_mb + 4096) << 20
    file_bytes = max(4 << 30, 4 * output_mb << 20)
    for kind, most in (
        (resource.RLIMIT_DATA, data_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 4096),
    ):
        _set_limit(kind, most)
    return "limits on data, files and cores"


def _set_limit(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    within = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (within, within))


def _restrict_files(writable: Path, readable: Iterable[Path]) -> int:
    """Leave access to the given paths only; the kernel's Landlock version, or 0 without it."""
    abi: int = _libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return 0
    handled = _ACCESSES_BY_ABI.get(abi, _ACCESSES)
    attributes = struct.pack("=Q", handled)
    ruleset: int = _libc.syscall(
        _LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0
    )
    if ruleset < 0:
        return 0
    root = Path(__file__).resolve().parent.parent
    look = _READ_FILE | _READ_DIR | _EXECUTE
    rules = [(Path(path), look) for path in (*_SYSTEM, sys.prefix, sys.base_prefix)]
    rules += [(root / name, look) for name in _PACKAGES]
    rules += [(path, look) for path in readable]
    rules += [(root, _READ_DIR), (Path("/dev/null"), _OF_FILES), (writable, handled)]
    try:
        for path, allowed in rules:
            _allow(ruleset, path, allowed & handled)
        return abi if _libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, allowed: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not path.is_dir():
            allowed &= _OF_FILES
        rule = struct.pack("=Qi", allowed, descriptor)
        _libc.syscall(_LANDLOCK_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)
