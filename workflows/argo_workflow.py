"""From a plan to the Argo workflow that runs it, as a value: no cluster, no clock.

Nothing that a user wrote stands where Argo looks for templates: plan and credentials are the
content of a Secret, and the workflow holds ids, digests, numbers and names of ours. Each step is
one pod, and beside it as many as the job has shards; it never grows with rounds or clients.

Shards are tasks of their own that end with their server. That one of them fails for good is for the
server step to judge, so it fails no run. They find that step by the name of a Service, and have a
Secret of their own, with no token in it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from hera.workflows import DAG, Container, RetryStrategy, Task, Workflow
from hera.workflows import models as m

from workflows.engine import PlanRefused
from workflows.link import LINK, PORT, Link
from workflows.plan import Plan, Step, StepKind
from workflows.pod import CREDENTIALS, EVENTS_FILE, MANIFEST, OUTCOME, PLAN, SUMMARY
from workflows.shard_words import SHARD, UNSERVED

MANAGED_BY: Final = "app.kubernetes.io/managed-by=foedus"
PLAN_DIGEST: Final = "foedus.dev/plan-digest"
MAX_PLAN_BYTES: Final = 900_000
"""Of a Secret's 1 MiB; the rest is for credentials and metadata."""
PRIORITIES: Final = {"low": -100, "normal": 0, "high": 100}
RETRIES: Final = 3
SEMAPHORES: Final = "foedus-runs"
"""ConfigMap that says how many workflows of each organisation may run."""
PART: Final = "foedus.dev/part"
SERVER: Final = "server"
_USER: Final = 65532
_RUN: Final = "/run/foedus/attempt"
_HANDOVER: Final = "/run/foedus/handover"
_LAID: Final = f"{_HANDOVER}/laid"
_SECRET: Final = "/run/foedus/secret"  # noqa: S105 - a path
_MARGIN_S: Final = 900
_NO_MORE: Final = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
_ARGOS_OWN: Final = json.dumps(
    {
        "initContainers": [{"name": "init", "securityContext": _NO_MORE}],
        "containers": [{"name": "wait", "securityContext": _NO_MORE}],
    }
)
"""Argo leaves the containers that it adds to a pod as they are, and a namespace that admits nothing
but restricted pods (Kubernetes, "Pod Security Standards") would not admit them."""
_EASY: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_NOT_IN_LABELS: Final = re.compile(r"[^A-Za-z0-9_.-]")
_NOT_IN_TITLES: Final = re.compile(r"[^\w .,:;()/+-]")


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where pods go, and as what. Whoever runs the platform decides.

    Attributes:
        namespace: Of everything that is made.
        image: With Python and this platform, at the version of the control plane.
        executor: Service account of Argo's own container; the step's gets none.
        grace_s: Longest that a step may take to stop politely.
        scratch_mb: Room for a step's files.
        node_selector: Labels that a machine must have.
        runs_per_organisation: Workflows of one organisation that run at a time; None for any.
        link: Where people look at a job, with ``JOB`` for its id; empty for nowhere.
        pages: Of Argo's own user interface, to look at a workflow; empty for none.
    """

    namespace: str
    image: str
    executor: str = "foedus-executor"
    grace_s: float = 10.0
    scratch_mb: int = 10_240
    node_selector: Mapping[str, str] = {}
    runs_per_organisation: int | None = None
    link: str = ""
    pages: str = ""


def name_of(job: str, attempt: int) -> str:
    """Name of an attempt's workflow and of its Secret: a DNS label, and the same every time."""
    if _EASY.fullmatch(job):
        return f"{job}-{attempt}"
    easy = re.sub(r"[^a-z0-9]+", "-", job.lower()).strip("-")[:24].strip("-")
    return f"{easy}-{hashlib.sha256(job.encode()).hexdigest()[:12]}-{attempt}"


def organisation_of(plan: Plan) -> str:
    """Key and label of the organisation whose job it is."""
    return _label(plan.organisation) or "none"


def secret_of(plan: Plan, credentials: bytes, link: Link | None = None) -> dict[str, Any]:
    """What the steps' pods are handed beside the workflow.

    Args:
        plan: What they run.
        credentials: As JSON.
        link: The server's end of its link to shards; None where there are none.

    Raises:
        PlanRefused: It does not fit into one object of a cluster.
    """
    content = msgspec.json.encode(plan)
    if len(content) > MAX_PLAN_BYTES:
        raise PlanRefused(
            f"a plan of {len(content)} bytes; a cluster takes {MAX_PLAN_BYTES} in one object"
        )
    handed = {PLAN: content.decode(), CREDENTIALS: credentials.decode()}
    if link is not None:
        handed[LINK] = msgspec.json.encode(link).decode()
    return _secret(name_of(plan.job, plan.attempt), plan, handed)


