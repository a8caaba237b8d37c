"""What a running attempt tells and stores, known by a token that is good for it alone.

Every call can be repeated. An attempt that was superseded, or whose job is closed, is fenced: it
is told to stop, nothing of it is taken, and that is put on record once.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Row, bindparam, delete, func, insert, select

from clients.identity import NotAuthentic
from control_plane import step_logs
from control_plane.ids import hash_of_token
from control_plane.jobs import WAITS_FOR_STOP
from control_plane.journal import Fact, load, record, transition
from control_plane.objects import keep, require_stored
from control_plane.platform import Platform
from control_plane.progress import Progress, after_event
from control_plane.records.database import Transaction
from control_plane.records.tables import ATTEMPT, EVENT, JOB, JOB_OBJECT, ROUND
from control_plane.refusals import EventGap, Fenced, NotFound
from control_plane.views import spec_of, text_of
from sharing.object_store import Digest, ObjectMissing, StoredObject
from workflows.events import AnyStepEvent, RoundFinished
from workflows.job import JobSpec
from workflows.plan import StepKind
from workflows.run import Desired, Phase

LOG_SLACK_BYTES: Final = 1 << 16
"""What the wrapper may write above ``limits.log_mb``: its words on what it cut."""

_ATTEMPT: Final = (
    select(ATTEMPT, JOB.c.phase, JOB.c.spec, JOB.c.attempt.label("newest"))
    .join(JOB, JOB.c.id == ATTEMPT.c.job)
    .where(ATTEMPT.c.job == bindparam("job"), ATTEMPT.c.number == bindparam("number"))
)
_ACKNOWLEDGED: Final = select(func.max(EVENT.c.number).label("number")).where(
    EVENT.c.job == bindparam("job"),
    EVENT.c.attempt == bindparam("attempt"),
    EVENT.c.step == bindparam("step"),
)
_INPUTS: Final = msgspec.json.Decoder(dict[str, Digest])
_METRICS: Final = msgspec.json.Decoder(dict[str, float])


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that proved who it is, and is heard.

    Attributes:
        job: Id of its job.
        number: Its number.
        spec: The job.
        inputs: Objects that it was laid.
    """

    job: str
    number: int
    spec: JobSpec
    inputs: frozenset[Digest]


async def attempt_of(platform: Platform, token: str, job: str, number: int) -> Attempt:
    """The attempt that ``token`` speaks for.

    Raises:
        NotAuthentic: The token is not this attempt's.
        Fenced: The attempt is over; that it spoke is put on record once.
    """
    row = await platform.database.one_or_none(_ATTEMPT, {"job": job, "number": number})
    if row is None or not hmac.compare_digest(row.token_hash, hash_of_token(token)):
        raise NotAuthentic("this is not the token of this attempt")
    if _is_over(row):
        await _record_late(platform, job, number)
        raise Fenced("this attempt was superseded, or its job is closed")
    return Attempt(job, number, spec_of(row.spec), frozenset(_INPUTS.decode(row.inputs).values()))


async def take_events(
    platform: Platform, attempt: Attempt, step: StepKind, events: Sequence[AnyStepEvent]
) -> int:
    """Put a step's events on record with all that they mean; the highest number that is there.

    Events that are on record already are passed over.

    Raises:
        EventGap: Events before these, or objects that they name, are not on record.
        Fenced: The attempt is over.
    """
    async with platform.database.writing() as transaction:
        job = await _require_open(transaction, attempt)
        name = {"job": attempt.job, "attempt": attempt.number, "step": step}
        row = await transaction.one_or_none(_ACKNOWLEDGED, name)
        acknowledged = row.number if row and row.number else 0
        fresh = _fresh(events, acknowledged)
        if not fresh:
            return int(acknowledged)
        now = platform.now()
        before = progress = progress_of(job)
        facts: list[Fact] = []
        for event in fresh:
            if isinstance(event, RoundFinished):
                await _take_round(transaction, attempt, event)
            after = after_event(
                progress,
                step,
                event,
                rounds=attempt.spec.rounds,
                output=attempt.spec.output,
            )
            facts.append(_fact(step, event))
            if after.phase is not progress.phase:
                facts.append(transition(progress.phase, after.phase, after.waits_for))
            progress = after
        await record(
            transaction, platform.hub, job, now, changes_between(before, progress, job), facts
        )
    return fresh[-1].number


async def get_object(
    platform: Platform, attempt: Attempt, digest: Digest
) -> tuple[StoredObject, AsyncIterator[bytes]]:
    """One of the job's objects, or of what the attempt is laid, with its bytes.

    Raises:
        ObjectMissing: There is none that this attempt may know of.
    """
    if digest not in attempt.inputs:
        known = await platform.database.one_or_none(
            select(JOB_OBJECT.c.job).where(
                JOB_OBJECT.c.job == attempt.job, JOB_OBJECT.c.digest == digest
            )
        )
        if known is None:
            raise ObjectMissing(digest)
    return await platform.store.stat(digest), platform.store.get(digest)


