"""A worker's own process: confined first, then one task after the other until its parent is gone.

Started as ``python -P -m workflows.worker STATION`` by ``workflows.workers``, where the station is
JSON of ``workflows.workers.Station``. Runtimes with tasks of their own start their module instead
and call ``serve`` with a handler that knows them.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from strategies.tiles import set_num_threads
from workflows.answering import Handler, answer_to
from workflows.confinement import confine, die_with
from workflows.frames import FrameError, receive_frame, send_frame
from workflows.tasks import AnyTask
from workflows.workers import Ready, Station


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
        answer, made = answer_to(handle, task, blobs, station.limits.output_mb)
        sys.stdout.flush()
        send_frame(connection, answer, made)


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
