"""Run directories for tests, laid out as the engine and the wrapper do it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from sharing.object_store import digest_of
from workflows.events import AnyStepEvent, RoundFinished, StepFailed
from workflows.job import JobSpec
from workflows.plan import Plan, compile_plan
from workflows.program import pack
from workflows.run_directory import RunDirectory

ENVIRONMENT = digest_of(b"locked")
ROOT = Path(__file__).resolve().parents[2]

JOB: dict[str, Any] = {
    "name": "digits",
    "program": {"kind": "builtin", "name": "digits-mlp"},
    "data": {
        "kind": "partitioned",
        "dataset": "digits",
        "sites": 5,
        "partitioner": {"kind": "dirichlet", "alpha": 0.5},
        "central": 0.1,
    },
    "strategy": {"kind": "fedadam", "eta": 0.05},
    "init": {"kind": "seed", "seed": 7},
    "local": {"epochs": 1, "batch_size": 32, "optimizer": {"kind": "sgd", "lr": 0.1}},
    "rounds": 3,
}


def job(**changes: Any) -> JobSpec:
    return msgspec.convert(JOB | changes, JobSpec)


LINEAR = """
from sklearn.linear_model import SGDClassifier

def build():
    return SGDClassifier(loss="log_loss", eta0=0.05)
"""


def bundle(folder: Path, code: str, manifest: str = 'framework = "torch"') -> dict[str, bytes]:
    """Inputs with a bundle of the given code."""
    source = folder / "source"
    source.mkdir(parents=True)
    (source / "program.py").write_text(code)
    (source / "program.toml").write_text(f'name = "own"\n{manifest}\n')
    pack(source, folder / "bundle.tar")
    return {"bundle.tar": (folder / "bundle.tar").read_bytes()}


def linear(folder: Path) -> dict[str, bytes]:
    """Inputs with a program that loads quickly: no torch."""
    return bundle(folder, LINEAR, 'framework = "sklearn"')


def own(inputs: Mapping[str, bytes]) -> dict[str, Any]:
    """A job's ``program``, from its inputs."""
    return {"kind": "bundle", "digest": digest_of(inputs["bundle.tar"])}


def planned(spec: JobSpec, inputs: Mapping[str, bytes] | None = None) -> Plan:
    digests = {name: digest_of(content) for name, content in (inputs or {}).items()}
    return compile_plan("job-1", 1, spec, ENVIRONMENT, digests)


def lay(root: Path, spec: JobSpec, inputs: Mapping[str, bytes] | None = None) -> Path:
    inputs = inputs or {}
    files = RunDirectory(root)
    files.inputs.mkdir(parents=True)
    for name, content in inputs.items():
        (files.inputs / name).write_bytes(content)
    files.job.write_bytes(msgspec.json.encode(planned(spec, inputs)))
    return root


def start(
    root: Path, kind: str, environ: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    with (root / "federate.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", f"workflows.runtimes.{kind}", str(root)],
            cwd=ROOT,
            env={**os.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def run(root: Path, kind: str = "native") -> int:
    """Run the step to its end; the exit code."""
    return start(root, kind).wait(timeout=240)


def told(root: Path) -> list[AnyStepEvent]:
    path = root / "federate.events.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [msgspec.json.decode(line, type=AnyStepEvent) for line in lines]


def finished(root: Path) -> list[RoundFinished]:
    return [event for event in told(root) if isinstance(event, RoundFinished)]


def failed(root: Path) -> StepFailed:
    last = told(root)[-1]
    assert isinstance(last, StepFailed), (root / "federate.log").read_text()
    return last


def outputs(root: Path) -> dict[str, bytes]:
    names = ("model.safetensors", "transcripts.jsonl", "spent.json")
    return {name: (root / name).read_bytes() for name in names}


def inputs_after(
    root: Path, round_: int, before: Mapping[str, bytes] | None = None
) -> dict[str, bytes]:
    """What a new attempt is given when ``round_`` rounds of the one in ``root`` are on record.

    ``before`` is what that one was given itself.
    """
    files = RunDirectory(root)
    events = finished(root)[:round_]
    lines = [files.object(event.transcript).read_bytes() + b"\n" for event in events]
    return {
        "checkpoint.safetensors": files.object(events[-1].checkpoint).read_bytes(),
        "transcripts.jsonl": b"".join([(before or {}).get("transcripts.jsonl", b""), *lines]),
    }
