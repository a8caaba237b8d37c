"""Trying out an upload before any job names it: ``python -m workflows.steps.probe FOLDER``.

The folder holds the upload (an unpacked program, or a file of examples) and ``probe.json``, a
``Probe``; ``found.json``, a ``Found``, is the answer. What reads the upload is a confined worker:
this process only waits for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from workflows.capabilities import DatasetFacts, ProgramFacts
from workflows.causes import Cause
from workflows.confinement import die_with
from workflows.data.files import inspect_dataset
from workflows.frames import Blob
from workflows.job import Limits
from workflows.program import read_manifest
from workflows.run_directory import read_json, write_whole
from workflows.tasks import Answer, Failed, Open, Opened, SiteFailure, Task
from workflows.worker import serve
from workflows.workers import Station, WorkerPool

QUESTION: Final = "probe.json"
ANSWER: Final = "found.json"
PROGRAM: Final = "program"


class Probe(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What to try out.

    Attributes:
        limits: What the worker may take.
    """

    limits: Limits


class ProbeProgram(Probe, frozen=True, tag="program"):
    """Import the program in ``program/``, and build its model."""


class ProbeDataset(Probe, frozen=True, tag="dataset"):
    """Read a file of examples once.

    Attributes:
        file: Its name in the folder.
        label: Column or array with the labels.
    """

    file: str
    label: str


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What trying it out showed; one of the three.

    Attributes:
        program: Facts of the program.
        dataset: Facts of the data set.
        cause: Why it does not work.
    """

    program: ProgramFacts | None = None
    dataset: DatasetFacts | None = None
    cause: Cause | None = None


class Inspect(Task, frozen=True, tag="inspect"):
    """Read a file of examples once; answered by ``Inspected``."""

    path: str
    label: str


class Inspected(Answer, frozen=True, tag="inspected"):
    """The file was read."""

    facts: DatasetFacts


def probe(folder: Path, question: ProbeProgram | ProbeDataset) -> Found:
    """Let a worker try out what lies in ``folder``."""
    task: Open | Inspect
    match question:
        case ProbeProgram():
            manifest = read_manifest(folder / PROGRAM)
            task = Open(
                program=str(folder / PROGRAM),
                features=manifest.example_features,
                classes=manifest.classes,
            )
        case ProbeDataset(file=file, label=label):
            task = Inspect(path=str(folder / file), label=label)
    pool = WorkerPool[Task](
        num_workers=1,
        limits=question.limits,
        folder=folder / "scratch",
        entry=("workflows.steps.probe", "--worker"),
        answers=Opened | Inspected | Failed,
        readable=(folder,),
        log=sys.stderr.fileno(),
    )
    with pool:
        try:
            answer = pool.call(task).result().answer
        except SiteFailure as failure:
            return Found(cause=failure.cause)
    if isinstance(answer, Opened):
        return Found(program=answer.facts)
    return Found(dataset=answer.facts)


def handle(task: Open | Inspect, blobs: list[bytes]) -> tuple[Answer, Sequence[Blob]]:
    """Do one task, in the worker."""
    match task:
        case Inspect(path=path, label=label):
            return Inspected(facts=inspect_dataset(Path(path), label)), ()
        case Open():
            from workflows.workbench import Workbench  # loads the frameworks

            return Workbench().handle(task, blobs)


def main(arguments: Sequence[str]) -> int:
    """Entry of the process, and of its worker."""
    if arguments[0] == "--worker":
        serve(msgspec.json.decode(arguments[1], type=Station), handle, Open | Inspect)
        return 0
    die_with(os.getppid())
    folder = Path(arguments[0]).resolve()
    question = read_json(folder / QUESTION, ProbeProgram | ProbeDataset)  # type: ignore[arg-type]
    if question is None:
        raise FileNotFoundError(folder / QUESTION)
    write_whole(folder / ANSWER, msgspec.json.encode(probe(folder, question)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