def shards_secret_of(plan: Plan, link: Link) -> dict[str, Any]:
    """What the shards' pods are handed: their end of the link, and nothing that opens a door else.

    Plan, program and data come to them over that link.
    """
    return _secret(
        shards_name(name_of(plan.job, plan.attempt)),
        plan,
        {LINK: msgspec.json.encode(link).decode()},
    )


def _secret(name: str, plan: Plan, content: Mapping[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": _labels(plan)},
        "type": "Opaque",
        "stringData": dict(content),
    }


def shards_name(workflow: str) -> str:
    """Name of the shards' Secret, and of the Service by which they find their server."""
    return f"shards-{workflow}"


def spread_of(plan: Plan) -> Step | None:
    """The step that has shards beside it, if there is one."""
    return next((step for step in plan.steps if step.shards), None)


def service_of(plan: Plan) -> dict[str, Any]:
    """The name by which shards find the pod of their server.

    It is there before any pod is, and is taken away when the server's step is over: a shard whose
    pod found room only then sees that nobody will come, where no address would tell it. It leads to
    pods that Kubernetes takes for not ready, as it does those of which one container has ended.
    """
    labels = _labels(plan)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": shards_name(name_of(plan.job, plan.attempt)), "labels": labels},
        "spec": {
            "selector": {
                "foedus.dev/job": labels["foedus.dev/job"],
                "foedus.dev/attempt": labels["foedus.dev/attempt"],
                PART: SERVER,
            },
            "ports": [{"name": "shards", "port": PORT}],
            "publishNotReadyAddresses": True,
        },
    }


def workflow_of(plan: Plan, placement: Placement) -> dict[str, Any]:
    """The manifest of the workflow that runs ``plan``."""
    name = name_of(plan.job, plan.attempt)
    with Workflow(
        name=name,
        namespace=placement.namespace,
        labels=_labels(plan),
        annotations=_annotations(plan, placement),
        entrypoint="run",
        pod_metadata=m.Metadata(labels=_labels(plan)),
        automount_service_account_token=False,
        service_account_name=placement.executor,
        executor=m.ExecutorConfig(service_account_name=placement.executor),
        security_context=m.PodSecurityContext(
            run_as_non_root=True,
            run_as_user=_USER,
            run_as_group=_USER,
            fs_group=_USER,
            seccomp_profile=m.SeccompProfile(type="RuntimeDefault"),
        ),
        pod_spec_patch=_ARGOS_OWN,
        priority=PRIORITIES[plan.spec.resources.priority],
        node_selector=dict(placement.node_selector) or None,
        synchronization=_share(plan, placement),
        volumes=_volumes(plan, placement),
    ) as workflow:
        with DAG(
            name="run",
            # One that fails fast starts no lost shard anew, and takes it for a failure of the run.
            fail_fast=spread_of(plan) is None,
            outputs=[_shown(step) for step in plan.steps if step.name == "federate"],
        ):
            for step in plan.steps:
                Task(
                    name=step.name,
                    template=step.name,
                    dependencies=list(step.after) or None,
                    arguments=[
                        m.Parameter(
                            name=f"{before}-{what}",
                            value=f"{{{{tasks.{before}.outputs.parameters.{what}}}}}",
                        )
                        for before in step.after
                        for what in (MANIFEST, EVENTS_FILE)
                    ]
                    or None,
                )
                for number in range(1, step.shards + 1):
                    Task(
                        name=f"{SHARD}-{number}",
                        template=SHARD,
                        arguments=[m.Parameter(name="number", value=str(number))],
                        continue_on=m.ContinueOn(failed=True, error=True),
                    )
        for step in plan.steps:
            _template(plan, step, placement)
            if step.shards:
                _shard_template(plan, step, placement)
    rendered: dict[str, Any] = workflow.to_dict()
    return rendered


