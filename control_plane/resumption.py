"""What the next attempt of a run is laid: its inputs, and the newest checkpoint that is whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import structlog
from sqlalchemy import Row, bindparam, select, update

from control_plane.holds import ObjectsHeld
from control_plane.objects import keep, release, require_stored
from control_plane.platform import Platform
from control_plane.records.tables import DATASET, ROUND
from sharing.object_store import Digest, ObjectCorrupt, ObjectMissing, is_digest
from workflows.job import Bundle, FromModel, JobSpec, Partitioned

CHECKPOINTS_KEPT: Final = 2

_log = structlog.get_logger()
_CHECKPOINTS: Final = (
    select(ROUND.c.number, ROUND.c.checkpoint)
    .where(ROUND.c.job == bindparam("job"), ROUND.c.checkpoint.is_not(None))
    .order_by(ROUND.c.number.desc())
)


async def inputs_of(
    platform: Platform, job: Row[Any], spec: JobSpec
) -> tuple[dict[str, Digest], int]:
    """What the next attempt is laid, and the round that it goes on from (0: the start).

    Raises:
        StoreError: The store does not answer, or has no room.
        DatabaseUnavailable: The database did not answer.
    """
    inputs: dict[str, Digest] = {}
    if isinstance(spec.program, Bundle):
        inputs["bundle.tar"] = spec.program.digest
    if isinstance(spec.data, Partitioned) and is_digest(spec.data.dataset):
        row = await platform.database.one_or_none(
            select(DATASET.c.format).where(
                DATASET.c.organisation == job.organisation,
                DATASET.c.digest == spec.data.dataset,
                DATASET.c.label == spec.data.label,
            )
        )
        if row is not None:
            inputs[f"dataset.{row.format}"] = spec.data.dataset
    if isinstance(spec.init, FromModel):
        inputs["init.safetensors"] = spec.init.digest
    for row in await platform.database.rows(_CHECKPOINTS, {"job": job.id}):
        try:
            await platform.store.stat(row.checkpoint)
            transcripts = await _compose_transcripts(platform, job.id, row.number)
        except (ObjectMissing, ObjectCorrupt) as error:
            _log.error("checkpoint.unusable", run=job.id, round=row.number, error=str(error))
            continue
        resumption = {
            "checkpoint.safetensors": row.checkpoint,
            "transcripts.jsonl": transcripts,
        }
        return {**inputs, **resumption}, row.number
    return inputs, 0


async def give_up_checkpoints(platform: Platform, job: str) -> None:
    """Delete the checkpoints that later ones have replaced.

    Raises:
        StoreError: The store does not answer.
        DatabaseUnavailable: The database did not answer.
    """
    rows = await platform.database.rows(_CHECKPOINTS, {"job": job})
    for row in rows[CHECKPOINTS_KEPT:]:  # each names its round, so no two are the same
        try:
            await release(platform, job, row.checkpoint)
        except ObjectsHeld:
            return  # the next look does it; if there is none, retention
        async with platform.database.writing() as transaction:
            await transaction.execute(
                update(ROUND)
                .where(ROUND.c.job == job, ROUND.c.number == row.number)
                .values(checkpoint=None)
            )


async def _compose_transcripts(platform: Platform, job: str, last: int) -> Digest:
    """Store the transcripts of all rounds up to ``last`` as one object, a line each."""
    rows = await platform.database.rows(
        select(ROUND.c.transcript)
        .where(ROUND.c.job == job, ROUND.c.number <= last)
        .order_by(ROUND.c.number)
    )

    async def lines() -> AsyncIterator[bytes]:
        for row in rows:
            async for chunk in platform.store.get(row.transcript):
                yield chunk
            yield b"\n"

    stored = await platform.store.put(lines())
    async with platform.custody.of(stored.digest):
        await require_stored(platform, stored.digest)
        async with platform.database.writing() as transaction:
            await keep(transaction, job, stored.digest)
    return stored.digest
