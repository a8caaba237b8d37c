"""A step's side of the run directory: the plan in, events, objects and outputs out.

Every step process is ``run_step`` around a function: it turns whatever ends the function into the
last event and the exit code that the wrapper understands.
"""

from __future__ import annotations

import errno
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeVar

import msgspec

from sharing.object_store import Digest, digest_of
from workflows.causes import Cause, CauseCode
from workflows.confinement import hide_memory
from workflows.events import AnyStepEvent, StepEvent, StepFailed, StepStarted
from workflows.plan import Plan, StepKind
from workflows.run_directory import NO_ROOM, RunDirectory, write_whole
from workflows.tasks import SiteFailure

DONE: Final = 0
FAILED: Final = 1
TRY_AGAIN: Final = 75
EVIDENCE_CHARS: Final = 4000

E = TypeVar("E", bound=StepEvent)


class StepError(Exception):
    """The step cannot give a result.

    Attributes:
        cause: Why.
    """

    def __init__(self, cause: Cause) -> None:
        super().__init__(f"{cause.code}: {cause.detail}")
        self.cause = cause


class Stopped(BaseException):
    """SIGTERM came: the step ends at once, and goes on later from what is on record."""


class StepFolder:
    """The run directory, as one step of it uses it.

    Attributes:
        files: Where everything is.
        step: Which step.
        plan: What is to be done.
    """

    def __init__(self, root: Path, step: StepKind, clock: Callable[[], float] = time.time) -> None:
        """Read the plan.

        Raises:
            OSError: There is none.
            msgspec.MsgspecError: It is something else.
        """
        self.files = RunDirectory(root)
        self.step = step
        self.plan = msgspec.json.decode(self.files.job.read_bytes(), type=Plan)
        self._clock = clock
        self._number = len(self.told())

    def input(self, name: str) -> Path | None:
        """File of an input; None if the plan has none of this name."""
        return self.files.inputs / name if name in self.plan.inputs else None

    def scratch(self, name: str) -> Path:
        """A folder of the step's own, made if absent."""
        folder = self.files.root / f"{self.step}.{name}"
        folder.mkdir(exist_ok=True)
        return folder

    def told(self) -> list[AnyStepEvent]:
        """Events so far."""
        path = self.files.events(self.step)
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [msgspec.json.decode(line, type=AnyStepEvent) for line in lines]

    def tell(self, kind: type[E], **fields: Any) -> E:  # noqa: ANN401 - fields of the event
        """Write the next event; the wrapper sees it at once."""
        event = kind(number=self._number + 1, at=self._clock(), **fields)
        with self.files.events(self.step).open("ab", buffering=0) as file:
            file.write(msgspec.json.encode(event) + b"\n")
        self._number += 1
        return event

    def keep(self, content: bytes) -> Digest:
        """Write an object that an event is about to name."""
        digest = digest_of(content)
        self.files.objects.mkdir(exist_ok=True)
        write_whole(self.files.object(digest), content)
        return digest

    def put(self, name: str, content: bytes) -> None:
        """Write an output."""
        write_whole(self.files.root / name, content)


def run_step(step: StepKind, root: Path, body: Callable[[StepFolder], None]) -> int:
    """Do a step in a process of its own; the exit code says how it went.

    A failure for good is told as the last event. What may pass (a full disk, SIGTERM) is not: the
    step is started again and goes on from what is on record.
    """
    hide_memory()
    signal.signal(signal.SIGTERM, _stop)
    folder = StepFolder(root, step)
    try:
        folder.tell(StepStarted)
        body(folder)
    except Stopped:
        return TRY_AGAIN
    except (StepError, SiteFailure) as error:
        folder.tell(StepFailed, cause=error.cause)
        return FAILED
    except Exception as error:  # noqa: BLE001 - the outermost loop of this process
        traceback.print_exc(file=sys.stderr)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return NO_ROOM
        folder.tell(StepFailed, cause=_bug(error))
        return FAILED
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return DONE


def _bug(error: Exception) -> Cause:
    evidence = traceback.format_exc()[-EVIDENCE_CHARS:]
    detail = f"{type(error).__name__}: {error}"[:500]
    return Cause(code=CauseCode.PLATFORM_BUG, detail=detail, evidence=evidence)


def _stop(signal_number: int, frame: FrameType | None) -> None:
    raise Stopped