def _template(plan: Plan, step: Step, placement: Placement) -> Container:
    """One pod: a container that runs the step, and one that hands it the Secret and ends."""
    before = [(name, what) for name in step.after for what in (MANIFEST, EVENTS_FILE)]
    handed = (CREDENTIALS, PLAN, LINK) if step.shards else (CREDENTIALS, PLAN)
    return Container(
        name=step.name,
        image=placement.image,
        image_pull_policy="IfNotPresent",
        command=["python", "-P", "-m", "workflows.pod"],
        args=[
            _RUN,
            f"--step={step.name}",
            f"--handover={_LAID}",
            f"--grace-s={placement.grace_s:g}",
            *(part for name in step.after for part in _earlier(name)),
        ],
        labels={PART: SERVER} if step.shards else None,
        inputs=[m.Parameter(name=f"{name}-{what}") for name, what in before] or None,
        outputs=[
            m.Parameter(name=what, value_from=m.ValueFrom(path=f"{_RUN}/report/{what}", default=""))
            for what in (OUTCOME, MANIFEST, EVENTS_FILE, SUMMARY)
        ],
        working_dir=_RUN,
        security_context=_restricted(),
        resources=_resources(plan, step),
        volume_mounts=_mounts(),
        sidecars=[_handover("secret", handed, placement)],
        active_deadline_seconds=_deadline_s(step, placement),
        retry_strategy=_retried("lastRetry.exitCode == '75'"),
    )


def _shard_template(plan: Plan, step: Step, placement: Placement) -> Container:
    """One pod of workers, which is started anew unless it ended because its server did."""
    return Container(
        name=SHARD,
        image=placement.image,
        image_pull_policy="IfNotPresent",
        command=["python", "-P", "-m", "workflows.shard"],
        args=[
            _RUN,
            f"--server={shards_name(name_of(plan.job, plan.attempt))}:{PORT}",
            "--shard={{inputs.parameters.number}}",
            "--starts={{retries}}",
            f"--handover={_LAID}",
        ],
        labels={PART: SHARD},
        inputs=[m.Parameter(name="number")],
        working_dir=_RUN,
        security_context=_restricted(),
        resources=_shard_resources(plan),
        volume_mounts=_mounts(),
        # Before it: with the container beside them, deleted shards did not come back in the tests.
        init_containers=[_handover("shards-secret", (LINK,), placement)],
        active_deadline_seconds=_deadline_s(step, placement),
        retry_strategy=_retried(f"lastRetry.exitCode != '{UNSERVED}'"),
    )


def _mounts() -> list[m.VolumeMount]:
    return [m.VolumeMount(name="attempt", mount_path=_RUN), _memory()]


def _memory() -> m.VolumeMount:
    return m.VolumeMount(name="handover", mount_path=_HANDOVER)


def _handover(volume: str, files: Sequence[str], placement: Placement) -> m.UserContainer:
    """Copies files of a Secret into memory, from which the step's container takes them out.

    Beside a step it starts with the others. One before them costs a pod a second or two, for
    Kubernetes looks only then whether it has ended. Its memory is that of Argo's program around
    it. No processor is kept for its moment, so that a step takes what its job reserves.
    """
    sources = " ".join(f"{_SECRET}/{file}" for file in files)
    part = f"{_HANDOVER}/.part"
    return m.UserContainer(
        name="handover",
        image=placement.image,
        image_pull_policy="IfNotPresent",
        command=["sh", "-c"],
        args=[f"mkdir {part} && cp {sources} {part}/ && mv {part} {_LAID}"],
        security_context=_restricted(),
        resources=_sizes(cpu=0, memory_mb=32, most_cpu=1, most_memory_mb=256),
        volume_mounts=[
            m.VolumeMount(name=volume, mount_path=_SECRET, read_only=True),
            _memory(),
        ],
    )


def _deadline_s(step: Step, placement: Placement) -> int:
    return math.ceil(step.timeout_s + 2 * placement.grace_s) + _MARGIN_S


def _retried(expression: str) -> RetryStrategy:
    return RetryStrategy(
        limit=RETRIES,
        retry_policy="Always",
        expression=expression,
        backoff=m.Backoff(duration="2", factor=m.IntOrString(root=2), max_duration="60"),
    )


def _earlier(step: StepKind) -> tuple[str, ...]:
    values = (f"{{{{inputs.parameters.{step}-{what}}}}}" for what in (MANIFEST, EVENTS_FILE))
    return ("--earlier", step, *values)


def _shown(step: Step) -> m.Parameter:
    """An output of the whole workflow, which ``argo get`` shows above the steps."""
    reference = f"{{{{tasks.{step.name}.outputs.parameters.{SUMMARY}}}}}"
    return m.Parameter(name="result", value_from=m.ValueFrom(parameter=reference, default=""))


