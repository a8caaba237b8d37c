"""``/v1/admin``: for those who run the platform, and for auditors."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from litestar import Response, get, patch, post
from litestar.params import FromPath, JSONBody, QueryParameter

from clients.resources import (
    AuditEntry,
    AuditVerification,
    KeyRotation,
    OrganisationUse,
    Page,
    PlatformKey,
    PlatformStatus,
    QuotaChange,
)
from control_plane import administration, audit, quotas, refusals, rotation
from control_plane.api import metrics
from control_plane.api.bodies import DEFAULT_LIMIT, page, position
from control_plane.api.jobs import Cursor, Limit
from control_plane.api.requests import Call
from sharing.object_store import is_digest

Since = Annotated[
    datetime | None, QueryParameter(description="Only what was done then or later, with its zone.")
]
KnownNumber = Annotated[
    int | None, QueryParameter(ge=1, description="Number of an entry that was kept elsewhere.")
]
KnownDigest = Annotated[str | None, QueryParameter(description="Digest of that entry.")]


@get(
    "/v1/admin/status",
    operation_id="readStatus",
    tags=["admin"],
    opt={"problems": (refusals.Forbidden,)},
)
async def read_status(request: Call) -> PlatformStatus:
    """Show what runs, what waits and why, and who has how much."""
    service = request.service
    return await administration.read_status(
        service.platform, request.who, service.reconciler.troubles
    )


@get(
    "/v1/admin/metrics",
    operation_id="organisationMetrics",
    tags=["admin"],
    opt={"content": ("text/plain",), "problems": (refusals.Forbidden,)},
)
async def read_metrics(request: Call) -> Response[bytes]:
    """Tell Prometheus what each organisation has and may have; `/metrics` names nobody."""
    uses = await quotas.list_uses(request.service.platform, request.who)
    return Response(metrics.exposition_of(uses), media_type=metrics.MEDIA_TYPE)


@get(
    "/v1/admin/audit",
    operation_id="listAudit",
    tags=["admin"],
    opt={"problems": (refusals.Forbidden, refusals.Unacceptable)},
)
async def list_audit(
    request: Call, since: Since = None, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Response[Page[AuditEntry]]:
    """List who did what, newest first: all of it for the platform's host, else one's own."""
    if since is not None and since.tzinfo is None:
        raise refusals.Unacceptable("since", "must have its zone")
    platform, before = request.service.platform, position(request, cursor)
    return page(request, await audit.list_audit(platform, request.who, limit, before, since))


@get(
    "/v1/admin/audit/verification",
    operation_id="verifyAudit",
    tags=["admin"],
    opt={
        "streams": True,  # it takes as long as the log is
        "problems": (refusals.Forbidden, refusals.NotFound, refusals.Unacceptable),
    },
)
async def verify_audit(
    request: Call, number: KnownNumber = None, digest: KnownDigest = None
) -> AuditVerification:
    """Compute every digest of the audit log anew, and compare one with what was kept elsewhere."""
    if (number is None) != (digest is None) or (digest is not None and not is_digest(digest)):
        raise refusals.Unacceptable("digest", "number and digest of an entry belong together")
    known = (number, digest) if number is not None and digest is not None else None
    return await audit.verify_audit(request.service.platform, request.who, known)


@get(
    "/v1/admin/keys",
    operation_id="listKeys",
    tags=["admin"],
    opt={"problems": (refusals.Forbidden,)},
)
async def list_keys(request: Call) -> Page[PlatformKey]:
    """List the platform's own keys, all on one page, without what they are."""
    return Page(items=await rotation.list_keys(request.service.platform, request.who))


@post(
    "/v1/admin/keys/{purpose:str}/rotations",
    operation_id="rotateKey",
    tags=["admin"],
    status_code=201,
    opt={"problems": (refusals.Forbidden, refusals.NotFound)},
)
async def rotate_key(
    request: Call, purpose: FromPath[str], data: JSONBody[KeyRotation]
) -> PlatformKey:
    """Have a new key take the place of the one that seals; the new one is the answer."""
    platform, who = request.service.platform, request.who
    return await rotation.rotate(platform, who, purpose, is_at_once=data.at_once)


@get("/v1/quota", operation_id="readQuota", tags=["accounts"])
async def read_quota(request: Call) -> OrganisationUse:
    """Say what the caller's organisation may have, and has."""
    return await quotas.own_use(request.service.platform, request.who)


@patch(
    "/v1/admin/quotas/{organisation:str}",
    operation_id="changeQuota",
    tags=["admin"],
    opt={"problems": (refusals.Forbidden,)},
)
async def change_quota(
    request: Call, organisation: FromPath[str], data: JSONBody[QuotaChange]
) -> OrganisationUse:
    """Set what an organisation may have: a number, or null for the platform's settings."""
    return await quotas.change_quota(request.service.platform, request.who, organisation, data)


HANDLERS = (
    *(read_status, read_metrics, list_audit, verify_audit, read_quota, change_quota),
    *(list_keys, rotate_key),
)
