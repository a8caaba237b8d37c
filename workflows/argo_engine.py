"""The engine for a cluster: each attempt is an Argo workflow, each step a pod of it.

It speaks to the Kubernetes API alone, and not to Argo's server: Secrets are needed in any case, so
there is one address, one credential and one set of rights, and Argo's server may be absent. What
runs is seen by a watch that starts anew with a whole list; where the watch has a gap, the object
itself is asked for. Nothing is known here that the cluster does not know.

Source: Kubernetes API concepts ("Efficient detection of changes"); Argo Workflows v4.0, whose
``argo terminate`` is a patch of ``spec.shutdown``.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Any, Final, Self

import httpx
import msgspec
import structlog

from workflows.argo_status import Metadata, SeenWorkflow, is_left_waiting, observe
from workflows.argo_workflow import (
    MANAGED_BY,
    PLAN_DIGEST,
    SEMAPHORES,
    Placement,
    name_of,
    organisation_of,
    secret_of,
    service_of,
    shards_name,
    shards_secret_of,
    spread_of,
    workflow_of,
)
from workflows.capabilities import EngineAbilities
from workflows.engine import (
    Credentials,
    EngineUnavailable,
    Location,
    Observation,
    PlanRefused,
    require_job_id,
    require_safe,
)
from workflows.kubernetes import Cluster, open_client
from workflows.link import make_links
from workflows.plan import Plan

_RESYNC_S: Final = 300
_REWATCH_S: Final = 1.0
_WORKFLOW: Final = msgspec.json.Decoder(SeenWorkflow)
_MERGE: Final = {"Content-Type": "application/merge-patch+json"}

_log = structlog.get_logger()


class _ListMetadata(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str


class _List(msgspec.Struct, frozen=True):
    metadata: _ListMetadata
    items: tuple[SeenWorkflow, ...]


class _Change(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


class _Rejected(Exception):
    """The API server understood, and declined.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class ArgoEngine:
    """Workflows of one namespace. Works while it is entered (``async with engine``).

    Args:
        cluster: Where the namespace is.
        placement: Where pods go, and as what.
    """

    abilities: EngineAbilities = EngineAbilities(reserves=True, gpus=True)

    def __init__(self, cluster: Cluster, placement: Placement) -> None:
        self._cluster = cluster
        self._placement = placement
        self._seen: dict[str, SeenWorkflow] | None = None
        self._removed: set[str] = set()
        self._dismissed: set[str] = set()
        self._client: httpx.AsyncClient | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._client = open_client(self._cluster)
        self._watch = asyncio.create_task(self._keep_watching(), name="argo-watch")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait((self._watch,))
        if self._client is not None:
            await self._client.aclose()
        self._client, self._watch, self._seen = None, None, None

    def locate(self, job: str, attempt: int) -> Location:
        namespace, name = self._placement.namespace, name_of(job, attempt)
        pages = self._placement.pages
        url = f"{pages}/workflows/{namespace}/{name}" if pages else None
        return Location(namespace=namespace, name=name, url=url)

    async def submit(self, plan: Plan, credentials: Credentials) -> None:
        """Lay the Secret out, then create the workflow that takes it, then tie them together."""
        require_safe(plan)
        name = name_of(plan.job, plan.attempt)
        beside = _beside(plan, msgspec.json.encode(credentials))
        workflow = workflow_of(plan, self._placement)
        running = await self._get(name)
        if running is None:
            await self._share_out(plan)
            for kind, one in beside:
                await self._put(kind, one)
            try:
                content = await self._call("POST", self._workflows(), json=workflow)
                running = _decode(content)
            except _Rejected as error:
                if error.status != 409:
                    raise PlanRefused(f"the cluster refused the workflow: {error}") from error
                running = await self._get(name)
        if running is None:
            raise EngineUnavailable("a workflow of this name is just going away")
        if running.metadata.annotations.get(PLAN_DIGEST) != plan.plan_digest:
            raise PlanRefused(
                f"attempt {plan.attempt} of {plan.job} runs another plan: "
                f"there is a workflow {name} that was not made for this one"
            )
        for kind, one in beside:
            await self._own(kind, one["metadata"]["name"], running.metadata)

    async def observe(self, job: str, attempt: int) -> Observation | None:
        """What the watch saw last; asked for anew where it saw nothing.

        Shards that came too late for their server are told so, by taking its name away.
        """
        require_job_id(job)
        name = name_of(job, attempt)
        workflow = (self._seen or {}).get(name) or await self._get(name)
        if workflow is None:
            return None
        if is_left_waiting(workflow) and workflow.metadata.uid not in self._dismissed:
            await self._delete(self._core("services", shards_name(name)))
            self._dismissed.add(workflow.metadata.uid)
        return observe(workflow)

    async def cancel(self, job: str, attempt: int) -> None:
        """Have Argo signal the pods, which Kubernetes ends once their grace is over."""
        require_job_id(job)
        name = name_of(job, attempt)
        workflow = await self._get(name)
        if workflow is None or workflow.is_over or workflow.spec.shutdown:
            return
        patch = {"spec": {"shutdown": "Terminate"}}
        with contextlib.suppress(_Absent):
            await self._ask("PATCH", self._workflows(name), json=patch, headers=_MERGE)

    async def remove(self, job: str, attempt: int) -> None:
        """Delete the workflow, and with it its pods, and what was laid out beside it."""
        require_job_id(job)
        name = name_of(job, attempt)
        workflow = await self._get(name)
        if workflow is not None and not workflow.is_over:
            raise EngineUnavailable("the attempt still runs")
        if workflow is not None:
            self._removed.add(workflow.metadata.uid)
            (self._seen or {}).pop(name, None)
            await self._delete(self._workflows(name), workflow.metadata.uid)
        await self._delete(self._core("secrets", name))
        if workflow is None:  # else they go with it
            for kind in ("secrets", "services"):
                await self._delete(self._core(kind, shards_name(name)))

    async def _get(self, name: str) -> SeenWorkflow | None:
        try:
            return _decode(await self._ask("GET", self._workflows(name)))
        except _Absent:
            return None

    async def _put(self, kind: str, one: dict[str, Any]) -> None:
        """Replace what an earlier try left; its secrets are good no more."""
        await self._delete(self._core(kind, one["metadata"]["name"]))
        await self._ask("POST", self._core(kind), json=one)

    async def _own(self, kind: str, name: str, workflow: Metadata) -> None:
        """Have what lies beside the workflow go with it, however that goes."""
        owner = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "name": workflow.name,
            "uid": workflow.uid,
        }
        patch = {"metadata": {"ownerReferences": [owner]}}
        with contextlib.suppress(_Absent):
            await self._ask("PATCH", self._core(kind, name), json=patch, headers=_MERGE)

    async def _share_out(self, plan: Plan) -> None:
        """Put on record how many workflows the organisation may run, which Argo looks up."""
        most = self._placement.runs_per_organisation
        if most is None:
            return
        data = {organisation_of(plan): str(most)}
        metadata = {"name": SEMAPHORES, "labels": {"app.kubernetes.io/managed-by": "foedus"}}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        path = self._core("configmaps", SEMAPHORES)
        try:
            await self._ask("PATCH", path, json={"data": data}, headers=_MERGE)
        except _Absent:
            await self._ask("POST", self._core("configmaps"), json=body)

    async def _delete(self, path: str, uid: str | None = None) -> None:
        options = {"preconditions": {"uid": uid}} if uid else {}
        body = {"propagationPolicy": "Background", **options}
        with contextlib.suppress(_Absent):
            await self._ask("DELETE", path, json=body)

    async def _ask(self, method: str, path: str, **options: Any) -> bytes:  # noqa: ANN401 - httpx's
        """The same, where being declined is a fault of the set-up that can be mended."""
        try:
            return await self._call(method, path, **options)
        except _Rejected as error:
            if error.status == 404:
                raise _Absent from error
            raise EngineUnavailable(f"{method} {path}: {error}") from error

    async def _call(self, method: str, path: str, **options: Any) -> bytes:  # noqa: ANN401 - httpx's
        if self._client is None:
            raise EngineUnavailable("the engine is not entered")
        try:
            response = await self._client.request(method, path, **options)
        except (httpx.HTTPError, OSError) as error:
            raise EngineUnavailable(f"the cluster did not answer: {error!r}") from error
        if response.is_success:
            return response.content
        if response.status_code >= 500 or response.status_code in (401, 403, 408, 429):
            raise EngineUnavailable(_told(response))
        raise _Rejected(response.status_code, _told(response))

    async def _keep_watching(self) -> None:
        trouble = ""
        while True:
            try:
                await self._follow()
                trouble = ""
            except (EngineUnavailable, httpx.HTTPError, OSError, msgspec.DecodeError) as error:
                self._seen = None
                if trouble != (trouble := f"{type(error).__name__}: {error}"):
                    _log.warning("argo.watch.broken", error=trouble)
                await asyncio.sleep(_REWATCH_S)

    async def _follow(self) -> None:
        """Take the whole list, then every change, until the API server ends the watch."""
        assert self._client is not None  # noqa: S101 - entered
        select = {"labelSelector": MANAGED_BY}
        found = msgspec.json.decode(
            await self._ask("GET", self._workflows(), params=select), type=_List
        )
        self._seen = {one.metadata.name: one for one in found.items}
        options = {
            **select,
            "watch": "true",
            "resourceVersion": found.metadata.resource_version,
            "timeoutSeconds": str(_RESYNC_S),
        }
        timeout = httpx.Timeout(30.0, read=_RESYNC_S + 30.0)
        async with self._client.stream(
            "GET", self._workflows(), params=options, timeout=timeout
        ) as response:
            if not response.is_success:
                await response.aread()
                raise EngineUnavailable(_told(response))
            async for line in response.aiter_lines():
                if not self._take(msgspec.json.decode(line, type=_Change)):
                    return

    def _take(self, change: _Change) -> bool:
        """Take one change in; False if the list must be taken anew."""
        if change.type not in ("ADDED", "MODIFIED", "DELETED") or self._seen is None:
            return False
        workflow = _decode(bytes(change.object))
        if change.type == "DELETED":
            self._seen.pop(workflow.metadata.name, None)
            self._removed.discard(workflow.metadata.uid)
            self._dismissed.discard(workflow.metadata.uid)
        elif workflow.metadata.uid not in self._removed:
            self._seen[workflow.metadata.name] = workflow
        return True

    def _workflows(self, name: str = "") -> str:
        path = f"/apis/argoproj.io/v1alpha1/namespaces/{self._placement.namespace}/workflows"
        return f"{path}/{name}" if name else path

    def _core(self, kind: str, name: str = "") -> str:
        path = f"/api/v1/namespaces/{self._placement.namespace}/{kind}"
        return f"{path}/{name}" if name else path


class _Absent(Exception):
    """There is no such object."""


def _beside(plan: Plan, credentials: bytes) -> list[tuple[str, dict[str, Any]]]:
    """What lies beside the workflow, each with the kind that it is to the API."""
    if spread_of(plan) is None:
        return [("secrets", secret_of(plan, credentials))]
    ours, theirs = make_links()
    return [
        ("secrets", secret_of(plan, credentials, ours)),
        ("secrets", shards_secret_of(plan, theirs)),
        ("services", service_of(plan)),
    ]


def _decode(content: bytes) -> SeenWorkflow:
    try:
        return _WORKFLOW.decode(content)
    except msgspec.DecodeError as error:
        raise EngineUnavailable(f"an answer that is not understood: {error}") from error


def _told(response: httpx.Response) -> str:
    """The API server's own words, bounded; they never hold what was sent in a Secret."""
    try:
        told = msgspec.json.decode(response.content, type=dict[str, Any])
    except msgspec.DecodeError:
        told = {}
    return f"{response.status_code} {told.get('message', response.reason_phrase)}"[:500]
