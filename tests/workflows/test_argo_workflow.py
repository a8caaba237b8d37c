"""The workflow of a plan, as a value; ``GOLDEN=write pytest`` of this file writes it anew."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ruamel.yaml import YAML

from workflows.argo_workflow import (
    MAX_PLAN_BYTES,
    Placement,
    name_of,
    secret_of,
    service_of,
    shards_name,
    shards_secret_of,
    workflow_of,
)
from workflows.engine import PlanRefused
from workflows.job import (
    Allotment,
    Builtin,
    JobSpec,
    Output,
    Partitioned,
    Resources,
    Runtime,
)
from workflows.link import make_links
from workflows.plan import Plan, compile_plan

GOLDEN = Path(__file__).parent / "golden"
PLACEMENT = Placement(
    namespace="foedus",
    image="registry.example/foedus@sha256:12",
    link="http://foedus:8470/v1/jobs/JOB",
)
CROWDED = msgspec.structs.replace(
    PLACEMENT, node_selector={"pool": "gpu"}, runs_per_organisation=2, scratch_mb=512
)
INJECTION = "{{workflow.name}} {{=sprig.env('HOME')}} {{inputs.parameters.x}}"


def plan_for(job: str = "job-06bqa", attempt: int = 1, **fields: Any) -> Plan:
    asked = {"program": Builtin(name="digits-mlp"), "data": Partitioned(dataset="digits"), **fields}
    plan = compile_plan(
        job, attempt, JobSpec(**({"name": "digits"} | asked)), f"sha256:{'5' * 64}", {}
    )
    return msgspec.structs.replace(plan, organisation="organisation-07")


PLANS = {
    "digits": (plan_for(), PLACEMENT),
    "gpus-without-a-model": (
        plan_for(
            resources=Resources(
                server=Allotment(cpu=0.5, memory_mb=1024),
                site=Allotment(cpu=0.25, memory_mb=512, gpu=1),
                priority="high",
            ),
            runtime=Runtime(workers=2),
            output=Output(publish=False),
        ),
        CROWDED,
    ),
    "shards": (plan_for(runtime=Runtime(kind="native", workers=2, shards=3)), PLACEMENT),
}


def strings(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for key, one in value.items():
                yield from strings(key)
                yield from strings(one)
        case list():
            for one in value:
                yield from strings(one)


@pytest.mark.parametrize("name", PLANS)
def test_the_workflow_of_a_plan_is_the_one_on_record(name: str) -> None:
    path = GOLDEN / f"argo-{name}.yaml"
    workflow = workflow_of(*PLANS[name])
    if os.environ.get("GOLDEN") == "write":
        yaml = YAML()
        yaml.width = 120
        with path.open("w") as file:
            yaml.dump(workflow, file)

    assert workflow == YAML(typ="safe").load(path.read_bytes())


def test_no_step_s_container_has_secret_account_or_right() -> None:
    spec = workflow_of(*PLANS["digits"])["spec"]
    steps = [template for template in spec["templates"] if "container" in template]

    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID"} & set(spec)
    assert len(steps) == 3
    for template in steps:
        mounts = {mount["name"] for mount in template["container"]["volumeMounts"]}
        security = template["container"]["securityContext"]
        assert mounts == {"attempt", "handover"}
        assert "initContainers" not in template  # Kubernetes takes a second or two for each
        assert "env" not in template["container"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert template["container"]["resources"].keys() == {"requests", "limits"}
        assert template["activeDeadlineSeconds"] > 0
        assert template["retryStrategy"]["expression"] == "lastRetry.exitCode == '75'"


def test_argo_s_own_containers_lose_rights_and_nothing_else_is_patched() -> None:
    patch = json.loads(workflow_of(*PLANS["digits"])["spec"]["podSpecPatch"])
    rights = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert patch == {
        "initContainers": [{"name": "init", "securityContext": rights}],
        "containers": [{"name": "wait", "securityContext": rights}],
    }


def test_shards_hold_their_end_of_the_link_and_nothing_else() -> None:
    plan, placement = PLANS["shards"]
    ours, theirs = make_links()
    spec = workflow_of(plan, placement)["spec"]
    (shard,) = (one for one in spec["templates"] if one["name"] == "shard")
    (server,) = (one for one in spec["templates"] if one["name"] == "federate")
    secrets = {one["name"]: one["secret"]["secretName"] for one in spec["volumes"][:2]}
    service = service_of(plan)

    assert {one["name"] for one in shard["container"]["volumeMounts"]} == {"attempt", "handover"}
    assert {one["name"] for one in shard["initContainers"][0]["volumeMounts"]} == {
        *("shards-secret", "handover")
    }
    assert "outputs" not in shard
    assert shard["retryStrategy"]["expression"] == "lastRetry.exitCode != '69'"
    held = shards_secret_of(plan, theirs)
    assert held["metadata"]["name"] == secrets["shards-secret"]
    assert held["stringData"].keys() == {"link.json"}
    assert secret_of(plan, b"{}", ours)["stringData"].keys() == {
        *("credentials.json", "job.json", "link.json")
    }
    assert f"--server={service['metadata']['name']}:8471" in shard["container"]["args"]
    # Of the server's pod the container that hands over ends, and then it is not ready.
    assert service["spec"]["publishNotReadyAddresses"] is True
    labels = spec["podMetadata"]["labels"] | server["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert (
        not service["spec"]["selector"].items()
        <= (spec["podMetadata"]["labels"] | shard["metadata"]["labels"]).items()
    )


def test_the_server_of_shards_reserves_nothing_for_workers() -> None:
    spec = workflow_of(*PLANS["shards"])["spec"]
    sizes = {
        one["name"]: one["container"]["resources"]
        for one in spec["templates"]
        if one["name"] in ("federate", "shard")
    }

    assert sizes["federate"]["limits"] == {"cpu": "2000m", "memory": "4096Mi"}
    assert sizes["shard"]["requests"] == {"cpu": "1000m", "memory": "4096Mi"}
    assert sizes["shard"]["limits"] == {"cpu": "2000m", "memory": "12288Mi"}


def test_nothing_that_a_user_wrote_is_a_template() -> None:
    spec = plan_for().spec
    hostile = plan_for(
        name=INJECTION,
        collaboration=INJECTION,
        program=Builtin(name=INJECTION, config={INJECTION: INJECTION}),
        data=Partitioned(dataset=INJECTION),
        runtime=Runtime(kind=INJECTION),
        evaluate=msgspec.structs.replace(spec.evaluate, metrics=(INJECTION,)),
    )
    hostile = msgspec.structs.replace(
        hostile, organisation=INJECTION, job="job-06bqa", inputs={INJECTION: spec.name}
    )
    ours = {
        part
        for text in strings(workflow_of(*PLANS["digits"]))
        for part in re.findall(r"{{.*?}}", text)
    }
    found = [
        text for text in strings(workflow_of(hostile, CROWDED)) if "{{" in text or "}}" in text
    ]

    assert {part for text in found for part in re.findall(r"{{.*?}}", text)} <= ours
    assert not any("sprig" in text or "workflow.name" in text for text in found)


@pytest.mark.parametrize(
    "job", ["Job_1", "job_1", "a" * 100, "A-", "job-", "x" * 40 + "-1", "0", "job-06bqa"]
)
def test_every_job_id_gives_a_dns_label_of_its_own(job: str) -> None:
    name = name_of(job, 123456)

    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name)
    assert name == name_of(job, 123456)
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", shards_name(name))
    others = {name_of(other, 123456) for other in ("JOB_1", "job-1", "a" * 99) if other != job}
    assert name not in others


def test_a_plan_that_no_object_can_hold_is_refused() -> None:
    large = msgspec.structs.replace(
        plan_for(), inputs={f"{n}": f"sha256:{n:064}" for n in range(MAX_PLAN_BYTES // 70)}
    )

    with pytest.raises(PlanRefused, match="a cluster takes 900000 in one object"):
        secret_of(large, b"{}")


def test_credentials_are_in_the_secret_alone() -> None:
    token = "token-of-the-attempt"
    secret = secret_of(plan_for(), token.encode())

    assert secret["metadata"]["name"] == workflow_of(*PLANS["digits"])["metadata"]["name"]
    assert secret["stringData"]["credentials.json"] == token
    assert token not in secret["stringData"]["job.json"]
