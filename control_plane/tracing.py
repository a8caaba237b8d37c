"""The trace that this task works for, and the spans of runs, read from what is on record.

A run's spans are derived when it is closed and cleared away, not gathered while it goes on: so they
are the same however often the control plane was restarted meanwhile, and a run costs nothing more
for being traced. Ids are digests of what a span tells of.

Source: W3C Trace Context, ``traceparent`` of version 00.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Row

from workflows.run import Phase

trace_id: Final[ContextVar[str]] = ContextVar("trace_id", default="")
traceparent: Final[ContextVar[str]] = ContextVar("traceparent", default="")
"""What continues the trace of the request that is being answered."""

_HEX_TRACE: Final = re.compile(r"(?!0{32})[0-9a-f]{32}")
_ENDS: Final = frozenset({"step.succeeded", "step.failed", "round.finished"})
_FIELDS: Final = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that took time.

    Attributes:
        trace: 32 hexadecimal digits.
        id: 16 hexadecimal digits.
        parent: The same, of the span that it is part of; empty for none.
        name: What was done.
        start: When it began.
        end: When it ended.
        attributes: More about it.
        failed: True if it did not come to a good end.
    """

    trace: str
    id: str
    parent: str
    name: str
    start: datetime
    end: datetime
    attributes: Mapping[str, str | int | float] = field(default_factory=dict)
    failed: bool = False


def parent_header(trace: str, span: str) -> str:
    """The header that continues ``trace`` below ``span``; a trace of another form is hashed."""
    if not _HEX_TRACE.fullmatch(trace):
        trace = hashlib.sha256(trace.encode()).hexdigest()[:32]
    return f"00-{trace}-{span}-01"


def spans_of(
    job: Row[Any], attempts: Sequence[Row[Any]], events: Sequence[Row[Any]]
) -> tuple[Span, ...]:
    """The run, its admission, attempts, steps and rounds; none if it was submitted untraced. Pure.

    Args:
        job: Its row, once it has ended.
        attempts: All of its rows.
        events: All of its rows, oldest first.
    """
    if not job.traceparent or job.ended_at is None:
        return ()
    ended_at: datetime = job.ended_at
    ends = {attempt.number: attempt.ended_at or ended_at for attempt in attempts}
    times = [_Time("run", "", "run", job.created_at, ended_at, job.phase != Phase.SUCCEEDED)]
    if admitted := [event.at for event in events if event.kind == "run.transitioned"]:
        times.append(_Time("admission", "run", "admission", job.created_at, admitted[0], False))
    for attempt in attempts:
        name, is_lost = f"attempt {attempt.number}", attempt.cause is not None
        end = ends[attempt.number]
        times.append(_Time(name, "run", name, attempt.started_at, end, is_lost))
    times += _times_of_steps(events, ends)
    _, trace, caller, _ = job.traceparent.split("-")
    return tuple(
        Span(
            trace=trace,
            id=_id(job.id, time.key),
            parent=_id(job.id, time.within) if time.within else caller,
            name=time.name,
            start=time.start,
            end=max(time.start, time.end),
            attributes={"foedus.job": job.id},
            failed=time.is_bad,
        )
        for time in times
    )


class _Time(NamedTuple):
    key: str
    within: str
    name: str
    start: datetime
    end: datetime
    is_bad: bool


def _times_of_steps(events: Sequence[Row[Any]], ends: Mapping[int, datetime]) -> Iterator[_Time]:
    """Steps and rounds; what was cut short lasted as long as its attempt."""
    begun: dict[str, _Time] = {}
    for event in events:
        if event.step is None:
            continue
        within = f"attempt {event.attempt}"
        key, name = f"{within} {event.step}", str(event.step)
        if event.kind in ("round.started", "round.finished"):
            name = f"round {_FIELDS.decode(event.fields)['round']}"
            key, within = f"{key} {name}", key
        if event.kind in ("step.started", "round.started"):
            begun[key] = _Time(key, within, name, event.at, ends[event.attempt], True)
        elif event.kind in _ENDS and key in begun:
            yield begun.pop(key)._replace(end=event.at, is_bad=event.kind == "step.failed")
    yield from begun.values()


def _id(job: str, of: str) -> str:
    return hashlib.sha256(f"{job} {of}".encode()).hexdigest()[:16]
