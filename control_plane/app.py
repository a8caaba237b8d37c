"""The composition root: which adapter stands behind which port, and what HTTP is made of."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import datetime, timedelta
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import structlog
from litestar import Litestar
from litestar.datastructures import State

from clients.identity import Principal
from clients.resources import Quota
from control_plane import retention
from control_plane.accounts import bootstrap
from control_plane.api import (
    accounts,
    admin,
    capabilities,
    collaborations,
    datasets,
    documentation,
    health,
    ingest,
    jobs,
    login,
    models,
    problems,
    programs,
    storage,
    uploads,
)
from control_plane.api.authentication import authenticated
from control_plane.api.bodies import StrictJson
from control_plane.api.metrics import Metrics
from control_plane.api.requests import Call
from control_plane.api.service import Service
from control_plane.api.tracing import read_parent_span, read_trace
from control_plane.audit import note_refusal
from control_plane.local_identity import LocalIdentity
from control_plane.platform import MakeIdentity, Rules, local_identity, open_platform, utc_now
from control_plane.reconciler import Reconciler
from control_plane.refusals import DatabaseUnavailable
from control_plane.settings import Settings
from control_plane.stores import open_store
from control_plane.tracing import Span, parent_header, trace_id, traceparent
from workflows.engine import Inspectable, WorkflowEngine
from workflows.kubernetes import in_cluster, read_kubeconfig
from workflows.local_engine import LocalEngine

log = structlog.get_logger()

ENDPOINT_FILE: Final = "endpoint"
UNTRACED: Final = frozenset({"/health/live", "/health/ready", "/metrics"})
HANDLERS: Final = (
    *jobs.HANDLERS,
    *programs.HANDLERS,
    *datasets.HANDLERS,
    *models.HANDLERS,
    *collaborations.HANDLERS,
    *accounts.HANDLERS,
    *storage.HANDLERS,
    *uploads.HANDLERS,
    *login.HANDLERS,
    *capabilities.HANDLERS,
    *admin.HANDLERS,
    *ingest.HANDLERS,
    *health.HANDLERS,
    *documentation.HANDLERS,
)


class Application(Litestar):
    """The web application, with what must happen on every request, routed or not."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        """Give the request its trace, and count its answer."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        trace_id.set(trace := read_trace(scope["headers"]))
        traceparent.set(header := parent_header(trace, secrets.token_hex(8)))
        began_at = utc_now()
        headers = ((b"x-request-id", trace.encode()), (b"x-content-type-options", b"nosniff"))
        metrics: Metrics = self.state["metrics"]
        began = time.perf_counter()

        async def answer(message: Any) -> None:  # noqa: ANN401 - ASGI
            if message["type"] == "http.response.start":
                if message["status"] == HTTPStatus.FORBIDDEN:
                    await self._note_refusal(scope)
                message["headers"] = (*message["headers"], *headers)
                seconds = time.perf_counter() - began
                route = scope.get("path_template")
                metrics.answered(scope["method"], route, message["status"], seconds)
                self._send_span(scope, header, began_at, message["status"])
            await send(message)

        await super().__call__(scope, receive, answer)

    def _send_span(self, scope: Any, header: str, began_at: datetime, status: int) -> None:  # noqa: ANN401 - ASGI
        """Tell of a request once its answer begins; not of those that look whether we are well."""
        service = self.state.get("service")
        route = str(scope.get("path_template"))
        if service is None or service.platform.send_spans is None or route in UNTRACED:
            return
        _, trace, span, _ = header.split("-")
        attributes: dict[str, str | int] = {
            "http.request.method": scope["method"],
            "http.route": route,
            "http.response.status_code": status,
        }
        service.platform.send_spans(
            [
                Span(
                    trace=trace,
                    id=span,
                    parent=read_parent_span(scope["headers"]),
                    name=f"{scope['method']} {route}",
                    start=began_at,
                    end=utc_now(),
                    attributes=attributes,
                    failed=status >= HTTPStatus.INTERNAL_SERVER_ERROR,
                )
            ]
        )

    async def _note_refusal(self, scope: Any) -> None:  # noqa: ANN401 - ASGI
        """Put on record whom the answer tells that they may not, before it does."""
        who = scope.get("user")
        if not isinstance(who, Principal):
            return
        action = f"{scope['method']} {scope.get('path_template')}"
        try:
            await note_refusal(self.state["service"].platform, who, action, scope["path"])
        except DatabaseUnavailable as error:
            log.error("audit.failed", user=who.user, action=action, error=str(error))


