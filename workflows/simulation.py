"""Simulated sites: a data set divided among them, a program, and workers that train them all."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from strategies import Parameters
from strategies.forest import (
    MOST_ROUNDS,
    ForestInvalid,
    content_of,
    forest_of,
    layer_of,
    read_growth,
)
from workflows.capabilities import ProgramFacts
from workflows.causes import Cause, CauseCode
from workflows.checkpoint import (
    Checkpoint,
    CheckpointUnreadable,
    model_digest,
    read_checkpoint,
    read_model,
)
from workflows.data.preparation import site_names
from workflows.data.virtual import Alike, SiteNames
from workflows.exchange import Exchange, Federation
from workflows.job import (
    DEFAULT_LABEL,
    Analysis,
    Builtin,
    Bundle,
    FromModel,
    JobSpec,
    Partitioned,
)
from workflows.pool import Pool
from workflows.program import BundleError, ProgramManifest, read_manifest, unpack
from workflows.programs import builtin_folder
from workflows.run_folder import StepError, StepFolder
from workflows.tasks import (
    AnyAnswer,
    Initial,
    Load,
    Open,
    OpenData,
    OpenQuery,
    Prepare,
    Prepared,
)
from workflows.transcript import RoundTranscript, TranscriptInvalid, verify_chain
from workflows.workers import WorkerPool

WORK: Final = "work"
"""Scratch folder of the workers; ``data`` in it is what they opened."""
MOST_WORKERS: Final = 4
"""Unless the job asks for more: each holds the framework, some 300 MB with torch."""


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """Sites that can be asked.

    Attributes:
        sites: Names, sorted.
        num_examples: That each site trains on.
        facts: Of the program, or of what is asked instead.
        prepared: How the data is divided.
        manifest: Of the program; None where a query is asked instead.
        pool: Workers that have the program and the data.
    """

    sites: Sequence[str]
    num_examples: Mapping[str, int]
    facts: ProgramFacts
    prepared: Prepared
    manifest: ProgramManifest | None
    pool: Pool[Any]


@contextlib.contextmanager
def simulate(
    folder: StepFolder,
    *,
    num_workers: int | None = None,
    entry: Sequence[str] = ("workflows.worker",),
    answers: Any = AnyAnswer,  # noqa: ANN401 - a msgspec union is no type to mypy
    log: int | None = None,
) -> Iterator[Simulation]:
    """Lay out program and data, and start workers that have opened both.

    Args:
        folder: Of the step.
        num_workers: Processes; None for what the job asks.
        entry: What a worker runs.
        answers: Union of what it may answer.
        log: File that the workers print to; None for what this process prints to.

    Raises:
        StepError: An input is missing or unusable.
        SiteFailure: The program or the data could not be opened.
    """
    spec = folder.plan.spec
    if not isinstance(spec.data, Partitioned):
        raise StepError(
            Cause(code=CauseCode.PLATFORM_BUG, detail="only partitioned data is simulated")
        )
    is_analysis = isinstance(spec.program, Analysis)
    program, manifest = (None, None) if is_analysis else lay_program(folder)
    scratch, inputs = folder.scratch(WORK), folder.files.inputs
    workers: WorkerPool[Any] = WorkerPool(
        num_workers=num_workers or _num_workers(folder),
        limits=spec.limits,
        folder=scratch,
        entry=entry,
        answers=answers,
        readable=(inputs, program) if program else (inputs,),
        log=log,
    )
    preparer: WorkerPool[Any] = WorkerPool(
        num_workers=1, limits=spec.limits, folder=scratch, readable=(inputs,), log=log
    )
    data = str(scratch / "data")
    with workers as pool:
        with preparer:  # a process of its own: what reads data is large, and needed once
            task = Prepare(data=spec.data, inputs=str(inputs), folder=data)
            preparing = preparer.call(task)
            if manifest:
                pool.broadcast_task(
                    Load(framework=manifest.framework, vectorized=spec.runtime.vectorized)
                )
            prepared = preparing.result().answer
        pool.broadcast_task(OpenData(folder=data))
        opened = pool.broadcast_task(_opening(spec, program, prepared))[0].answer
        print("workers are confined by: " + ", ".join(pool.confined), file=sys.stderr)  # noqa: T201
        yield simulation_of(prepared, opened.facts, manifest, pool)


def _opening(spec: JobSpec, program: Path | None, prepared: Prepared) -> Open | OpenQuery:
    """What makes a worker ready for the sites' tasks, once it has the data."""
    if isinstance(spec.program, Analysis):
        return OpenQuery(
            query=spec.program.query,
            label=spec.data.label if isinstance(spec.data, Partitioned) else DEFAULT_LABEL,
            minimum_count=spec.evaluate.minimum_count,
        )
    return Open(
        program=str(program),
        config=spec.program.config,
        seed=spec.init.seed,
        features=prepared.features,
        classes=prepared.num_classes,
    )


def simulation_of(
    prepared: Prepared, facts: ProgramFacts, manifest: ProgramManifest | None, pool: Pool[Any]
) -> Simulation:
    """Sites whose data is divided so, simulated by ``pool``."""
    sites, num_examples = _population(prepared)
    return Simulation(sites, num_examples, facts, prepared, manifest, pool)


