"""A step in a folder that holds nothing but plan and credentials, as in a pod."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from sharing.object_store import digest_of
from tests.workflows.attempts import plan_of, step_of
from tests.workflows.control_plane_double import TOKEN, ControlPlaneDouble
from workflows.causes import Cause, CauseCode
from workflows.engine import Activity, Credentials, Observation
from workflows.events import RoundFinished
from workflows.manifest import Manifest
from workflows.plan import Plan
from workflows.pod import exit_code, summarise

DIGEST = f"sha256:{'5' * 64}"


class Pod:
    """The process of one, in a folder of its own."""

    def __init__(self, folder: Path, plane: ControlPlaneDouble, plan: Plan, *options: str) -> None:
        self.run, self.handover = folder / "attempt", folder / "handover"
        self.run.mkdir(parents=True)
        self.handover.mkdir()
        credentials = Credentials(url=plane.url, token=TOKEN)
        (self.handover / "credentials.json").write_bytes(msgspec.json.encode(credentials))
        (self.handover / "job.json").write_bytes(msgspec.json.encode(plan))
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "workflows.pod", str(self.run)),
                *(f"--handover={self.handover}", "--grace-s=5", *options),
            ],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])},
            stderr=subprocess.PIPE,
            text=True,
        )

    def withhold(self) -> Path:
        """What is handed over, under another name."""
        return self.handover.rename(self.handover.with_name(".part"))

    def end(self) -> tuple[int, str]:
        _, complaint = self.process.communicate(timeout=30)
        return self.process.returncode, complaint

    def report(self, name: str) -> str:
        path = self.run / "report" / name
        return path.read_text() if path.exists() else ""

    @property
    def outcome(self) -> Observation:
        return msgspec.json.decode(self.report("outcome"), type=Observation)


def plan() -> Plan:
    return plan_of(
        step_of("federate", "rounds=2", "output=model.bin", outputs=("model.bin",)),
        msgspec.structs.replace(
            step_of("translate", "until=model.bin", "until=federate.events.jsonl"),
            after=("federate",),
        ),
    )


def test_a_step_finds_what_a_step_on_another_machine_made(
    tmp_path: Path, plane: ControlPlaneDouble
) -> None:
    first = Pod(tmp_path / "1", plane, plan(), "--step=federate")
    assert first.end() == (0, "")
    handed = ("--earlier", "federate", first.report("manifest"), first.report("events"))
    second = Pod(tmp_path / "2", plane, plan(), "--step=translate", *handed)

    assert second.end() == (0, "")
    assert first.outcome.activity is Activity.SUCCEEDED
    assert (second.run / "model.bin").read_text() == "content of model.bin"
    assert first.report("summary") == "round 2 of 2, loss 0.5, accuracy 0.5"
    assert plane.events["translate"][-1]["manifest"] == second.report("manifest")


def test_a_later_step_does_without_what_the_first_one_resumed_from(
    tmp_path: Path, plane: ControlPlaneDouble
) -> None:
    inputs = {
        "bundle.tar": plane.put_input(b"bundle"),
        "checkpoint.safetensors": digest_of(b"given up"),
        "transcripts.jsonl": digest_of(b"given up too"),
    }
    manifest = Manifest(job="job-1", attempt=1, step="federate", plan_digest=DIGEST, outputs={})
    handed = (plane.put_input(msgspec.json.encode(manifest)), plane.put_input(b""))
    later = plan_of(step_of("federate"), step_of("translate", "event"), inputs=inputs)
    pod = Pod(tmp_path, plane, later, "--step=translate", "--earlier", "federate", *handed)

    assert pod.end() == (0, "")
    assert [path.name for path in (pod.run / "inputs").iterdir()] == ["bundle.tar"]


def test_credentials_are_gone_before_a_step_starts(
    tmp_path: Path, plane: ControlPlaneDouble
) -> None:
    pod = Pod(tmp_path, plane, plan_of(step_of("federate", "event")), "--step=federate")

    assert pod.end()[0] == 0
    assert list(pod.handover.iterdir()) == []
    assert not any(
        TOKEN.encode() in path.read_bytes() for path in pod.run.rglob("*") if path.is_file()
    )


def test_what_is_handed_over_may_come_late(tmp_path: Path, plane: ControlPlaneDouble) -> None:
    pod = Pod(tmp_path, plane, plan_of(step_of("federate", "event")), "--step=federate")
    part = pod.withhold()
    time.sleep(1)
    assert pod.process.poll() is None
    part.rename(pod.handover)

    assert pod.end() == (0, "")


@pytest.mark.parametrize("change", [{"attempt": 2}, {"plan_digest": DIGEST[:-1] + "6"}])
def test_what_another_attempt_made_is_not_taken(
    tmp_path: Path, plane: ControlPlaneDouble, change: dict[str, object]
) -> None:
    manifest = Manifest(job="job-1", attempt=1, step="federate", plan_digest=DIGEST, outputs={})
    strange = msgspec.json.encode(msgspec.structs.replace(manifest, **change))
    handed = ("--earlier", "federate", plane.put_input(strange), plane.put_input(b""))
    pod = Pod(tmp_path, plane, plan(), "--step=translate", *handed)

    assert pod.end()[0] == 75  # nothing was told yet
    assert pod.outcome.cause is not None
    assert pod.outcome.cause.code is CauseCode.MANIFEST_INVALID


def test_what_is_gone_from_the_store_is_a_failure_for_good(
    tmp_path: Path, plane: ControlPlaneDouble
) -> None:
    handed = ("--earlier", "federate", digest_of(b"absent"), digest_of(b"absent"))
    pod = Pod(tmp_path, plane, plan(), "--step=translate", *handed)

    assert pod.end()[0] == 1
    assert pod.outcome.cause is not None
    assert pod.outcome.cause.code is CauseCode.INPUT_MISSING


@pytest.mark.parametrize("value", ["", "{{tasks.federate.outputs.parameters.manifest}}"])
def test_what_is_no_digest_is_refused(
    tmp_path: Path, plane: ControlPlaneDouble, value: str
) -> None:
    pod = Pod(tmp_path, plane, plan(), "--step=translate", "--earlier", "federate", value, DIGEST)
    code, complaint = pod.end()

    assert code == 2
    assert "federate handed nothing over" in complaint


def test_a_step_that_is_asked_to_stop_says_so(tmp_path: Path, plane: ControlPlaneDouble) -> None:
    pod = Pod(tmp_path, plane, plan_of(step_of("federate", "event", "wait")), "--step=federate")
    deadline = time.monotonic() + 30
    while not plane.events["federate"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)

    pod.process.send_signal(signal.SIGTERM)

    assert pod.end()[0] == 1  # what was told can not be told again
    assert pod.outcome.activity is Activity.CANCELLED


def test_a_second_start_after_something_was_told_is_a_lost_attempt(
    tmp_path: Path, plane: ControlPlaneDouble
) -> None:
    one = plan_of(step_of("federate", "rounds=2", "exit=9"))
    assert Pod(tmp_path / "1", plane, one, "--step=federate").end()[0] == 1
    told = list(plane.events["federate"])
    again = Pod(tmp_path / "2", plane, one, "--step=federate")

    assert again.end()[0] == 1
    assert again.outcome.activity is Activity.LOST
    assert plane.events["federate"] == told


@pytest.mark.parametrize(
    ("activity", "code", "was_heard", "expected"),
    [
        (Activity.SUCCEEDED, None, True, 0),
        (Activity.FAILED, CauseCode.PROGRAM_RAISED, False, 1),
        (Activity.FAILED, CauseCode.DISK_FULL, False, 75),
        (Activity.FAILED, CauseCode.DISK_FULL, True, 1),
        (Activity.CANCELLED, None, False, 75),
        (Activity.CANCELLED, None, True, 1),
        (Activity.LOST, CauseCode.ATTEMPT_LOST, False, 1),
    ],
)
def test_only_what_was_never_told_of_is_tried_again(
    activity: Activity, code: CauseCode | None, was_heard: bool, expected: int
) -> None:
    cause = None if code is None else Cause(code=code)

    assert exit_code(Observation(activity=activity, cause=cause), was_heard=was_heard) == expected


def test_a_summary_has_names_that_no_template_can_be_made_of() -> None:
    event = RoundFinished(
        number=1,
        at=0,
        round=1,
        rounds=1,
        sites=1,
        dropped=0,
        loss=None,
        metrics={"{{workflow.name}}": 0.5, "{{=1+1}}": 1.0, "auroc": 0.25},
        bytes_up=0,
        bytes_down=0,
        seconds=0,
        model=DIGEST,
        checkpoint=DIGEST,
        transcript=DIGEST,
    )

    assert "{" not in summarise(msgspec.json.encode(event))
    assert "auroc 0.25" in summarise(msgspec.json.encode(event))
