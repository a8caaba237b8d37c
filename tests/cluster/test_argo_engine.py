"""The engine contract over a real Kubernetes with Argo, and what holds for this engine alone."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile

import msgspec
import pytest

from tests.cluster.faults import Faults
from tests.cluster.kubernetes import HOST, Namespace
from tests.workflows.attempts import end_of, plan_of, step_of, submit, until
from tests.workflows.control_plane_double import TOKEN, ControlPlaneDouble
from tests.workflows.test_argo_workflow import GOLDEN
from tests.workflows.test_engine_contract import *  # noqa: F403 - the suite
from workflows.argo_engine import ArgoEngine
from workflows.argo_workflow import Placement, name_of
from workflows.causes import CauseCode
from workflows.engine import Activity, EngineUnavailable, Observation, PlanRefused
from workflows.job import Builtin
from workflows.kubernetes import read_kubeconfig

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(420)]


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlaneDouble]:
    plane = ControlPlaneDouble(tmp_path / "endpoint", listen="0.0.0.0", host=HOST)
    plane.start()
    yield plane
    plane.stop()


@pytest.fixture
async def engine(namespace: Namespace, image: str, tmp_path: Path) -> AsyncIterator[ArgoEngine]:
    cluster = read_kubeconfig(namespace.kubeconfig(tmp_path / "kubeconfig"))
    async with ArgoEngine(cluster, Placement(namespace=namespace.name, image=image)) as engine:
        yield engine


async def test_a_step_finds_neither_the_token_nor_an_account(
    engine: ArgoEngine, plane: ControlPlaneDouble
) -> None:
    sought = [f"seek={what.encode().hex()}" for what in (TOKEN, "eyJhbGciOi", "workflows.pod")]
    await submit(engine, plane, plan_of(step_of("federate", *sought)))

    assert (await end_of(engine)).activity is Activity.SUCCEEDED
    token, account, known = plane.logs["federate"].decode().splitlines()
    assert token == account == "found in []"
    assert "cmdline" in known  # so it does look


async def test_the_two_judges_refuse_a_misspelt_field_and_take_every_workflow_on_record(
    namespace: Namespace,
) -> None:
    for path in GOLDEN.glob("argo-*.yaml"):
        manifest = path.read_text().replace("namespace: foedus", f"namespace: {namespace.name}")
        misspelt = manifest.replace("activeDeadlineSeconds:", "activeDeadlineSecond:", 1)
        assert misspelt != manifest

        for judge in (dry_run, lint):
            assert judge(namespace, manifest) == ""
            assert "activeDeadlineSecond" in judge(namespace, misspelt)


async def test_a_workflow_made_by_hand_under_our_name_is_left_alone(
    engine: ArgoEngine, plane: ControlPlaneDouble, namespace: Namespace, faults: Faults
) -> None:
    plan = plan_of(step_of("federate"))
    by_hand = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"name": name_of(plan.job, plan.attempt)},
        "spec": {"entrypoint": "a", "templates": [{"name": "a", "suspend": {}}]},
    }
    namespace.kubectl("create", "-f", "-", stdin=json.dumps(by_hand))

    began = time.monotonic()
    with pytest.raises(PlanRefused, match="was not made for this one"):
        await submit(engine, plane, plan)
    needed_s = time.monotonic() - began

    faults.record(
        *(
            "A workflow made by hand has our name",
            "the plan is refused, the workflow left",
            needed_s,
        ),
        within_s=10,
        runs=1,
        lost=0,
    )
    assert [one["spec"]["entrypoint"] for one in namespace.get("workflows")] == ["a"]
    assert len(namespace.get("secrets")) == 1  # the executor's


async def test_free_text_is_never_a_template(
    engine: ArgoEngine, plane: ControlPlaneDouble, namespace: Namespace
) -> None:
    hostile = "{{workflow.name}} {{=1+1}} {{inputs.parameters.x}}"
    plan = plan_of(step_of("federate", f"say={hostile}"))
    program = Builtin(name="digits-mlp", config={"note": hostile})
    spec = msgspec.structs.replace(plan.spec, program=program)  # its name may have no braces
    plan = msgspec.structs.replace(plan, spec=spec, organisation=hostile)
    await submit(engine, plane, plan)

    assert (await end_of(engine)).activity is Activity.SUCCEEDED
    assert hostile in plane.logs["federate"].decode()
    assert hostile not in json.dumps(namespace.get("workflows"))


async def test_an_organisation_runs_no_more_than_it_may(
    namespace: Namespace, image: str, tmp_path: Path, plane: ControlPlaneDouble
) -> None:
    cluster = read_kubeconfig(namespace.kubeconfig(tmp_path / "kubeconfig"))
    placement = Placement(namespace=namespace.name, image=image, runs_per_organisation=1)
    first, second, other = (
        msgspec.structs.replace(plan_of(step, job=job), organisation=who)
        for job, who, step in (
            ("job-1", "one", step_of("federate", "event", "wait")),
            ("job-2", "one", step_of("translate")),
            ("job-3", "two", step_of("publish")),
        )
    )
    async with ArgoEngine(cluster, placement) as engine:
        await submit(engine, plane, first)
        await until(lambda: plane.events["federate"])
        await submit(engine, plane, second)
        await submit(engine, plane, other)

        assert (await end_of(engine, "job-3")).activity is Activity.SUCCEEDED
        waiting = await engine.observe("job-2", 1)
        assert waiting == Observation(activity=Activity.RUNNING)
        await engine.cancel("job-1", 1)
        assert (await end_of(engine, "job-2")).activity is Activity.SUCCEEDED


async def test_a_deleted_pod_is_a_lost_attempt(
    engine: ArgoEngine, plane: ControlPlaneDouble, namespace: Namespace
) -> None:
    await submit(engine, plane, plan_of(step_of("federate", "event", "wait")))
    await until(lambda: plane.events["federate"])

    namespace.kubectl("delete", "pods", "--all", "--force", "--grace-period=0")
    last = await end_of(engine)  # where Argo makes the pod anew, that one finds it was not first

    assert last.activity in (Activity.LOST, Activity.CANCELLED)
    if last.activity is Activity.LOST:
        assert last.cause is not None
        assert last.cause.code is CauseCode.ATTEMPT_LOST
        assert last.cause.detail.startswith("federate")
    assert plane.kinds("federate") == ["step.started"]


async def test_a_namespace_without_our_rights_is_a_trouble_that_may_be_mended(
    engine: ArgoEngine, plane: ControlPlaneDouble, namespace: Namespace
) -> None:
    namespace.kubectl("delete", "rolebinding", "foedus-control-plane")

    for work in (
        submit(engine, plane, plan_of(step_of("federate"))),
        engine.observe("job-9", 1),
        engine.cancel("job-9", 1),
        engine.remove("job-9", 1),
    ):
        with pytest.raises(EngineUnavailable, match="forbidden"):
            await work


def dry_run(namespace: Namespace, manifest: str) -> str:
    """What the API server has against it."""
    told = namespace.kubectl(
        *("create", "-f", "-", "--dry-run=server", "--validate=strict"),
        stdin=manifest,
        check=False,
    )
    return "" if "created (server dry run)" in told else told


def lint(namespace: Namespace, manifest: str) -> str:
    """What Argo has against it; it reads no standard input."""
    with NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(manifest)
        file.flush()
        told = namespace.kubernetes.run("argo", "lint", "--offline", file.name, check=False)
    return "" if "no linting errors" in told else told
