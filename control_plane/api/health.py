"""``/health`` and ``/metrics``: for whoever keeps the server running. Public, and without names."""

from __future__ import annotations

import time
from asyncio import timeout
from collections.abc import Awaitable
from typing import Final, Literal

import msgspec
from litestar import Response, get

from control_plane import jobs
from control_plane.api import metrics
from control_plane.api.requests import Call
from control_plane.api.service import Service
from control_plane.refusals import ControlPlaneError
from sharing.object_store import ObjectMissing, StoreError, digest_of

CHECK_S: Final = 2.0
HEARTBEAT_S: Final = 10.0
State = Literal["ok", "unavailable"]


class Health(msgspec.Struct, frozen=True):
    """Whether the server can do its work.

    Attributes:
        checks: By what the server depends on.
    """

    status: State
    checks: dict[str, State] = {}


@get("/health/live", operation_id="live", tags=["health"], opt={"access": "public"})
async def live() -> Health:
    """Say that the process answers."""
    return Health("ok")


@get(
    "/health/ready",
    operation_id="ready",
    tags=["health"],
    opt={"access": "public", "also": {503: (Health, "It cannot do its work just now.")}},
)
async def ready(request: Call) -> Response[Health]:
    """Say whether database, store and reconciler do their work."""
    service = request.service
    checks: dict[str, State] = {
        "database": await _answers(service.platform.database.ping()),
        "store": await _answers(_reads(service)),
        "reconciler": "ok" if _reconciler_age_s(service) < HEARTBEAT_S else "unavailable",
    }
    well = all(state == "ok" for state in checks.values())
    health = Health("ok" if well else "unavailable", checks)
    return Response(health, status_code=200 if well else 503)


async def _answers(check: Awaitable[None]) -> State:
    try:
        async with timeout(CHECK_S):
            await check
    except (ControlPlaneError, StoreError, TimeoutError):
        return "unavailable"
    return "ok"


async def _reads(service: Service) -> None:
    try:
        await service.platform.store.stat(digest_of(b""))
    except ObjectMissing:
        return


def _reconciler_age_s(service: Service) -> float:
    return time.monotonic() - service.reconciler.last_pass


@get(
    "/metrics",
    operation_id="metrics",
    tags=["health"],
    opt={"access": "public", "content": ("text/plain",)},
)
async def read_metrics(request: Call) -> Response[bytes]:
    """Tell Prometheus how things are."""
    service = request.service
    readings = metrics.Readings(
        open_jobs=await jobs.open_jobs_by_phase(service.platform),
        oldest_wait_s=await jobs.oldest_wait_s(service.platform),
        slots=service.platform.rules.max_running,
        stalled=len(service.reconciler.troubles),
        losses=service.reconciler.losses,
        watchers=service.platform.hub.num_watchers,
        age_s=_reconciler_age_s(service),
    )
    return Response(service.metrics.exposition(readings), media_type=metrics.MEDIA_TYPE)


HANDLERS = (live, ready, read_metrics)
