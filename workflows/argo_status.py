"""What Argo says of a workflow, and what that means for an attempt. Pure.

There is no exit handler that would report this: it would be one more pod, which can be evicted, or
find no room, as those can whose end it reports, and would need a token of its own. A workflow whose
pods are gone says so itself (``pod deleted``), to a watch that starts anew with the whole list; one
that is itself gone is missed in that list.
"""

from __future__ import annotations

from typing import Any, Final, cast, get_args

import msgspec

from sharing.object_store import Digest, is_digest
from workflows.causes import Cause, CauseCode
from workflows.engine import Activity, Observation
from workflows.plan import StepKind
from workflows.pod import MANIFEST, OUTCOME
from workflows.shard_words import SHARD

_OVER: Final = frozenset({"Succeeded", "Failed", "Error"})
_OUTCOME: Final = msgspec.json.Decoder(Observation)
_DETAIL_CHARS: Final = 300


class Parameter(msgspec.Struct, frozen=True):
    """A value that a step left."""

    name: str
    value: Any = ""


class Outputs(msgspec.Struct, frozen=True):
    """All that a step left."""

    parameters: tuple[Parameter, ...] = ()


class Node(msgspec.Struct, frozen=True, rename="camel"):
    """A pod, or a group of them.

    Attributes:
        template_name: Of the template: for a pod, the name of its step.
        message: Why it is in its phase, in Argo's or Kubernetes' words.
    """

    type: str = ""
    template_name: str = ""
    phase: str = ""
    message: str = ""
    started_at: str | None = None
    outputs: Outputs = Outputs()


class Status(msgspec.Struct, frozen=True):
    """Where Argo is with it."""

    phase: str = ""
    message: str = ""
    nodes: dict[str, Node] = {}


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    """Who it is."""

    name: str
    uid: str
    resource_version: str = ""
    annotations: dict[str, str] = {}


class Spec(msgspec.Struct, frozen=True):
    """The part of what was asked that says whether it still is."""

    shutdown: str = ""


class SeenWorkflow(msgspec.Struct, frozen=True):
    """The part of a workflow that matters here; everything else is passed over."""

    metadata: Metadata
    spec: Spec = Spec()
    status: Status = Status()

    @property
    def is_over(self) -> bool:
        """True if nothing of it will run any more."""
        return self.status.phase in _OVER


def observe(workflow: SeenWorkflow) -> Observation:
    """What the workflow means for its attempt."""
    pods = _latest_pods(workflow)
    manifests = {step: found for step, pod in pods.items() if (found := _manifest(pod))}
    if not workflow.is_over:
        running = [step for step, pod in pods.items() if pod.phase == "Running"]
        return Observation(
            activity=Activity.RUNNING, step=running[0] if running else None, manifests=manifests
        )
    if workflow.status.phase == "Succeeded":
        return Observation(activity=Activity.SUCCEEDED, manifests=manifests)
    if workflow.spec.shutdown:
        return Observation(activity=Activity.CANCELLED, manifests=manifests)
    for pod in pods.values():
        outcome = _outcome(pod)
        if outcome is not None and outcome.activity is not Activity.SUCCEEDED:
            return msgspec.structs.replace(outcome, manifests=manifests)
    detail = next(
        (
            f"{step}: {pod.message}"
            for step, pod in pods.items()
            if pod.phase in ("Failed", "Error")
        ),
        workflow.status.message,
    )
    cause = Cause(code=CauseCode.ATTEMPT_LOST, detail=detail[:_DETAIL_CHARS])
    return Observation(activity=Activity.LOST, cause=cause, manifests=manifests)


def is_left_waiting(workflow: SeenWorkflow) -> bool:
    """Whether shards still run, or wait for room, whose server step is over."""
    nodes = workflow.status.nodes.values()
    return any(
        node.type == "Pod" and node.template_name == SHARD and node.phase not in _OVER
        for node in nodes
    ) and any(
        node.type == "Retry" and node.template_name == "federate" and node.phase in _OVER
        for node in nodes
    )


def _latest_pods(workflow: SeenWorkflow) -> dict[StepKind, Node]:
    """The last pod of each step, by its name, in the order in which they started."""
    pods = [
        node
        for node in workflow.status.nodes.values()
        if node.type == "Pod" and node.template_name in get_args(StepKind)
    ]
    pods.sort(key=lambda node: node.started_at or "")
    return {cast("StepKind", node.template_name): node for node in pods}


def _manifest(pod: Node) -> Digest | None:
    found = _output(pod, MANIFEST)
    return found if pod.phase == "Succeeded" and is_digest(found) else None


def _outcome(pod: Node) -> Observation | None:
    try:
        return _OUTCOME.decode(_output(pod, OUTCOME))
    except msgspec.DecodeError:
        return None


def _output(pod: Node, name: str) -> str:
    return next((str(one.value) for one in pod.outputs.parameters if one.name == name), "")
