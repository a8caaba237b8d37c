"""Jobs of which only named layers travel: both runtimes, any number of workers, after any round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runtimes.run_folders import finished, inputs_after, job, lay, outputs, planned
from tests.runtimes.test_client_halves import ran
from workflows.checkpoint import read_model
from workflows.flower_grid import ANSWERS, WorkerGrid, identify
from workflows.programs import BUILTIN
from workflows.run_folder import StepFolder
from workflows.runtimes.flower import GridExchange
from workflows.runtimes.native import DirectExchange
from workflows.simulation import simulate

PROGRAM = {"kind": "builtin", "name": "digits-lora"}
ROUNDS = 2


def test_adapters_travel_and_the_base_stays(tmp_path: Path) -> None:
    identify()
    local = {"epochs": 1, "batch_size": 32, "optimizer": {"kind": "sgd", "lr": 0.1}}
    spec = job(program=PROGRAM, strategy={"kind": "fedavg"}, local=local, rounds=ROUNDS)
    laid = StepFolder(lay(tmp_path / "laid", spec), "federate")
    with simulate(laid, num_workers=1) as one:
        whole = ran(
            tmp_path / "whole", one, DirectExchange(one.pool, planned(spec), one.num_examples), spec
        )
        inputs = inputs_after(whole, 1)
        resumed = ran(
            tmp_path / "resumed",
            one,
            DirectExchange(one.pool, planned(spec), one.num_examples),
            spec,
            inputs,
        )
    entry = ("workflows.runtimes.flower", "--worker")
    laid = StepFolder(lay(tmp_path / "again", spec), "federate")
    with simulate(laid, num_workers=2, entry=entry, answers=ANSWERS) as two:
        exchange = GridExchange(WorkerGrid(two.pool, two.sites), two.sites, spec)
        same = ran(tmp_path / "same", two, exchange, spec)

    assert outputs(resumed) == outputs(same) == outputs(whole)
    model = read_model(outputs(whole)["model.safetensors"])
    facts = BUILTIN["digits-lora"]
    assert set(model) == {p.name for p in facts.parameters}
    size = sum(x.nbytes for x in model.values())
    assert size == 4 * (4 * (64 + 256) + 4 * (256 + 256) + 10 * 256 + 10)
    (*_, last) = finished(whole)
    assert (last.bytes_up, last.bytes_down) == (5 * size, 5 * size)
    everything = size + facts.frozen_bytes
    assert everything == 4 * (64 * 256 + 256 + 256 * 256 + 256) + size
    assert size / everything == pytest.approx(0.067, abs=0.001)
    assert all(np.isfinite(x).all() for x in model.values())
