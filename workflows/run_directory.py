"""The run directory: the scratch of one attempt, and what each file in it is called.

The store is the truth; whatever lies here may be wiped once the attempt is over.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from sharing.object_store import Digest
from workflows.plan import StepKind

T = TypeVar("T")

RESERVED_BYTES: Final = 32_768
"""Room that is set aside for the exit record, so that a full disk can still be told of."""
NO_ROOM: Final = 74
"""Exit code of a step that found the disk full; what it had there may be gone with its process."""

HANDOVER_S: Final = 120.0
"""Longest wait for what the container beside us hands over; a busy machine starts it late."""
_LOOK_S: Final = 0.01


class Progress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a wrapper has come.

    Attributes:
        step: Step it is at, or was at last; None before the first.
        manifests: Digests of the manifests on record, by step.
        acknowledged: Number of the last event on record, by step.
    """

    step: StepKind | None = None
    manifests: dict[StepKind, Digest] = {}
    acknowledged: dict[StepKind, int] = {}


class RunDirectory:
    """Names of the files in one attempt's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.job = root / "job.json"
        self.inputs = root / "inputs"
        self.objects = root / "objects"
        self.home = root / "home"
        self.tmp = root / "tmp"
        self.lock = root / "lock"
        self.leader = root / "pid.json"
        self.cancel = root / "cancel.json"
        self.progress = root / "progress.json"
        self.exit = root / "exit.json"
        self.wrapper_log = root / "wrapper.log"

    def events(self, step: StepKind) -> Path:
        """What the step tells, one line each."""
        return self.root / f"{step}.events.jsonl"

    def log(self, step: StepKind) -> Path:
        """What the step and its workers printed."""
        return self.root / f"{step}.log"

    def manifest(self, step: StepKind) -> Path:
        """What the step made."""
        return self.root / f"{step}.manifest.json"

    def object(self, digest: Digest) -> Path:
        """The object that an event names."""
        return self.objects / digest.removeprefix("sha256:")


def write_whole(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` so that a reader sees all of it or what was there before."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def is_laid(folder: Path, within_s: float = HANDOVER_S) -> bool:
    """Wait for a folder that is laid beside us, whole from the moment that it has its name."""
    deadline = time.monotonic() + within_s
    while not folder.is_dir():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True


def take(folder: Path, name: str) -> bytes:
    """Content of a file that is there for us alone, and that nobody reads after us."""
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    return content


def read_json(path: Path, kind: type[T]) -> T | None:
    """The value at ``path``; None if there is none.

    Raises:
        msgspec.DecodeError: The file holds something else.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
