"""What a step prints, within bounds: its beginning, and its last 64 kB."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Final

TAIL_BYTES: Final = 65_536
_ROOM_FOR_NOTES: Final = 512


class StepLog:
    """Takes any amount of output quickly and keeps a bounded part of it in a file.

    The beginning is written as it comes. Beyond it the last ``TAIL_BYTES`` are held in memory and
    written when the log is closed, after a line that says how much lies between.

    Attributes:
        error: Why the file could not be written; None while it could. What comes later is taken
            all the same, so that the step is not held up.
    """

    def __init__(self, path: Path, *, limit_bytes: int) -> None:
        self.error: OSError | None = None
        self._limit_bytes = limit_bytes
        self._head_bytes = limit_bytes - TAIL_BYTES - _ROOM_FOR_NOTES
        self._file = path.open("ab", buffering=0)
        self._taken = 0
        self._tail = bytearray()
        self._is_cut = False

    def write(self, chunk: bytes) -> None:
        """Take what the step printed next."""
        room = max(0, self._head_bytes - self._taken)
        self._taken += len(chunk)
        self._tail += chunk[-TAIL_BYTES:]
        del self._tail[:-TAIL_BYTES]
        if room:
            self._append(chunk[:room])
        if not self._is_cut and self._taken - self._head_bytes > TAIL_BYTES:
            self._is_cut = True
            self._append(
                b"\n[foedus] the log is at its limit of %d bytes (limits.log_mb): of what follows, "
                b"the last %d bytes are kept\n" % (self._limit_bytes, TAIL_BYTES)
            )

    def last_lines(self, count: int) -> str:
        """The end of what was printed, for people."""
        return "\n".join(self._tail.decode(errors="replace").splitlines()[-count:])

    def close(self) -> None:
        """Write what was held back; nothing can be taken after."""
        if self._file.closed:
            return
        beyond = max(0, self._taken - self._head_bytes)
        if self._is_cut:
            self._append(b"[foedus] %d bytes are left out here\n" % (beyond - len(self._tail)))
        if beyond:
            self._append(bytes(self._tail[-beyond:]))
        self._file.close()

    def __enter__(self) -> StepLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, content: bytes) -> None:
        if self.error is None:
            try:
                rest = memoryview(content)
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError as error:
                self.error = error
