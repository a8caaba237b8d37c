"""What steps print, in the records: whichever replica took it in, every other one reads it.

A log lies in parts, each named by where it begins, so that a part is stored once however often and
by how many replicas it is taken in. It goes with its job.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from sqlalchemy import Row, bindparam, func, insert, select

from control_plane.platform import Platform
from control_plane.records.database import Database, Transaction
from control_plane.records.tables import LOG_PART
from control_plane.refusals import WrittenMeanwhile
from workflows.plan import StepKind

PARTS_AT_ONCE: Final = 8
"""Read into memory together; none is larger than a body that is held in memory."""

_OF_STEP: Final = (
    LOG_PART.c.job == bindparam("job"),
    LOG_PART.c.attempt == bindparam("attempt"),
    LOG_PART.c.step == bindparam("step"),
)
_LAST: Final = (
    select((LOG_PART.c.start + func.length(LOG_PART.c.content)).label("end"))
    .where(*_OF_STEP)
    .order_by(LOG_PART.c.start.desc())
    .limit(1)
)
_AROUND: Final = select(func.max(LOG_PART.c.start).label("start")).where(
    *_OF_STEP, LOG_PART.c.start <= bindparam("offset")
)
_FROM: Final = (
    select(LOG_PART.c.start, LOG_PART.c.content)
    .where(*_OF_STEP, LOG_PART.c.start >= bindparam("start"))
    .order_by(LOG_PART.c.start)
    .limit(PARTS_AT_ONCE)
)


async def append(
    platform: Platform,
    job: str,
    attempt: int,
    step: StepKind,
    *,
    offset: int,
    content: bytes,
    limit: int,
) -> int:
    """Store part of a step's log; where the stored log ends now, from where to go on.

    What is stored already is passed over, and what would leave a gap is not taken. Beyond the limit
    nothing more is kept, though the end moves on.

    Args:
        platform: Whose records.
        job: The job's id.
        attempt: Its number.
        step: Which step printed it.
        offset: Of the first byte of ``content`` in the log.
        content: What was printed.
        limit: Most bytes to keep of the log.
    """
    key = {"job": job, "attempt": attempt, "step": step}
    try:
        async with platform.database.writing() as transaction:
            end = await _end(transaction, key)
            if offset > end:
                return offset + len(content) if end >= limit else end
            if fresh := content[end - offset :][: max(0, limit - end)]:
                await transaction.execute(insert(LOG_PART), {**key, "start": end, "content": fresh})
    except WrittenMeanwhile:  # by a repetition that overtook its original
        return await _end(platform.database, key)
    return max(end, offset + len(content))


async def read(
    platform: Platform,
    job: str,
    attempt: int,
    steps: tuple[StepKind, ...],
    tail: int | None = None,
) -> AsyncIterator[bytes]:
    """The logs of an attempt's steps as far as they go now; several have a line above each.

    With a ``tail``, only the last so many bytes of each.
    """
    for step in steps:
        key = {"job": job, "attempt": attempt, "step": step}
        end = await _end(platform.database, key)
        if end and len(steps) > 1:
            yield f"==> {step} <==\n".encode()
        offset = 0 if tail is None else max(0, end - tail)
        around = await platform.database.one_or_none(_AROUND, {**key, "offset": offset})
        start = 0 if around is None else around.start or 0
        while offset < end:
            parts = await platform.database.rows(_FROM, {**key, "start": start})
            if not parts:
                break  # the job was deleted meanwhile
            for part in parts:
                yield part.content[offset - part.start : max(0, end - part.start)]
                offset = start = part.start + len(part.content)


async def _end(records: Database | Transaction, key: dict[str, Any]) -> int:
    """Bytes of a step's log that are on record."""
    row: Row[Any] | None = await records.one_or_none(_LAST, key)
    return 0 if row is None else int(row.end)
