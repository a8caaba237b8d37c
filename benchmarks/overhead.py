"""What the platform adds to a round: the digits job on each runtime against a bare loop.

The bare loop trains the same sites with the same trainer in as many processes of plain
multiprocessing, and measures the model as often, but folds nothing, checks nothing and records
nothing. They are timed in turn, five times, each by its quickest round: what else the machine does
can only add to a round.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import ruamel.yaml

from benchmarks.report import Figure, run_benchmark
from sharing.object_store import digest_of
from strategies import ClientHalf
from workflows.data.preparation import Prepared, open_prepared, prepare
from workflows.events import AnyStepEvent, RoundFinished
from workflows.job import Builtin, JobSpec, Partitioned, Runtime
from workflows.plan import compile_plan
from workflows.programs import builtin_folder
from workflows.run_directory import RunDirectory
from workflows.trainers import load_trainer
from workflows.trainers.trainer import Trainer

REPETITIONS: Final = 5
WORKERS: Final = 2
ROUNDS: Final = 20
TARGETS_MS: Final = {"native": 10.0, "flower": 50.0}
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
EXAMPLE: Final = Path(__file__).parent.parent / "examples" / "digits.yaml"

_trainer: Trainer
_data: Prepared
_spec: JobSpec


def digits_job(kind: str) -> JobSpec:
    """The example job on a runtime, with the benchmark's number of rounds."""
    document = ruamel.yaml.YAML(typ="safe", pure=True).load(EXAMPLE.read_text())
    spec = msgspec.convert(document, JobSpec)
    return msgspec.structs.replace(spec, runtime=Runtime(kind=kind, workers=WORKERS), rounds=ROUNDS)


def round_on_platform(kind: str, folder: Path) -> float:
    """Least seconds from one finished round to the next in a run of the step."""
    files = RunDirectory(folder)
    files.inputs.mkdir(parents=True)
    plan = compile_plan("bench", 1, digits_job(kind), digest_of(b"bench"), {})
    files.job.write_bytes(msgspec.json.encode(plan))
    command = [sys.executable, "-m", f"workflows.runtimes.{kind}", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    lines = files.events("federate").read_bytes().splitlines()
    events = [msgspec.json.decode(line, type=AnyStepEvent) for line in lines]
    times = [event.at for event in events if isinstance(event, RoundFinished)]
    return min(np.diff(times).tolist())


def open_bare(folder: str) -> None:
    """Give a process of the bare loop its program and data."""
    global _trainer, _data, _spec
    _spec = digits_job("native")
    assert isinstance(_spec.program, Builtin)
    _data = open_prepared(Path(folder))
    program = builtin_folder(_spec.program.name)
    _trainer = load_trainer(
        program, _spec.program.config, _spec.init.seed, _data.features, _data.num_classes
    )


def initial(_: object) -> dict[str, np.ndarray]:
    """The model as built."""
    return _trainer.initial()


def train(task: tuple[str, dict[str, np.ndarray]]) -> object:
    """One site's training."""
    site, params = task
    return _trainer.train(params, _data.training(site), _spec.local, ClientHalf(), 1)


def evaluate(params: dict[str, np.ndarray]) -> object:
    """The central evaluation."""
    return _trainer.evaluate(params, _data.central(), _spec.evaluate.metrics)


def round_in_bare_loop(pool: Pool, sites: Sequence[str]) -> float:
    """Least seconds of a round of the bare loop."""
    params = pool.apply(initial, (None,))
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _trained in pool.imap_unordered(train, [(site, params) for site in sites]):
            pass
        pool.apply(evaluate, (params,))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure() -> list[Figure]:
    """All figures, in milliseconds."""
    os.environ.update(ONE_THREAD)  # as the platform's workers have it
    bare: list[float] = []
    platform: dict[str, list[float]] = {kind: [] for kind in TARGETS_MS}
    with tempfile.TemporaryDirectory() as folder:
        data = digits_job("native").data
        assert isinstance(data, Partitioned)
        prepare(data, Path(folder), Path(folder) / "data")
        sites = open_prepared(Path(folder) / "data").sites
        spawn = multiprocessing.get_context("spawn")
        with spawn.Pool(WORKERS, open_bare, (str(Path(folder) / "data"),)) as pool:
            round_in_bare_loop(pool, sites)
            for repetition in range(REPETITIONS):
                bare.append(round_in_bare_loop(pool, sites) * 1000)
                for kind, rounds in platform.items():
                    run = Path(folder) / f"{kind}-{repetition}"
                    rounds.append(round_on_platform(kind, run) * 1000)
    figures = [Figure(name="round of the bare loop", unit="ms", values=tuple(bare))]
    for kind, target in TARGETS_MS.items():
        mine = platform[kind]
        over = tuple(ours - theirs for ours, theirs in zip(mine, bare, strict=True))
        figures.append(Figure(name=f"round on {kind}", unit="ms", values=tuple(mine)))
        figures.append(Figure(name=f"overhead of {kind}", unit="ms", values=over, target=target))
    return figures


if __name__ == "__main__":
    sys.exit(
        run_benchmark(
            "overhead",
            "Overhead of a round",
            f"The digits job, {WORKERS} workers, {ROUNDS} rounds, {REPETITIONS} repetitions.",
            ("flwr", "torch", "numpy"),
            measure,
        )
    )