def _population(prepared: Prepared) -> tuple[Sequence[str], Mapping[str, int]]:
    """Names of the sites, sorted, and what each of them trains on."""
    if isinstance(prepared.num_examples, int):
        names = SiteNames(prepared.num_sites)
        return names, Alike(names, prepared.num_examples)
    sites = site_names(prepared.num_sites)
    return sites, dict(zip(sites, prepared.num_examples, strict=True))


def lay_program(folder: StepFolder) -> tuple[Path, ProgramManifest]:
    """Folder of the job's program, and what the program declares; none of its code is run.

    Raises:
        StepError: There is no such program, or its bundle cannot be unpacked.
    """
    match folder.plan.spec.program:
        case Builtin(name=name):
            program = builtin_folder(name)
            return program, read_manifest(program)
        case Bundle():
            target = folder.files.root / f"{folder.step}.program"
            shutil.rmtree(target, ignore_errors=True)
            try:
                return target, unpack(_require_input(folder, "bundle.tar"), target)
            except BundleError as error:
                cause = Cause(code=CauseCode.PROGRAM_IMPORT_FAILED, detail=str(error))
                raise StepError(cause) from error
        case _:
            cause = Cause(code=CauseCode.PLATFORM_BUG, detail="images are not run here")
            raise StepError(cause)


def beginning(folder: StepFolder, simulation: Simulation) -> Checkpoint:
    """State before the first round: the program's own model, or the one that the job names.

    Raises:
        StepError: The model is not one of the program.
        SiteFailure: The program did not build its model.
    """
    params: Parameters
    spec = folder.plan.spec
    starts_anew = not isinstance(spec.init, FromModel)
    if starts_anew or spec.strategy.model_kind == "trees":
        built = simulation.pool.call(Initial()).result().arrays
        params = {name: built[name] for name in sorted(built)}  # as a checkpoint has them
    if not starts_anew:
        path = _require_input(folder, "init.safetensors")
        if spec.strategy.model_kind == "trees":
            params = _given_trees(path, params)
        else:
            params = _given(path, simulation.facts)
    return Checkpoint(spec.strategy.init(params))


def federation_of(simulation: Simulation, exchange: Exchange) -> Federation:
    """The simulated sites, as the round loop knows them."""
    return Federation(
        simulation.sites,
        exchange,
        directions=simulation.manifest.metrics if simulation.manifest else {},
        num_examples=simulation.num_examples,
    )


def record(folder: StepFolder) -> tuple[Checkpoint | None, list[RoundTranscript]]:
    """State after the last round on record, and the transcripts so far; None before the first.

    Raises:
        StepError: What is on record does not fit together.
    """
    path = folder.input("checkpoint.safetensors")
    if path is None:
        return None, []
    lines = _require_input(folder, "transcripts.jsonl").read_bytes().splitlines()
    try:
        checkpoint = read_checkpoint(path.read_bytes())
        transcripts = [msgspec.json.decode(line, type=RoundTranscript) for line in lines]
        verify_chain(transcripts, plan=folder.plan.plan_digest)
    except (CheckpointUnreadable, msgspec.MsgspecError, TranscriptInvalid) as error:
        raise StepError(Cause(code=CauseCode.INPUT_MISSING, detail=str(error))) from error
    last = transcripts[-1] if transcripts else None
    model = model_digest(checkpoint.state.params)
    if last is None or (last.round, last.model) != (checkpoint.state.round, model):
        detail = f"the checkpoint of round {checkpoint.state.round} is not of the last transcript"
        raise StepError(Cause(code=CauseCode.INPUT_MISSING, detail=detail))
    return checkpoint, transcripts


def _read(path: Path) -> Parameters:
    try:
        return read_model(path.read_bytes())
    except CheckpointUnreadable as error:
        raise StepError(Cause(code=CauseCode.INPUT_MISSING, detail=str(error))) from error


def _given_trees(path: Path, built: Parameters) -> Parameters:
    """The ensemble to start from, if its trees are such as this program's ``built`` one takes."""
    try:
        empty, content = forest_of(built), content_of(_read(path))
        return layer_of(read_growth(content, empty, MOST_ROUNDS))
    except ForestInvalid as error:
        detail = f"init.model: {error}"
        raise StepError(Cause(code=CauseCode.UPDATE_INCOMPATIBLE, detail=detail)) from error


def _given(path: Path, facts: ProgramFacts) -> Parameters:
    """The model to start from, if it is one of this program."""
    params = _read(path)
    found = {name: (x.shape, x.dtype.name) for name, x in params.items()}
    if found != {p.name: (tuple(p.shape), p.dtype) for p in facts.parameters}:
        detail = "init.model has other layers than the program builds"
        raise StepError(Cause(code=CauseCode.UPDATE_INCOMPATIBLE, detail=detail))
    return params


def _require_input(folder: StepFolder, name: str) -> Path:
    path = folder.input(name)
    if path is None or not path.exists():
        raise StepError(Cause(code=CauseCode.INPUT_MISSING, detail=name))
    return path


def _num_workers(folder: StepFolder) -> int:
    spec = folder.plan.spec
    asked = spec.runtime.workers or min(MOST_WORKERS, os.cpu_count() or 1)
    return max(1, min(asked, spec.most_updates))
