"""A worker's own process: confined first, then one task after the other until its parent is gone.

Started as ``python -P -m workflows.worker STATION`` by ``workflows.workers``, where the station is
JSON of ``workflows.workers.Station``. Runtimes with tasks of their own start their module instead
and call ``serve`` with a handler that knows them.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from strategies.tiles import set_num_threads
from workflows.causes import Cause, CauseCode
from workflows.confinement import confine, die_with
from workflows.data.examples import DataError
from workflows.frames import Blob, FrameError, receive_frame, send_frame, size_of
from workflows.tasks import Answer, AnyTask, Failed
from workflows.trainers.trainer import ProgramError
from workflows.workers import Ready, Station

EVIDENCE_CHARS = 4000
Handler = Callable[[Any, list[bytes]], tuple[Answer, Sequence[Blob]]]


def serve(station: Station, handle: Handler, tasks: Any) -> None:  # noqa: ANN401 - a union
    """Do tasks until the other end closes.

    Args:
        station: Where, for whom and within what.
        handle: Does one task.
        tasks: Union of what may be asked.
    """
    die_with(station.parent)
    set_num_threads(1)
    connection = socket.socket(fileno=station.connection)
    connection.set_inheritable(False)
    confined = confine(
        writable=Path(station.folder),
        readable=[Path(path) for path in station.readable],
        memory_mb=station.limits.memory_mb,
        output_mb=station.limits.output_mb,
    )
    send_frame(connection, Ready(confined))
    decoder = msgspec.msgpack.Decoder(tasks)
    while True:
        try:
            task, blobs = receive_frame(connection, decoder, sys.maxsize)
        except FrameError:
            return
        answer, made = attempt(handle, task, blobs, station.limits.output_mb)
        sys.stdout.flush()
        send_frame(connection, answer, made)


def attempt(
    handle: Handler, task: object, blobs: list[bytes], output_mb: int
) -> tuple[Answer, Sequence[Blob]]:
    """Do one task; whatever the program does short of ending the process becomes an answer."""
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


def main(arguments: Sequence[str]) -> int:
    """Entry of the process."""
    from workflows.workbench import Workbench  # a runtime's own worker may do without

    station = msgspec.json.decode(arguments[0], type=Station)
    serve(station, Workbench().handle, AnyTask)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # without the atexit handlers of the program
