"""Strategies and codecs with a half at the site, on real workers: what must not show does not.

Pools are opened once and many short runs go through them; ``test_equality`` starts whole steps.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.runtimes.run_folders import finished, inputs_after, job, lay, outputs, planned
from workflows.checkpoint import read_checkpoint
from workflows.exchange import Exchange, Federation, Question
from workflows.flower_grid import ANSWERS, WorkerGrid, identify
from workflows.job import JobSpec
from workflows.rounds import run_rounds
from workflows.run_folder import StepFolder
from workflows.runtimes.flower import GridExchange
from workflows.runtimes.native import DirectExchange
from workflows.simulation import Simulation, beginning, record, simulate
from workflows.transcript import RoundTranscript, verify_chain

STRATEGIES: dict[str, dict[str, Any]] = {
    "fednova": {"kind": "fednova"},
    "qfedavg": {"kind": "qfedavg", "q": 0.5},
    "scaffold": {"kind": "scaffold"},
    "scaffold by gradients": {"kind": "scaffold", "option": "gradient"},
    "feddyn": {"kind": "feddyn", "alpha": 0.1},
    "fedavg by top-k": {"kind": "fedavg"},
    "fltrust": {"kind": "fltrust"},
    "client momentum": {"kind": "coordinate-median", "client_momentum": 0.5},
}
CODECS: dict[str, dict[str, Any]] = {"fedavg by top-k": {"kind": "top-k", "fraction": 0.05}}
ROUNDS = 3


def spec_of(name: str) -> JobSpec:
    codec = CODECS.get(name, {"kind": "none"})
    return job(strategy=STRATEGIES[name], rounds=ROUNDS, cohort={"size": 3}, codec=codec)


@contextmanager
def opened(root: Path, workers: int, **how: Any) -> Iterator[Simulation]:
    folder = StepFolder(lay(root, job()), "federate")
    with simulate(folder, num_workers=workers, **how) as simulation:
        yield simulation


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    """One worker of the native runtime."""
    with opened(tmp_path_factory.mktemp("one"), 1) as simulation:
        yield simulation


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    """Two workers of the Flower runtime, which know the native one's tasks too."""
    identify()
    entry = ("workflows.runtimes.flower", "--worker")
    root = tmp_path_factory.mktemp("two")
    with opened(root, 2, entry=entry, answers=ANSWERS) as simulation:
        yield simulation


class Killing(DirectExchange):
    """Has a worker killed before each question."""

    def ask(self, question: Question) -> Iterator[Any]:
        os.kill(self._pool.pids[0], signal.SIGKILL)
        yield from super().ask(question)


def ran(
    root: Path,
    simulation: Simulation,
    exchange: Exchange,
    spec: JobSpec,
    inputs: Mapping[str, bytes] | None = None,
) -> Path:
    folder = StepFolder(lay(root, spec, inputs), "federate", clock=lambda: 0.0)
    recorded, transcripts = record(folder)
    start = recorded or beginning(folder, simulation)
    federation = Federation(simulation.sites, exchange, clock=lambda: 0.0)
    run_rounds(folder, federation, start, transcripts)
    return root


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_model_from_both_runtimes_and_after_any_round(
    tmp_path: Path, one: Simulation, two: Simulation, name: str
) -> None:
    spec = spec_of(name)
    native = DirectExchange(one.pool, planned(spec), one.num_examples)
    flower = GridExchange(WorkerGrid(two.pool, two.sites), two.sites, spec)

    whole = ran(tmp_path / "whole", one, native, spec)
    same = ran(tmp_path / "same", two, flower, spec)

    assert outputs(same) == outputs(whole)
    assert [e.checkpoint for e in finished(same)] == [e.checkpoint for e in finished(whole)]
    assert [e.loss for e in finished(same)] == [e.loss for e in finished(whole)]
    for on_record in range(1, ROUNDS):
        inputs = inputs_after(whole, on_record)
        exchange = DirectExchange(two.pool, planned(spec), two.num_examples)
        resumed = ran(tmp_path / f"{on_record}", two, exchange, spec, inputs)
        assert outputs(resumed) == outputs(whole)
    lines = outputs(whole)["transcripts.jsonl"].splitlines()
    transcripts = [msgspec.json.decode(line, type=RoundTranscript) for line in lines]
    verify_chain(transcripts, plan=StepFolder(whole, "federate").plan.plan_digest)


def test_killed_workers_take_no_sites_memory_with_them(
    tmp_path: Path, one: Simulation, two: Simulation
) -> None:
    spec = spec_of("scaffold")

    quiet = ran(
        tmp_path / "quiet", one, DirectExchange(one.pool, planned(spec), one.num_examples), spec
    )
    killed = ran(tmp_path / "killed", two, Killing(two.pool, planned(spec), two.num_examples), spec)

    assert outputs(killed) == outputs(quiet)
    last = finished(quiet)[-1].checkpoint
    kept = read_checkpoint(StepFolder(quiet, "federate").files.object(last).read_bytes()).memories
    lines = outputs(quiet)["transcripts.jsonl"].splitlines()
    drawn = {s for line in lines for s in msgspec.json.decode(line, type=RoundTranscript).cohort}
    assert kept.keys() == drawn


def test_what_sites_keep_does_not_count_as_travelled(tmp_path: Path, two: Simulation) -> None:
    sizes = {}
    for name in ("fednova", "feddyn", "scaffold", "fedavg by top-k"):
        spec = spec_of(name)
        exchange = DirectExchange(two.pool, planned(spec), two.num_examples)
        (*_, event) = finished(ran(tmp_path / name, two, exchange, spec))
        sizes[name] = (event.bytes_up, event.bytes_down)

    assert sizes["feddyn"] == sizes["fednova"]
    assert sizes["scaffold"] == tuple(2 * size for size in sizes["fednova"])
    # Of 4096, 64, 640 and 10 entries 205, 3, 32 and 1 travel, with a bit or four bytes for each.
    by_top_k = (512 + 4 * 205) + (8 + 4 * 3) + (80 + 4 * 32) + (2 + 4)
    assert sizes["fedavg by top-k"] == (3 * by_top_k, sizes["fednova"][1])
