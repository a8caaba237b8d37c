"""A simulated cohort on shards that are pods: the model is the one of this machine alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from clients.sdk import Foedus
from tests.cluster.kubernetes import HOST, Namespace
from tests.cluster.test_argo_run import digest_of, wait_for_round
from tests.e2e.jobs import small
from tests.e2e.real_server import RealServer, running, until
from workflows.job import Allotment, JobSpec, Output, Resources, Runtime

pytestmark = pytest.mark.timeout(600)
ROUNDS = 40
WAIT_S = 300.0
SHARD = "foedus.dev/part=shard"


LITTLE = Resources(
    server=Allotment(cpu=0.5, memory_mb=1024), site=Allotment(cpu=0.5, memory_mb=1024)
)


def job(foedus: Foedus, name: str, shards: int, resources: Resources = LITTLE) -> JobSpec:
    """With all three steps, and such that its pods fit beside others."""
    spec = small(foedus, name, ROUNDS)
    runtime = Runtime(kind="native", workers=1, shards=shards)
    return msgspec.structs.replace(spec, runtime=runtime, resources=resources, output=Output())


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the model that one process of this machine makes of the job."""
    with running(tmp_path_factory.mktemp("local")) as server, server.client() as foedus:
        return digest_of(server, foedus.submit(job(foedus, "local", 1, Resources())).wait(WAIT_S))


@pytest.fixture
def server(namespace: Namespace, image: str, tmp_path: Path) -> Iterator[RealServer]:
    settings = {
        "FOEDUS_ENGINE": "argo",
        "FOEDUS_HOST": "0.0.0.0",
        "FOEDUS_ENDPOINT_URL": f"http://{HOST}:{{port}}",
        "FOEDUS_KUBECONFIG": str(namespace.kubeconfig(tmp_path / "kubeconfig")),
        "FOEDUS_NAMESPACE": namespace.name,
        "FOEDUS_IMAGE": image,
    }
    with running(tmp_path / "argo", **settings) as server:
        yield server


def require_nothing_left(namespace: Namespace) -> None:
    until(lambda: not namespace.get("workflows"), "the workflow to be removed")
    until(lambda: not namespace.get("pods"), "its pods to go", within_s=60)
    until(lambda: not namespace.get("services"), "the shards' name to go", within_s=60)
    until(lambda: len(namespace.get("secrets")) == 1, "the link to go", within_s=60)


def test_shards_make_the_same_model_and_hold_no_token(
    server: RealServer, namespace: Namespace, expected: str
) -> None:
    with server.client() as foedus:
        handle = foedus.submit(job(foedus, "spread", 3))
        wait_for_round(handle, 2)
        pods = namespace.get("pods")
        workflows = json.dumps(namespace.get("workflows"))
        told = namespace.argo("get", "@latest")
        closed = handle.wait(WAIT_S)
        log = "".join(str(line) for line in handle.logs())

    assert digest_of(server, closed) == expected
    assert closed.attempt == 1
    assert all(f"shard-{number}" in told for number in (1, 2, 3))
    assert all(f"shard {number} is there" in log for number in (1, 2, 3))
    assert "PRIVATE KEY" not in workflows + log + server.log
    of_shards = [pod for pod in pods if pod["metadata"]["labels"].get("foedus.dev/part") == "shard"]
    assert len(of_shards) == 3
    for pod in of_shards:
        mounts = {
            container["name"]: {mount["name"] for mount in container["volumeMounts"]}
            for part in ("initContainers", "containers")
            for container in pod["spec"][part]
        }
        assert not any("secret" in mounted for mounted in mounts.values())
        assert [name for name in mounts if "shards-secret" in mounts[name]] == ["handover"]
    require_nothing_left(namespace)


@pytest.mark.parametrize("which", ["one", "all"])
def test_shards_that_are_deleted_do_not_show(
    server: RealServer, namespace: Namespace, expected: str, which: str
) -> None:
    with server.client() as foedus:
        handle = foedus.submit(job(foedus, f"deleted {which}", 2))
        wait_for_round(handle, 3)
        names = namespace.kubectl("get", "pods", "-l", SHARD, "-o", "name").split()
        assert len(names) == 2
        doomed = names[:1] if which == "one" else names
        namespace.kubectl("delete", *doomed, "--force", "--grace-period=0")
        closed = handle.wait(WAIT_S)
        log = "".join(str(line) for line in handle.logs())

    assert "was lost" in log
    assert digest_of(server, closed) == expected
    assert closed.attempt == 1
    require_nothing_left(namespace)
