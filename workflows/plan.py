"""From a job to the steps that an engine runs, as data.

The *plan digest* names what will be computed: job, program, configuration, environment and data
set, but not who runs it, when, or on which machine. A site consents to it and every round
transcript carries it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from sharing.object_store import Digest
from workflows.canonical import digest_value
from workflows.job import Analysis, JobSpec

SLACK_S: Final = 3600.0
"""What a step may take beside the work that the job bounds: transfers, start-up, waiting."""

TALLY: Final = "tally.safetensors"
RESULT: Final = "result.json"
RESUMPTION: Final = frozenset({"checkpoint.safetensors", "transcripts.jsonl"})
"""Inputs of the first step alone: when later ones start, the store may have given them up."""

StepKind = Literal["federate", "translate", "publish"]


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One process (or container); it starts when all of ``after`` have their manifest.

    Attributes:
        name: What it does.
        argv: Module and arguments after the interpreter; the run directory comes last.
        after: Steps whose outputs it takes.
        outputs: Names of files in the run directory that its manifest must list.
        optional_outputs: Names that its manifest lists if they are there.
        timeout_s: Longest it may take in all.
        shards: Processes (or pods) beside it that its simulated sites are spread over, which end
            with it; 0 where it simulates them itself.
    """

    name: StepKind
    argv: tuple[str, ...]
    after: tuple[StepKind, ...] = ()
    outputs: tuple[str, ...]
    optional_outputs: tuple[str, ...] = ()
    timeout_s: float = 86_400.0
    shards: int = 0


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One attempt at a run: what the engine is handed. It holds no secret.

    Attributes:
        job: Id of the job (one job is one run).
        attempt: Number of the attempt, from 1.
        plan_digest: What is computed; the same for every attempt.
        spec: The job.
        inputs: Objects that are laid into the run directory first, by file name: ``bundle.tar``,
            ``dataset`` (with the suffix of its format), ``init.safetensors``,
            ``checkpoint.safetensors`` and the ``transcripts.jsonl`` so far.
        steps: In an order that respects ``after``.
        organisation: Id of the organisation whose job it is; engines share machines out by it.
    """

    job: str
    attempt: int
    plan_digest: Digest
    spec: JobSpec
    inputs: Mapping[str, Digest]
    steps: tuple[Step, ...]
    organisation: str = ""


def plan_digest(spec: JobSpec, environment: Digest) -> Digest:
    """Name of what ``spec`` computes in the locked environment ``environment``.

    Numbers of workers and shards are left out: they change how fast a result comes, not which.
    (Workers as 0, as in digests from before there were shards.)
    """
    job = msgspec.to_builtins(spec)
    job["runtime"]["workers"] = 0
    del job["runtime"]["shards"]
    return digest_value({"version": 1, "job": job, "environment": environment})


def compile_plan(
    job: str, attempt: int, spec: JobSpec, environment: Digest, inputs: Mapping[str, Digest]
) -> Plan:
    """Steps that train ``spec`` on its runtime, translate the model and, if asked, publish it.

    An analysis makes no model, so it has no step but its rounds.
    """
    steps: tuple[Step, ...] = (_federate(spec),)
    if not isinstance(spec.program, Analysis):
        steps += (_translate(spec), *((_publish(),) if spec.output.publish else ()))
    return Plan(
        job=job,
        attempt=attempt,
        plan_digest=plan_digest(spec, environment),
        spec=spec,
        inputs=inputs,
        steps=steps,
    )


def _federate(spec: JobSpec) -> Step:
    """Rounds; each may wait for its sites, and then for their measurements."""
    return Step(
        name="federate",
        argv=(f"workflows.runtimes.{spec.runtime.kind}",),
        outputs=(*_products(spec), "transcripts.jsonl", "spent.json"),
        timeout_s=SLACK_S + spec.limits.import_s + 2 * spec.rounds * spec.cohort.deadline_s,
        shards=spec.runtime.shards if spec.runtime.shards > 1 else 0,
    )


def _products(spec: JobSpec) -> tuple[str, ...]:
    """Names of what the rounds make: the model, or what was counted and what that says."""
    is_analysis = isinstance(spec.program, Analysis)
    return (TALLY, RESULT) if is_analysis else ("model.safetensors",)


def _translate(spec: JobSpec) -> Step:
    """Export of the model, which takes one worker as long as a site's training may."""
    return Step(
        name="translate",
        argv=("workflows.steps.translate",),
        after=("federate",),
        outputs=("signature.json",),
        optional_outputs=("model.onnx",),
        timeout_s=SLACK_S + spec.limits.import_s + spec.limits.train_s,
    )


def _publish() -> Step:
    return Step(
        name="publish",
        argv=("workflows.steps.publish",),
        after=("federate", "translate"),
        outputs=("model.json",),
        timeout_s=SLACK_S,
    )