async def put_object(
    platform: Platform, attempt: Attempt, digest: Digest, chunks: AsyncIterable[bytes]
) -> tuple[StoredObject, bool]:
    """Store an object for the job; False if the job had it already.

    Raises:
        Fenced: The attempt is over.
        StoreError: It was not stored.
    """
    stored = await platform.store.put(
        chunks, expect=digest, max_bytes=platform.rules.max_object_bytes
    )
    async with platform.custody.of(digest):
        await require_stored(platform, digest)
        async with platform.database.writing() as transaction:
            await _require_open(transaction, attempt)
            is_new = await keep(transaction, attempt.job, digest)
    return stored, is_new


async def append_log(
    platform: Platform, attempt: Attempt, step: StepKind, offset: int, content: bytes
) -> int:
    """Store part of a step's log; where the stored log ends now, from where to go on.

    As ``step_logs.append``, up to the job's limit.
    """
    limit = (attempt.spec.limits.log_mb << 20) + LOG_SLACK_BYTES
    return await step_logs.append(
        platform, attempt.job, attempt.number, step, offset=offset, content=content, limit=limit
    )


def progress_of(job: Row[Any]) -> Progress:
    """How far a job's row says that it is."""
    return Progress(
        Phase(job.phase), job.waits_for, job.round, job.loss, _METRICS.decode(job.metrics)
    )


def changes_between(before: Progress, after: Progress, job: Row[Any]) -> dict[str, Any]:
    """Columns to change; who is being cancelled waits for that alone."""
    changes: dict[str, Any] = {
        name: getattr(after, name)
        for name in ("phase", "waits_for", "round", "loss")
        if getattr(after, name) != getattr(before, name)
    }
    if after.metrics != before.metrics:
        changes["metrics"] = text_of(after.metrics)
    if job.desired == Desired.CANCELLED:
        changes["waits_for"] = WAITS_FOR_STOP
    return changes


def _is_over(row: Row[Any]) -> bool:
    return Phase(row.phase).is_final or row.number != row.newest or row.ended_at is not None


async def _require_open(transaction: Transaction, attempt: Attempt) -> Row[Any]:
    """The job's row, held by this transaction; its newest attempt is ``attempt``, and open."""
    try:
        job = await load(transaction, attempt.job)
    except NotFound as error:
        raise Fenced("the job is no more") from error
    row = await transaction.one_or_none(_ATTEMPT, {"job": attempt.job, "number": attempt.number})
    if row is None or _is_over(row):
        raise Fenced("this attempt was superseded, or its job is closed")
    return job


async def _record_late(platform: Platform, job: str, number: int) -> None:
    async with platform.database.writing() as transaction:
        row = await load(transaction, job)
        known = await transaction.one_or_none(
            select(EVENT.c.id).where(
                EVENT.c.job == job, EVENT.c.kind == "late.refused", EVENT.c.attempt == number
            )
        )
        if known is None:
            fact = Fact(kind="late.refused", fields={"attempt": number}, attempt=number)
            await record(transaction, platform.hub, row, platform.now(), {}, [fact])


def _fresh(events: Sequence[AnyStepEvent], acknowledged: int) -> list[AnyStepEvent]:
    """Those that are not on record yet; they must follow on it without a gap."""
    fresh = [event for event in events if event.number > acknowledged]
    for expected, event in enumerate(fresh, acknowledged + 1):
        if event.number != expected:
            raise EventGap(f"event {event.number} came where {expected} must come")
    return fresh


def _fact(step: StepKind, event: AnyStepEvent) -> Fact:
    fields = msgspec.to_builtins(event)
    kind = fields.pop("kind")
    number = fields.pop("number")
    at = datetime.fromtimestamp(fields.pop("at"), UTC)
    return Fact(kind=kind, fields={"step": step, **fields}, at=at, step=step, number=number)


async def _take_round(transaction: Transaction, attempt: Attempt, event: RoundFinished) -> None:
    for digest in (event.checkpoint, event.transcript):
        if not await transaction.one_or_none(
            select(JOB_OBJECT.c.job).where(
                JOB_OBJECT.c.job == attempt.job, JOB_OBJECT.c.digest == digest
            )
        ):
            raise EventGap(f"round {event.round} names {digest}, which is not stored")
    await transaction.execute(
        delete(ROUND).where(ROUND.c.job == attempt.job, ROUND.c.number == event.round)
    )
    await transaction.execute(
        insert(ROUND),
        {
            "job": attempt.job,
            "number": event.round,
            "attempt": attempt.number,
            "sites": event.sites,
            "dropped": event.dropped,
            "loss": event.loss,
            "metrics": text_of(event.metrics),
            "bytes_up": event.bytes_up,
            "bytes_down": event.bytes_down,
            "seconds": event.seconds,
            "epsilon": event.epsilon,
            "model": event.model,
            "checkpoint": event.checkpoint,
            "transcript": event.transcript,
            "at": datetime.fromtimestamp(event.at, UTC),
        },
    )
