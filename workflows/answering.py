"""What comes of one task: an answer, whatever the developer's program does."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final

from workflows.causes import Cause, CauseCode
from workflows.data.examples import DataError
from workflows.frames import Blob, size_of
from workflows.tasks import Answer, Failed
from workflows.trainers.trainer import ProgramError

EVIDENCE_CHARS: Final = 4000
Handler = Callable[[Any, list[bytes]], tuple[Answer, Sequence[Blob]]]


def answer_to(
    handle: Handler, task: object, blobs: list[bytes], output_mb: int
) -> tuple[Answer, Sequence[Blob]]:
    """Have one task done; what the program does short of ending the process becomes an answer."""
    try:
        answer, made = handle(task, blobs)
    except ProgramError as error:
        return Failed(cause=error.cause), ()
    except DataError as error:
        return _failed(CauseCode.DATA_UNREADABLE, str(error)), ()
    except MemoryError:
        return _failed(CauseCode.PROGRAM_OUT_OF_MEMORY, "an allocation was refused"), ()
    except SystemExit as error:
        return _failed(CauseCode.PROGRAM_DIED, f"it called sys.exit({error.code!r})"), ()
    except Exception as error:  # noqa: BLE001 - border to code that is not ours
        return _failed(CauseCode.PLATFORM_BUG, f"{type(error).__name__}: {error}"[:500]), ()
    size_bytes = size_of(*made)
    if size_bytes > output_mb << 20:
        detail = f"{size_bytes} bytes, of limits.output_mb = {output_mb}"
        return Failed(cause=Cause(code=CauseCode.PROGRAM_OUTPUT_TOO_LARGE, detail=detail)), ()
    return answer, made


def _failed(code: CauseCode, detail: str) -> Failed:
    evidence = traceback.format_exc()[-EVIDENCE_CHARS:]
    return Failed(cause=Cause(code=code, detail=detail, evidence=evidence))
