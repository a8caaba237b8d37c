"""A simulated cohort on shards that are pods: the model is the one of this machine alone."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from clients.sdk import Foedus
from tests.cluster.faults import Faults, Victim
from tests.cluster.kubernetes import Namespace
from tests.cluster.test_argo_run import digest_of, wait_for_round
from tests.e2e.jobs import LINEAR, small
from tests.e2e.real_server import RealServer, running, until
from workflows.argo_workflow import PART, SERVER
from workflows.job import Allotment, Bundle, JobSpec, Output, Resources, Runtime
from workflows.link import SILENCE_S
from workflows.shard_words import SHARD

pytestmark = pytest.mark.timeout(600)
ROUNDS = 40
CUT_S = 10.0
WAIT_S = 300.0
SHARDS = f"{PART}={SHARD}"
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
    with running(tmp_path / "argo", **namespace.settings(image, tmp_path)) as server:
        yield server


def require_nothing_left(namespace: Namespace) -> None:
    until(lambda: not namespace.get("workflows"), "the workflow to be removed")
    until(lambda: not namespace.get("services"), "the shards' name to go", within_s=60)
    until(lambda: len(namespace.get("secrets")) == 1, "the link to go", within_s=60)
    namespace.require_nothing_left()


def talkative(folder: Path) -> Path:
    """The program of the job, which says when it is read."""
    shutil.copytree(LINEAR, folder)
    with (folder / "program.py").open("a") as program:
        program.write('\n\nprint("the program is read")\n')
    return folder


def test_shards_make_the_same_model_and_hold_no_token(
    server: RealServer, namespace: Namespace, expected: str, tmp_path: Path
) -> None:
    with server.client() as foedus:
        program = Bundle(digest=foedus.programs.push(talkative(tmp_path / "program")).digest)
        spec = msgspec.structs.replace(job(foedus, "spread", 3), program=program)
        handle = foedus.submit(spec)
        wait_for_round(handle, 2)
        pods = namespace.get("pods")
        workflows = json.dumps(namespace.get("workflows"))
        told = namespace.argo("get", "@latest")
        closed = handle.wait(WAIT_S)
        log = "".join(str(line) for line in handle.logs())

    assert digest_of(server, closed) == expected
    assert closed.attempt == 1
    assert all(f"shard-{number}" in told for number in (1, 2, 3))
    for number in (1, 2, 3):
        assert f"shard {number} is there" in log
        assert f"shard {number}: the program is read" in log
    assert "PRIVATE KEY" not in workflows + log + server.log
    of_shards = [pod for pod in pods if pod["metadata"]["labels"].get(PART) == SHARD]
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


@pytest.fixture
def victim(server: RealServer, tmp_path: Path) -> Iterator[Victim]:
    """A run on two shards that is under way."""
    with server.client() as foedus:
        victim = Victim(foedus.submit(job(foedus, "doomed", 2)), tmp_path)
        victim.hear_until_round(3)
        yield victim


def require_unharmed(
    victim: Victim, namespace: Namespace, faults: Faults, fault: str, digest: str, within_s: float
) -> None:
    """The attempt went on to the model of this digest, and left nothing."""
    closed = victim.require_same(faults, fault, digest, within_s=within_s)
    assert closed.attempt == 1
    require_nothing_left(namespace)


@pytest.mark.parametrize(
    ("num_doomed", "fault"),
    [(1, "The pod of one of two shards is deleted"), (2, "The pods of both shards are deleted")],
)
def test_shards_that_are_deleted_do_not_show(
    victim: Victim,
    namespace: Namespace,
    expected: str,
    faults: Faults,
    num_doomed: int,
    fault: str,
) -> None:
    names = namespace.kubectl("get", "pods", "-l", SHARDS, "-o", "name").split()
    assert len(names) == 2
    namespace.kubectl("delete", *names[:num_doomed], "--force", "--grace-period=0")

    require_unharmed(victim, namespace, faults, fault, expected, within_s=60)
    assert "was lost" in victim.log()


def test_a_shard_is_cut_off_for_longer_than_silence_is_borne(
    victim: Victim, namespace: Namespace, expected: str, faults: Faults
) -> None:
    with namespace.cut_off("-l", SHARDS):
        time.sleep(SILENCE_S + CUT_S)

    fault = f"One of two shards is cut off the network for {SILENCE_S + CUT_S:g} s"
    require_unharmed(victim, namespace, faults, fault, expected, within_s=SILENCE_S + CUT_S)
    assert "was lost" in victim.log()


def test_the_server_of_shards_is_cut_off(
    victim: Victim, namespace: Namespace, expected: str, faults: Faults
) -> None:
    with namespace.cut_off("-l", f"{PART}={SERVER}"):
        time.sleep(CUT_S)
    victim.relieve()

    fault = f"The server of two shards is cut off the network for {CUT_S:g} s"
    require_unharmed(victim, namespace, faults, fault, expected, within_s=30)