def create_app(
    settings: Settings,
    *,
    engine: WorkflowEngine,
    url: Callable[[], str],
    announce_token: Callable[[str], None],
) -> Application:
    """The control plane as a web application; its life begins and ends with the server's.

    Args:
        settings: How it is set up. The data folder is there, and ours alone.
        engine: Runs what is admitted.
        url: Where steps on this machine reach it; asked when an attempt starts.
        announce_token: Takes the administrator's token, at the first start of all.
    """

    @asynccontextmanager
    async def life(app: Litestar) -> AsyncIterator[None]:
        async with (
            _working(engine),
            _spans(settings.otlp_endpoint) as send_spans,
            open_store(settings) as store,
            open_platform(
                folder=settings.data,
                store=store,
                rules=_rules(settings),
                engine=engine.abilities,
                database_url=settings.records_url,
                identity=_identity(settings),
                send_spans=send_spans,
                locate=engine.locate if isinstance(engine, Inspectable) else None,
            ) as platform,
        ):
            await bootstrap(platform, announce_token)
            reconciler = Reconciler(platform, engine, url, app.state["metrics"].passed)
            app.state["service"] = Service(
                settings=settings,
                platform=platform,
                reconciler=reconciler,
                metrics=app.state["metrics"],
            )
            loops = (
                asyncio.create_task(reconciler.run(), name="reconciler"),
                asyncio.create_task(retention.keep_sweeping(platform), name="retention"),
            )
            for loop in loops:
                loop.add_done_callback(_report_end)
            try:
                yield
            finally:
                platform.hub.close()
                for loop in loops:
                    loop.cancel()
                await asyncio.wait(loops)

    return Application(
        route_handlers=HANDLERS,
        lifespan=[life],
        middleware=[authenticated],
        exception_handlers={Exception: problems.answer},
        request_class=Call,
        dto=StrictJson,
        return_dto=None,
        type_encoders={},
        request_max_body_size=None,
        openapi_config=documentation.configuration(),
        state=State({"metrics": Metrics()}),
        logging_config=None,
        debug=False,
    )


def _working(engine: WorkflowEngine) -> AbstractAsyncContextManager[Any]:
    """An engine that watches something does so for as long as the application lives."""
    return engine if isinstance(engine, AbstractAsyncContextManager) else nullcontext()


def _report_end(loop: asyncio.Task[None]) -> None:
    """Say so if a loop ended by itself; of the reconciler, ``/health/ready`` shows it too."""
    if not loop.cancelled():
        ended = f"{loop.get_name()}.ended"
        log.critical(ended, exc_info=loop.exception())


def chosen_engine(settings: Settings, environ: Mapping[str, str]) -> WorkflowEngine:
    """The engine that the settings ask for.

    Raises:
        ClusterUnknown: It is not said how to reach the cluster.
    """
    match settings.engine:
        case "local":
            return local_engine(settings, environ)
        case "argo":
            return _argo_engine(settings, environ)


def _argo_engine(settings: Settings, environ: Mapping[str, str]) -> WorkflowEngine:
    from workflows.argo_engine import ArgoEngine
    from workflows.argo_workflow import Placement

    at = settings.kubeconfig
    return ArgoEngine(
        read_kubeconfig(at) if at else in_cluster(environ),
        Placement(
            namespace=settings.namespace,
            image=settings.image or "",
            scratch_mb=settings.scratch_mb,
            node_selector=settings.node_selector,
            runs_per_organisation=settings.runs_per_organisation,
            link=f"{(settings.endpoint_url or '').rstrip('/')}/v1/jobs/JOB",
            pages=(settings.argo_url or "").rstrip("/"),
        ),
    )


def local_engine(settings: Settings, environ: Mapping[str, str]) -> LocalEngine:
    """The engine that needs nothing but this machine: attempts as child processes.

    Args:
        settings: Say where the data folder is.
        environ: Of this process; almost nothing of it reaches an attempt.
    """
    endpoint_file = settings.data / ENDPOINT_FILE
    return LocalEngine(settings.data / "runs", endpoint_file=endpoint_file, environ=environ)


def _identity(settings: Settings) -> MakeIdentity:
    """Who says who is calling; the adapter for Keycloak is imported only where it is chosen."""
    if settings.keycloak is None:
        return local_identity
    from control_plane.enrolment import enrol
    from control_plane.keycloak_identity import connected

    realm = settings.keycloak
    return lambda database, now: connected(
        realm,
        local=LocalIdentity(database, now),
        enrol=partial(enrol, database, now),
        now=now,
    )


@asynccontextmanager
async def _spans(
    endpoint: str | None,
) -> AsyncIterator[Callable[[Sequence[Span]], None] | None]:
    """What takes spans while the server runs, if somebody wants them."""
    if endpoint is None:
        yield None
        return
    from control_plane.otlp import OtlpSpans

    spans = await asyncio.to_thread(OtlpSpans, endpoint)
    try:
        yield spans.send
    finally:
        await spans.close()


def _rules(settings: Settings) -> Rules:
    storage_mb, retained = settings.quota_storage_mb, settings.s3_retention_days
    return Rules(
        max_running=settings.max_running,
        max_attempts=settings.max_attempts,
        interval_s=settings.reconcile_s,
        lease_s=settings.lease_s,
        max_bundle_bytes=settings.program_mb << 20,
        max_dataset_bytes=settings.dataset_mb << 20,
        max_object_bytes=settings.object_mb << 20,
        probe_timeout_s=settings.probe_s,
        max_streams=settings.max_streams,
        max_user_streams=settings.max_user_streams,
        lock_proofs=None if retained is None else timedelta(days=retained),
        quota=Quota(
            running=settings.quota_running,
            workers=settings.quota_workers,
            storage_bytes=None if storage_mb is None else storage_mb << 20,
            open_jobs=settings.quota_open_jobs,
        ),
        retain_checkpoints=_days(settings.retain_checkpoints_days),
        retain_logs=_days(settings.retain_logs_days),
    )


def _days(count: float) -> timedelta | None:
    """So many days; None for more than there are."""
    return timedelta(days=count) if count < timedelta.max.days else None
