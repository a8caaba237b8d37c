"""Whole jobs on Argo: the model is the one that this machine alone makes, whatever dies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from clients.errors import JobCancelled
from clients.resources import Job
from clients.sdk import Foedus, JobHandle
from tests.cluster.faults import Faults, Victim
from tests.cluster.kubernetes import Namespace
from tests.e2e.jobs import small
from tests.e2e.real_server import RealServer, running
from workflows.job import JobSpec, Output, Runtime
from workflows.run import Phase

pytestmark = pytest.mark.timeout(600)
WAIT_S = 150.0
ROUNDS = 30


def job(foedus: Foedus, name: str, rounds: int = ROUNDS) -> JobSpec:
    """With all three steps, and a framework's own processes."""
    runtime = Runtime(kind="flower", workers=1)
    return msgspec.structs.replace(small(foedus, name, rounds), runtime=runtime, output=Output())


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the model that child processes of this machine make of the job."""
    with running(tmp_path_factory.mktemp("local")) as server, server.client() as foedus:
        return digest_of(server, foedus.submit(job(foedus, "local")).wait(WAIT_S))


@pytest.fixture
def server(namespace: Namespace, image: str, tmp_path: Path) -> Iterator[RealServer]:
    with running(tmp_path / "argo", **namespace.settings(image, tmp_path)) as server:
        yield server


def digest_of(server: RealServer, closed: Job) -> str:
    assert closed.phase == Phase.SUCCEEDED, closed
    assert closed.model is not None
    with server.client() as foedus:
        return foedus.models.get(closed.model).digest


def wait_for_round(handle: JobHandle, number: int) -> None:
    for done in handle.rounds(timeout_s=WAIT_S):
        if done.number >= number:
            return


def test_the_same_job_makes_the_same_model(
    server: RealServer, namespace: Namespace, expected: str
) -> None:
    with server.client() as foedus:
        handle = foedus.submit(job(foedus, "argo"))
        wait_for_round(handle, 2)
        told = namespace.argo("get", "@latest")
        at = handle.refresh().workflow
        pods = namespace.get("pods")
        secrets = json.dumps(namespace.get("workflows"))
        closed = handle.wait(WAIT_S)
        log = "".join(str(line) for line in handle.logs())

    assert digest_of(server, closed) == expected
    assert closed.attempt == 1
    assert f"{handle.id}-1" in told
    assert at is not None
    assert at.name in told
    assert closed.workflow is None or closed.workflow == at
    assert "federate" in told
    assert "foedus_attempt" not in secrets
    assert server.log.count("token") == 0
    assert all("kube-api-access" not in json.dumps(pod) for pod in pods)
    assert "workers are confined by" in log
    namespace.require_nothing_left()


def test_a_run_whose_pod_is_deleted_goes_on_from_its_checkpoint(
    server: RealServer, namespace: Namespace, expected: str, faults: Faults, tmp_path: Path
) -> None:
    with server.client() as foedus:
        victim = Victim(foedus.submit(job(foedus, "doomed")), tmp_path)
        victim.hear_until_round(2)
        namespace.kubectl("delete", "pods", "--all", "--force", "--grace-period=0")
        closed = victim.require_same(
            faults, "The server step's pod is deleted", expected, within_s=60
        )

    assert closed.attempt == 2
    namespace.require_nothing_left()


def test_a_run_whose_workflow_is_deleted_goes_on_too(
    server: RealServer, namespace: Namespace, expected: str, faults: Faults, tmp_path: Path
) -> None:
    with server.client() as foedus:
        victim = Victim(foedus.submit(job(foedus, "doomed too")), tmp_path)
        victim.hear_until_round(2)
        namespace.kubectl("delete", "workflows", "--all")
        closed = victim.require_same(faults, "The workflow is deleted", expected, within_s=60)

    assert closed.attempt == 2
    namespace.require_nothing_left()


def test_a_control_plane_that_is_killed_finds_its_run_again(
    server: RealServer, namespace: Namespace, expected: str, faults: Faults, tmp_path: Path
) -> None:
    with server.client() as foedus:
        victim = Victim(foedus.submit(job(foedus, "orphaned")), tmp_path)
        victim.hear_until_round(2)
        server.kill()
        server.start()
        closed = victim.require_same(
            faults, "kill -9 of the only replica, and a new start (Argo)", expected, within_s=30
        )

    assert closed.attempt == 1
    namespace.require_nothing_left()


def test_a_cancelled_run_leaves_nothing(server: RealServer, namespace: Namespace) -> None:
    with server.client() as foedus:
        handle = foedus.submit(job(foedus, "unwanted", rounds=500))
        wait_for_round(handle, 1)
        handle.cancel()
        with pytest.raises(JobCancelled):
            handle.wait(WAIT_S)

    namespace.require_nothing_left()