def _labels(plan: Plan) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "foedus",
        "app.kubernetes.io/managed-by": "foedus",
        "foedus.dev/job": name_of(plan.job, plan.attempt).rpartition("-")[0],
        "foedus.dev/attempt": str(plan.attempt),
        "foedus.dev/organisation": organisation_of(plan),
    }


def _annotations(plan: Plan, placement: Placement) -> dict[str, str]:
    title = _NOT_IN_TITLES.sub("_", plan.spec.name)[:100]
    told = {
        "workflows.argoproj.io/title": f"{title} (attempt {plan.attempt})",
        "foedus.dev/job": plan.job,
        PLAN_DIGEST: plan.plan_digest,
    }
    if placement.link:
        told["foedus.dev/link"] = placement.link.replace("JOB", plan.job)
    return told


def _label(value: str) -> str:
    return _NOT_IN_LABELS.sub("-", value)[:63].strip("-_.")


def _share(plan: Plan, placement: Placement) -> m.Synchronization | None:
    if placement.runs_per_organisation is None:
        return None
    key = m.ConfigMapKeySelector(name=SEMAPHORES, key=organisation_of(plan))
    return m.Synchronization(semaphores=[m.SemaphoreRef(config_map_key_ref=key)])


def _volumes(plan: Plan, placement: Placement) -> list[m.Volume]:
    secrets = {"secret": name_of(plan.job, plan.attempt)}
    if spread_of(plan):
        secrets["shards-secret"] = shards_name(name_of(plan.job, plan.attempt))
    return [
        *(
            m.Volume(
                name=volume,
                secret=m.SecretVolumeSource(secret_name=name, default_mode=0o440, optional=False),
            )
            for volume, name in secrets.items()
        ),
        m.Volume(
            name="handover",
            empty_dir=m.EmptyDirVolumeSource(medium="Memory", size_limit=_mb(4)),
        ),
        m.Volume(
            name="attempt",
            empty_dir=m.EmptyDirVolumeSource(size_limit=_mb(placement.scratch_mb)),
        ),
    ]


def _restricted() -> m.SecurityContext:
    return m.SecurityContext(
        allow_privilege_escalation=False,
        capabilities=m.Capabilities(drop=["ALL"]),
        privileged=False,
        read_only_root_filesystem=True,
        run_as_non_root=True,
    )


def _resources(plan: Plan, step: Step) -> m.ResourceRequirements:
    """Reserved: what the server asks. At most: that and what the workers beside it ask."""
    asked, spec = plan.spec.resources, plan.spec
    workers = {"federate": max(1, spec.runtime.workers), "translate": 1}.get(step.name, 0)
    if step.shards:
        workers = 0
    elif workers == 0:
        return _sizes(cpu=0.1, memory_mb=256, most_cpu=1, most_memory_mb=1024)
    return _sizes(
        cpu=asked.server.cpu,
        memory_mb=asked.server.memory_mb,
        most_cpu=asked.server.cpu + workers * asked.site.cpu,
        most_memory_mb=asked.server.memory_mb + workers * asked.site.memory_mb,
        gpus=asked.server.gpu + workers * asked.site.gpu if step.name == "federate" else 0,
    )


def _shard_resources(plan: Plan) -> m.ResourceRequirements:
    """Reserved: what one worker asks. At most: what all of them ask, and room for what travels."""
    asked, workers = plan.spec.resources.site, max(1, plan.spec.runtime.workers)
    return _sizes(
        cpu=asked.cpu,
        memory_mb=asked.memory_mb,
        most_cpu=workers * asked.cpu,
        most_memory_mb=workers * asked.memory_mb + plan.spec.resources.server.memory_mb,
        gpus=workers * asked.gpu,
    )


def _sizes(
    *, cpu: float, memory_mb: int, most_cpu: float, most_memory_mb: int, gpus: int = 0
) -> m.ResourceRequirements:
    gpu = {"nvidia.com/gpu": _quantity(str(gpus))} if gpus else {}
    return m.ResourceRequirements(
        requests={"cpu": _milli(cpu), "memory": _mb(memory_mb), **gpu},
        limits={"cpu": _milli(most_cpu), "memory": _mb(most_memory_mb), **gpu},
    )


def _milli(cpu: float) -> m.Quantity:
    return _quantity(f"{math.ceil(cpu * 1000)}m")


def _mb(size: int) -> m.Quantity:
    return _quantity(f"{size}Mi")


def _quantity(text: str) -> m.Quantity:
    return m.Quantity(root=text)
