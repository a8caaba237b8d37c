"""The native simulator: clients a second with and without training, and the memory of a million.

Clients that do nothing answer with the same small numbers, which are of the size that is named;
everything else really happens: seeds, the examples of the site, a commitment by SHA-256 over the
update, the check of its values, the exact sum, the round's transcript, checkpoint and events. What
no worker does is to send each update to the server: it sends the sum.

Training is that of the builtin digits-mlp, the same model, examples and local steps for all sides
(four SGD steps on 20 of 1,797 digits): ours one by one and vectorised; flwr's own simulation, which
is Ray's; and pfl-research, if ``--pfl PYTHON`` names an interpreter that has it
(``benchmarks.pfl_peer`` says how to make one). Every side runs by itself, in steady state.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from benchmarks.ray_peer import Task, in_ray
from benchmarks.report import Figure, run_benchmark
from sharing.object_store import digest_of
from strategies import ClientHalf, Parameters
from workflows.capabilities import ProgramFacts
from workflows.data.examples import Examples
from workflows.data.preparation import bundled
from workflows.events import RoundFinished
from workflows.job import JobSpec, Local
from workflows.plan import compile_plan
from workflows.rounds import run_rounds
from workflows.run_directory import RunDirectory
from workflows.run_folder import StepFolder
from workflows.runtimes.native import DirectExchange
from workflows.simulation import Simulation, beginning, federation_of, simulate
from workflows.tasks import AnyTask
from workflows.trainers.border import parameters_of
from workflows.trainers.trainer import Measured, Trained
from workflows.workbench import Workbench
from workflows.worker import serve
from workflows.workers import Station, WorkerPool

REPETITIONS: Final = 5
WORKERS: Final = min(4, os.cpu_count() or 1)
COHORT: Final = 1000
SIDES: Final[Mapping[int, int]] = {16: 10, 512: 1}  # a square of float32: rounds a repetition
IDLE: Final = ("benchmarks.simulator", "--worker")


class Idle:
    """A trainer that trains nothing: every client sends the same numbers."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        side = int(config["side"])
        self._delta = {"w": np.full((side, side), 2.0**-10, np.float32)}

    @property
    def facts(self) -> ProgramFacts:
        """What it is."""
        return ProgramFacts(framework="torch", parameters=parameters_of(self._delta))

    def initial(self) -> dict[str, np.ndarray]:
        """Zeros."""
        return {name: np.zeros_like(x) for name, x in self._delta.items()}

    def train(
        self, params: Parameters, examples: Examples, local: Local, half: ClientHalf, seed: int
    ) -> Trained:
        """The same for all."""
        return Trained(self._delta, len(examples), 0.0)

    def evaluate(self, params: Parameters, examples: Examples, metrics: Sequence[str]) -> Measured:
        """Nothing."""
        return Measured({}, 0)

    def export(self, params: Parameters, samples: np.ndarray, folder: Path) -> None:
        """Never asked for."""
        raise NotImplementedError


def work(station: Station) -> None:
    """Body of a worker whose clients do nothing."""
    bench = Workbench(lambda folder, config, seed, features, classes: Idle(config))
    serve(station, bench.handle, AnyTask)


def idle(side: int, sites: int) -> JobSpec:
    """A job whose clients do nothing; above 1,000 they are virtual and draw their examples."""
    kind = {"kind": "iid"} if sites <= COHORT else {"kind": "virtual", "examples": 20}
    return job({"side": side}, sites, COHORT, kind, 5, vectorized=False)


def training(task: Task, *, vectorized: bool) -> JobSpec:
    """A job that trains ``task``."""
    kind = {"kind": "virtual", "examples": task.examples}
    return job({}, task.sites, task.cohort, kind, task.batch_size, vectorized=vectorized)


