"""The one way in which a job changes: its row and the events that tell of it, together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Row, bindparam, insert, select, update

from clients.resources import Event
from control_plane.event_hub import EventHub
from control_plane.notices import of_events
from control_plane.records.database import Transaction
from control_plane.records.tables import EVENT, JOB
from control_plane.refusals import DatabaseUnavailable, NotFound
from workflows.plan import StepKind
from workflows.run import Phase, advance

# Not the lock that a new row which belongs to the job would have to wait for.
_SELECT: Final = select(JOB).where(JOB.c.id == bindparam("id")).with_for_update(key_share=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that happened, before it has an id.

    Attributes:
        kind: Past-tense fact with dots.
        fields: Depend on the kind; JSON.
        at: When; None for the moment of writing.
        step: Of a step's event.
        number: Of a step's event, within its attempt and step.
        attempt: Whose it is; None for the newest.
    """

    kind: str
    fields: Mapping[str, Any]
    at: datetime | None = None
    step: StepKind | None = None
    number: int | None = None
    attempt: int | None = None


async def load(transaction: Transaction, job: str) -> Row[Any]:
    """The job's row as it is now, and stays until the transaction ends but for this one's changes.

    Raises:
        NotFound: It is gone.
    """
    row = await transaction.one_or_none(_SELECT, {"id": job})
    if row is None:
        raise NotFound("no such job")
    return row


def transition(before: Phase, after: Phase, waits_for: str) -> Fact:
    """That a run went from one phase to the next.

    Raises:
        IllegalTransition: It may not.
    """
    fields = {"before": before, "after": advance(before, after), "waits_for": waits_for}
    return Fact(kind="run.transitioned", fields=fields)


async def record(
    transaction: Transaction,
    hub: EventHub,
    job: Row[Any],
    now: datetime,
    changes: Mapping[str, Any],
    facts: Sequence[Fact] = (),
) -> None:
    """Change the job from what it is in ``job``, and put on record the facts that tell of it.

    Watchers hear of them after the commit.

    Raises:
        DatabaseUnavailable: The job was changed since ``job`` was read; nothing was written.
    """
    newest = changes.get("attempt", job.attempt)
    events = [
        Event(
            id=job.last_event + i,
            kind=fact.kind,
            at=fact.at or now,
            attempt=newest if fact.attempt is None else fact.attempt,
            fields=msgspec.to_builtins(fact.fields),
        )
        for i, fact in enumerate(facts, 1)
    ]
    written = await transaction.execute(
        update(JOB)
        .where(JOB.c.id == job.id, JOB.c.version == job.version)
        .values(
            **changes,
            version=job.version + 1,
            last_event=job.last_event + len(events),
            updated_at=now,
        )
    )
    if not written:
        raise DatabaseUnavailable("the job was changed at the same time")
    if events:
        await transaction.execute(
            insert(EVENT),
            [
                {
                    "job": job.id,
                    "id": event.id,
                    "attempt": event.attempt,
                    "step": fact.step,
                    "number": fact.number,
                    "kind": event.kind,
                    "at": event.at,
                    "fields": msgspec.json.encode(event.fields).decode(),
                }
                for event, fact in zip(events, facts, strict=True)
            ],
        )
        transaction.after_commit(lambda: hub.publish(job.id, events))
        transaction.tell(of_events(job.id, events))
