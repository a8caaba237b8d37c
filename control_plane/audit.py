"""Who did what: an append-only log whose every row covers the one before by its digest.

A row is written in the transaction of the act that it tells of, so there is none without the other.
Changing, dropping or inserting a row breaks the chain from there on. Whoever owns the whole
database could compute the chain anew: to find that out, keep number and digest of some row
elsewhere (each is logged as ``audit.recorded``) and name it when verifying.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import structlog
from sqlalchemy import Row, insert, select, update

from clients.identity import Principal
from clients.resources import AuditEntry, AuditVerification
from control_plane.authorisation import Action, Relation, may
from control_plane.hosts import may_for_all, require_host
from control_plane.pages import Slice, cut, newest
from control_plane.platform import Platform
from control_plane.records.database import Transaction
from control_plane.records.tables import AUDIT, AUDIT_HEAD
from control_plane.refusals import Forbidden, NotFound
from control_plane.tracing import trace_id
from workflows.canonical import digest_value

FIRST_DIGEST: Final = "sha256:" + "0" * 64
"""What stands for the digest of the row before the first."""
BATCH: Final = 1000
MOST_TEXT: Final = 500
"""Characters kept of a refused request's path."""

_log = structlog.get_logger()
_DETAIL: Final = msgspec.json.Decoder(dict[str, Any])


async def note(
    transaction: Transaction,
    now: datetime,
    who: Principal | None,
    action: str,
    subject: str,
    *,
    outcome: str = "done",
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Put an act on record; called last in its transaction, for it keeps others from the log.

    Args:
        transaction: Of the act.
        now: The time, in UTC.
        who: Acts; None for the platform itself.
        action: As ``job.submit``.
        subject: Id of what it is done to.
        outcome: ``done`` or ``refused``.
        detail: More, without secrets; JSON.
    """
    row = await transaction.one_or_none(
        update(AUDIT_HEAD)
        .values(number=AUDIT_HEAD.c.number + 1)
        .returning(AUDIT_HEAD.c.number, AUDIT_HEAD.c.digest)
    )
    assert row is not None  # noqa: S101 - its migration made it
    values = {
        "number": row.number,
        "at": now,
        "actor": "" if who is None else who.user,
        "organisation": "" if who is None else who.organisation,
        "action": action,
        "object": subject,
        "outcome": outcome,
        "detail": msgspec.json.encode(detail or {}, order="sorted").decode(),
        "trace_id": trace_id.get(),
    }
    digest = digest_after(row.digest, values)
    await transaction.execute(insert(AUDIT), {**values, "digest": digest})
    await transaction.execute(update(AUDIT_HEAD).values(digest=digest))
    number = row.number
    transaction.after_commit(lambda: _log.info("audit.recorded", number=number, digest=digest))


async def note_refusal(platform: Platform, who: Principal, action: str, subject: str) -> None:
    """Put on record that somebody was not allowed to do something.

    Raises:
        DatabaseUnavailable: It is not on record.
    """
    async with platform.database.writing() as transaction:
        await note(transaction, platform.now(), who, action, _kept(subject), outcome="refused")


async def list_audit(
    platform: Platform,
    who: Principal,
    limit: int,
    before: str | None = None,
    since: datetime | None = None,
) -> Slice[AuditEntry]:
    """Entries, newest first: all for whoever runs the platform, else of one's organisation.

    Raises:
        Forbidden: The caller may not read the log.
    """
    if not may(who.roles, Action.READ_AUDIT, Relation.OWNER):
        raise Forbidden("only an admin or an auditor may read the audit log")
    place = None if before is None else int(before)
    query = newest(select(AUDIT), AUDIT.c.number, limit, place)
    if not await may_for_all(platform, who, Action.READ_AUDIT):
        query = query.where(AUDIT.c.organisation == who.organisation)
    if since is not None:
        query = query.where(AUDIT.c.at >= since)
    rows = await platform.database.rows(query)
    return cut([(str(row.number), _entry(row)) for row in rows], limit)


async def verify_audit(
    platform: Platform, who: Principal, known: tuple[int, str] | None = None
) -> AuditVerification:
    """Compute every digest anew.

    Args:
        platform: Whose log.
        who: An admin or auditor of the organisation that runs the platform.
        known: Number and digest of a row, as they were kept elsewhere.

    Raises:
        Forbidden: The caller may not.
        NotFound: There is no row of the known number; the end of the log is gone.
    """
    await require_host(platform, who, Action.READ_AUDIT)
    head = await platform.database.one_or_none(select(AUDIT_HEAD))
    assert head is not None  # noqa: S101 - its migration made it
    number, digest = 0, FIRST_DIGEST
    while True:
        rows = await platform.database.rows(
            select(AUDIT)
            .where(AUDIT.c.number > number, AUDIT.c.number <= head.number)
            .order_by(AUDIT.c.number)
            .limit(BATCH)
        )
        for row in rows:
            number, digest = number + 1, digest_after(digest, dict(row._mapping))
            is_known = known is None or known[0] != number or known[1] == digest
            if row.number != number or row.digest != digest or not is_known:
                return AuditVerification(is_whole=False, rows=head.number, broken_at=number)
        if len(rows) < BATCH:
            break
    if (number, digest) != (head.number, head.digest):
        return AuditVerification(is_whole=False, rows=head.number, broken_at=number + 1)
    if known is not None and known[0] > number:
        raise NotFound(f"the log ends at {number}, before the row that you know")
    return AuditVerification(is_whole=True, rows=number, head=digest)


def digest_after(before: str, row: Mapping[str, Any]) -> str:
    """Digest of a row that follows one of digest ``before``."""
    at: datetime = row["at"]
    names = ("number", "actor", "organisation", "action", "object", "outcome", "detail", "trace_id")
    said = {name: row[name] for name in names}
    return digest_value({**said, "at": at.astimezone(UTC).isoformat(), "before": before})


def _kept(said: str) -> str:
    """What is kept of a caller's words; no database need hold a NUL, nor the digest cover one."""
    return said[:MOST_TEXT].replace("\0", "\N{SYMBOL FOR NULL}")


def _entry(row: Row[Any]) -> AuditEntry:
    return AuditEntry(
        number=row.number,
        at=row.at,
        actor=row.actor,
        organisation=row.organisation,
        action=row.action,
        object=row.object,
        outcome=row.outcome,
        detail=_DETAIL.decode(row.detail),
        trace_id=row.trace_id,
        digest=row.digest,
    )