def job(
    config: Mapping[str, Any],
    sites: int,
    cohort: int,
    partitioner: Mapping[str, object],
    batch_size: int,
    *,
    vectorized: bool,
) -> JobSpec:
    """A job over sites that hold nothing out."""
    document = {
        "name": "simulator",
        "program": {"kind": "builtin", "name": "digits-mlp", "config": config},
        "runtime": {"kind": "native", "workers": WORKERS, "vectorized": vectorized},
        "data": {
            "kind": "partitioned",
            "dataset": "digits",
            "sites": sites,
            "partitioner": partitioner,
            "holdout": 0.0,
        },
        "local": {"batch_size": batch_size},
        "cohort": {"size": cohort},
        "evaluate": {"metrics": []},
    }
    return msgspec.convert(document, JobSpec)


def ours(
    spec: JobSpec,
    rounds_each: int,
    entry: Sequence[str] = ("workflows.worker",),
    look: Callable[[Simulation, bool], object] = lambda simulation, is_over: None,
) -> list[float]:
    """Clients a second of each repetition, from the end of one round to that of another.

    Args:
        spec: The job.
        rounds_each: Rounds of a repetition.
        entry: What a worker runs.
        look: Shown the simulation before and after all rounds.
    """
    rounds = 1 + REPETITIONS * rounds_each
    plan = compile_plan(
        "job-1", 1, msgspec.structs.replace(spec, rounds=rounds), digest_of(b"locked"), {}
    )
    with tempfile.TemporaryDirectory() as root:
        files = RunDirectory(Path(root))
        files.inputs.mkdir(parents=True)
        files.job.write_bytes(msgspec.json.encode(plan))
        folder = StepFolder(Path(root), "federate")
        with simulate(folder, entry=entry) as simulation:
            start = beginning(folder, simulation)
            exchange = DirectExchange(simulation.pool, folder.plan, simulation.num_examples)
            look(simulation, False)
            run_rounds(folder, federation_of(simulation, exchange), start, [])
            look(simulation, True)
        ends = [event.at for event in folder.told() if isinstance(event, RoundFinished)]
    clients = rounds_each * spec.cohort_size
    return [clients / (ends[k + rounds_each] - ends[k]) for k in range(0, rounds - 1, rounds_each)]


def _pids(simulation: Simulation) -> tuple[int, ...]:
    assert isinstance(simulation.pool, WorkerPool)
    return simulation.pool.pids


def peak_mb(sites: int) -> float:
    """Most that server and workers had resident together, over some rounds of idle clients."""
    peaks: list[int] = []

    def look(simulation: Simulation, is_over: bool) -> None:
        if is_over:
            pids = (os.getpid(), *_pids(simulation))
            peaks.extend(_peak_kb(pid) for pid in pids)

    ours(idle(16, sites), 4, IDLE, look)
    return sum(peaks) / 1024


def idle_rates(side: int, sites: int) -> list[float]:
    """Clients a second that do nothing, and last the microseconds of processors that one takes."""
    used: list[float] = []

    def look(simulation: Simulation, is_over: bool) -> None:
        pids = (os.getpid(), *_pids(simulation))
        used.append(sum(_used_s(pid) for pid in pids))

    each = SIDES[side]
    found = ours(idle(side, sites), each, IDLE, look)
    return [*found, (used[1] - used[0]) / (COHORT * (1 + REPETITIONS * each)) * 1e6]


