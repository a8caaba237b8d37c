"""What programs print in a shard's pod, on its way to the log of the step that it works for."""

from __future__ import annotations

import contextlib
import os
import queue
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final

from workflows.frames import send_frame
from workflows.shard_words import Prints, Said

MOST_BYTES: Final = 8 << 10
"""Of a line; a longer one is told as several."""
MOST_LINES: Final = 1024
"""That wait to be passed on; more are told by the pod's own log alone."""
_LEAVE_S: Final = 2.0


@contextlib.contextmanager
def passed_on(dial: Callable[[], ssl.SSLSocket], shard: int) -> Iterator[int]:
    """A file that workers print to: it goes to this process's stdout, and to the server.

    Nobody who prints waits for the network: what comes while the server cannot be reached, or
    faster than it goes out, does not reach it.

    Args:
        dial: Connects to the server; raises OSError if that is not there.
        shard: Its number, from 1.
    """
    source, sink = os.pipe()
    lines: queue.Queue[str | None] = queue.Queue(MOST_LINES)

    def read() -> None:
        with os.fdopen(source, "rb") as printed:
            while line := printed.readline(MOST_BYTES):
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
                with contextlib.suppress(queue.Full):
                    lines.put_nowait(line.decode(errors="replace").rstrip("\n"))
        lines.put(None)

    def send() -> None:
        connection: ssl.SSLSocket | None = None
        while (line := lines.get()) is not None:
            try:
                if connection is None:
                    connection = dial()
                    send_frame(connection, Prints(shard=shard))
                send_frame(connection, Said(line=line))
            except OSError:
                if connection is not None:
                    connection.close()
                    connection = None
        if connection is not None:
            connection.close()

    threads = [threading.Thread(target=work, name="prints", daemon=True) for work in (read, send)]
    for thread in threads:
        thread.start()
    try:
        yield sink
    finally:
        os.close(sink)
        for thread in threads:
            thread.join(_LEAVE_S)
