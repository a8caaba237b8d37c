"""What a workflow's phases, messages and outputs mean for an attempt."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from workflows.argo_status import SeenWorkflow, is_left_waiting, observe
from workflows.causes import Cause, CauseCode
from workflows.engine import Activity, Observation

MANIFEST = f"sha256:{'1' * 64}"


def seen(phase: str, *nodes: dict[str, Any], shutdown: str = "", message: str = "") -> SeenWorkflow:
    named = {str(number): node for number, node in enumerate(nodes)}
    spec = {"shutdown": shutdown} if shutdown else {}
    value = {
        "metadata": {"name": "job-1-1", "uid": "u", "managedFields": []},
        "spec": {**spec, "entrypoint": "run"},
        "status": {"phase": phase, "message": message, "nodes": named},
    }
    return msgspec.json.decode(msgspec.json.encode(value), type=SeenWorkflow)


def pod(
    step: str, phase: str, *, at: str = "2026-01-01T00:00:00Z", **values: Any
) -> dict[str, Any]:
    message = values.pop("message", "")
    outputs = [{"name": name, "value": value} for name, value in values.items()]
    return {
        "type": "Pod",
        "templateName": step,
        "phase": phase,
        "message": message,
        "startedAt": at,
        "outputs": {"parameters": outputs},
    }


def outcome(activity: Activity, code: CauseCode | None = None) -> str:
    cause = None if code is None else Cause(code=code, detail="why")
    return msgspec.json.encode(Observation(activity=activity, cause=cause)).decode()


def test_one_that_the_controller_has_not_seen_runs() -> None:
    bare = msgspec.json.decode(b'{"metadata":{"name":"a","uid":"b"}}', type=SeenWorkflow)

    assert observe(bare) == Observation(activity=Activity.RUNNING)


def test_while_it_runs_it_tells_step_and_manifests() -> None:
    observation = observe(
        seen(
            "Running",
            {"type": "DAG", "templateName": "run", "phase": "Running", "startedAt": None},
            pod("translate", "Running", at="2026-01-01T00:01:00Z"),
            pod("federate", "Succeeded", manifest=MANIFEST, outcome="{}"),
        )
    )

    assert observation == Observation(
        activity=Activity.RUNNING, step="translate", manifests={"federate": MANIFEST}
    )


def test_one_that_succeeded_tells_its_manifests() -> None:
    observation = observe(seen("Succeeded", pod("federate", "Succeeded", manifest=MANIFEST)))

    assert observation == Observation(activity=Activity.SUCCEEDED, manifests={"federate": MANIFEST})


@pytest.mark.parametrize("lie", ["", "no digest", "{{workflow.name}}", "sha256:12"])
def test_what_is_no_digest_is_no_manifest(lie: str) -> None:
    observation = observe(seen("Succeeded", pod("federate", "Succeeded", manifest=lie)))

    assert observation.manifests == {}


def test_a_failed_step_gives_its_cause() -> None:
    told = outcome(Activity.FAILED, CauseCode.PROGRAM_RAISED)
    observation = observe(seen("Failed", pod("federate", "Failed", outcome=told)))

    assert observation.activity is Activity.FAILED
    assert observation.cause == Cause(code=CauseCode.PROGRAM_RAISED, detail="why")


def test_the_last_pod_of_a_step_counts() -> None:
    observation = observe(
        seen(
            "Failed",
            pod("federate", "Failed", at="2026-01-01T00:09:00Z", outcome=outcome(Activity.LOST)),
            pod("federate", "Failed", outcome=outcome(Activity.FAILED, CauseCode.DISK_FULL)),
        )
    )

    assert observation.activity is Activity.LOST


def test_one_that_was_terminated_is_cancelled() -> None:
    told = outcome(Activity.FAILED, CauseCode.PROGRAM_RAISED)
    node = pod("federate", "Failed", outcome=told)

    assert observe(seen("Failed", node, shutdown="Terminate")).activity is Activity.CANCELLED


@pytest.mark.parametrize(
    "value", ["", "nonsense", '{"activity": "dancing"}', outcome(Activity.SUCCEEDED)]
)
def test_a_pod_that_ended_without_a_word_is_lost_with_the_cluster_s_words(value: str) -> None:
    node = pod("federate", "Error", outcome=value, message="pod deleted")
    observation = observe(seen("Error", node))

    assert observation.activity is Activity.LOST
    assert observation.cause == Cause(code=CauseCode.ATTEMPT_LOST, detail="federate: pod deleted")


def test_one_that_never_got_a_pod_is_lost_with_argo_s_words() -> None:
    observation = observe(seen("Error", message="no such service account " + "x" * 999))

    assert observation.cause is not None
    assert observation.cause.detail.startswith("no such service account")
    assert len(observation.cause.detail) == 300


@pytest.mark.parametrize(
    ("federate", "shard", "is_left"),
    [
        ("Running", "Pending", False),
        ("Succeeded", "Pending", True),
        ("Succeeded", "Running", True),
        ("Failed", "Running", True),
        ("Succeeded", "Succeeded", False),
    ],
)
def test_shards_are_left_waiting_when_their_server_s_step_is_over(
    federate: str, shard: str, is_left: bool
) -> None:
    step = {"type": "Retry", "templateName": "federate", "phase": federate}
    tried = pod("federate", "Failed")  # whether it is tried again is what the step says

    assert is_left_waiting(seen("Running", tried, step, pod("shard", shard))) is is_left
    assert not is_left_waiting(seen("Running", tried, step))