def _used_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def alone(command: Sequence[str]) -> Any:  # noqa: ANN401 - what the side prints
    """What a side prints last, run in a process of its own so that none is in another's way."""
    environment = os.environ | {
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        sys.stderr.buffer.write(done.stderr[-3000:])
        raise RuntimeError(f"{' '.join(command[1:4])} ended with {done.returncode}")
    return msgspec.json.decode(lines[-1])


def side(name: str, task: Task) -> list[float]:
    """One side's figures."""
    match name.split("-"):
        case ["idle", length, sites]:
            return idle_rates(int(length), int(sites))
        case ["peak", sites]:
            return [peak_mb(int(sites))]
        case ["ray"]:
            return in_ray(task, WORKERS)
        case _:
            spec = training(task, vectorized=name == "vectorized")
            return ours(spec, 4 * task.rounds_each)


def measure(pfl: str | None) -> Sequence[Figure]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.npz"
        x, labels = bundled("digits")
        np.savez(path, x=x, y=labels.y)
        task = Task(data=str(path))
        told = msgspec.json.encode(task).decode()

        def of(name: str) -> tuple[float, ...]:
            command = [sys.executable, "-m", "benchmarks.simulator", "--side", name, told]
            return tuple(alone(command))

        *small, small_us = of("idle-16-1000")
        *large, large_us = of("idle-512-1000")
        *many, many_us = of("idle-16-1000000")
        few_mb = tuple(of("peak-10000")[0] for _ in range(3))
        many_mb = tuple(of("peak-1000000")[0] for _ in range(3))
        one_by_one, together, ray = of("trained"), of("vectorized"), of("ray")
        research: tuple[float, ...] = ()
        if pfl:
            launcher = ("-m", "torch.distributed.run", "--nproc-per-node", str(WORKERS))
            peer = str(Path(__file__).with_name("pfl_peer.py"))
            research = tuple(alone([pfl, *launcher, peer, told]))
    c = "clients/s"
    more = tuple(b / a - 1 for a, b in zip(few_mb, many_mb, strict=True))
    figures = [
        Figure(name="idle, 1 kB", unit=c, values=tuple(small), bound="at least", target=30_000),
        Figure(name="idle, 1 MB", unit=c, values=tuple(large), bound="at least", target=4_000),
        Figure(name="idle, 1 kB, of a million", unit=c, values=tuple(many)),
        Figure(name="processors for one, 1 kB", unit="us", values=(small_us,)),
        Figure(name="processors for one, 1 MB", unit="us", values=(large_us,)),
        Figure(name="processors for one, 1 kB, of a million", unit="us", values=(many_us,)),
        Figure(name="peak memory, of ten thousand", unit="MiB", values=few_mb),
        Figure(name="peak memory, of a million", unit="MiB", values=many_mb),
        Figure(name="a million over ten thousand, memory", unit="more", values=more, target=0.05),
        Figure(name="digits-mlp, one by one", unit=c, values=one_by_one),
        Figure(name="digits-mlp, vectorised", unit=c, values=together),
        Figure(name="digits-mlp, flwr on Ray", unit=c, values=ray),
        _ratio("one by one over flwr on Ray", one_by_one, ray),
        _ratio("vectorised over flwr on Ray", together, ray, 10.0),
    ]
    if research:
        figures += [
            Figure(name="digits-mlp, pfl-research", unit=c, values=research),
            _ratio("one by one over pfl-research", one_by_one, research),
            _ratio("vectorised over pfl-research", together, research),
        ]
    else:
        print("pfl-research is NOT measured: name an interpreter by --pfl", file=sys.stderr)
    return figures


def _ratio(
    name: str, mine: Sequence[float], theirs: Sequence[float], target: float | None = None
) -> Figure:
    values = tuple(a / b for a, b in zip(mine, theirs, strict=True))
    return Figure(name=name, unit="x", values=values, bound="at least", target=target)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--worker", station]:
            work(msgspec.json.decode(station, type=Station))
            os._exit(0)
        case ["--side", name, told]:
            rates = side(name, msgspec.json.decode(told, type=Task))
            print(msgspec.json.encode(rates).decode(), flush=True)
        case _:
            parser = argparse.ArgumentParser(add_help=False)
            parser.add_argument("--pfl", help="interpreter that has pfl 0.6 and torch")
            known, sys.argv[1:] = parser.parse_known_args()
            sys.exit(
                run_benchmark(
                    "simulator",
                    "Simulated clients",
                    f"{WORKERS} workers. Idle clients: cohorts of {COHORT:,} out of 1,000 sites "
                    "with one or two examples, or of a million that draw 20. Trained: cohorts of "
                    "512 of 10,000 virtual sites, four steps on 20 digits. Medians of five, steady "
                    "state. The time of processors that a client takes, server and workers "
                    "together, bounds what a quiet machine would do: four processors have "
                    "4,000,000 us a second (and a busy neighbour lengthens it, too).",
                    ("flwr", "ray", "torch", "numpy"),
                    lambda: measure(known.pfl),
                )
            )
