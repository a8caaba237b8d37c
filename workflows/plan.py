"""From a job to the steps that an engine runs, as data.

The *plan digest* names what will be computed: job, program, configuration, environment and data
set, but not who runs it, when, or on which machine. A site consents to it and every round
transcript carries it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from sharing.object_store import Digest
from workflows.canonical import digest_value
from workflows.job import JobSpec

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
    """

    name: StepKind
    argv: tuple[str, ...]
    after: tuple[StepKind, ...] = ()
    outputs: tuple[str, ...]
    optional_outputs: tuple[str, ...] = ()
    timeout_s: float = 86_400.0


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
    """

    job: str
    attempt: int
    plan_digest: Digest
    spec: JobSpec
    inputs: Mapping[str, Digest]
    steps: tuple[Step, ...]


def plan_digest(spec: JobSpec, environment: Digest) -> Digest:
    """Name of what ``spec`` computes in the locked environment ``environment``."""
    return digest_value({"version": 1, "job": spec, "environment": environment})


def compile_plan(
    job: str, attempt: int, spec: JobSpec, environment: Digest, inputs: Mapping[str, Digest]
) -> Plan:
    """Steps that train ``spec`` on its runtime, translate the model and publish it."""
    raise NotImplementedError
