"""The trace that this task works for, as log lines, problems and the audit log name it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

trace_id: Final[ContextVar[str]] = ContextVar("trace_id", default="")
