"""Runs of many simulated sites at once: neither workers nor runs show in what comes of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec

from tests.runtimes.run_folders import (
    bundle,
    failed,
    finished,
    job,
    lay,
    linear,
    outputs,
    own,
    start,
    told,
)
from workflows.causes import CauseCode
from workflows.events import SiteDropped

DATA = {"kind": "partitioned", "dataset": "digits", "sites": 60, "central": 0.1}
CENTRAL = {"where": "central"}
N = "native"


def run_all(roots: Mapping[Path, str]) -> None:
    """Run steps beside each other, each by the runtime that is named."""
    with ExitStack() as stack:
        processes = {root: stack.enter_context(start(root, kind)) for root, kind in roots.items()}
        for root, process in processes.items():
            assert process.wait(120) == 0, (root / "federate.log").read_text()


def test_many_sites_make_one_model_with_any_number_of_workers(tmp_path: Path) -> None:
    program = linear(tmp_path)
    spec = job(
        program=own(program),
        data=DATA,
        cohort={"size": 48, "selection": {"kind": "weighted"}},
        codec={"kind": "int8", "bucket": 64},
        evaluate=CENTRAL,
        rounds=4,
    )

    def laid(kind: str, workers: int) -> Path:
        runtime = msgspec.structs.replace(spec.runtime, kind=kind, workers=workers)
        changed = msgspec.structs.replace(spec, runtime=runtime)
        return lay(tmp_path / f"{kind}-{workers}", changed, program)

    one, two, four, flower = (laid(*r) for r in (*((N, k) for k in (1, 2, 4)), ("flower", 1)))
    run_all({one: N, two: N, four: N, flower: "flower"})

    assert outputs(two) == outputs(four) == outputs(one)
    assert [event.model for event in finished(flower)] == [event.model for event in finished(one)]
    compared = [(e.loss, e.sites, e.bytes_up, e.bytes_down) for e in finished(one)]
    assert compared == [(e.loss, e.sites, e.bytes_up, e.bytes_down) for e in finished(two)]


# Whoever has an example of a certain look ends, or raises.
BAD_LOOK = """
import os
from sklearn.linear_model import SGDClassifier

class Careful(SGDClassifier):
    def partial_fit(self, x, y, classes=None, sample_weight=None):
        if len(x) and (x.sum(axis=1) > 26.8).any():
            os._exit(9)
        if len(x) and (x.sum(axis=1) < 14.5).any():
            raise ValueError("too dark")
        return super().partial_fit(x, y, classes, sample_weight)

def build():
    return Careful(loss="log_loss", eta0=0.05)
"""


def test_a_site_that_ends_the_worker_is_lost_alone(tmp_path: Path) -> None:
    program = bundle(tmp_path, BAD_LOOK, 'framework = "sklearn"')
    roots = [
        lay(
            tmp_path / f"run-{workers}",
            job(
                program=own(program),
                runtime={"kind": N, "workers": workers},
                data=DATA,
                evaluate=CENTRAL,
                rounds=1,
            ),
            program,
        )
        for workers in (1, 2)
    ]
    run_all(dict.fromkeys(roots, N))

    causes = [
        [event.cause for event in told(root) if isinstance(event, SiteDropped)] for root in roots
    ]
    dropped = [sorted((str(cause.site), cause.code) for cause in part) for part in causes]
    codes = {code for _, code in dropped[0]}
    assert codes == {CauseCode.PROGRAM_DIED, CauseCode.PROGRAM_RAISED}
    assert 2 < len(dropped[0]) < 60
    assert dropped[0] == dropped[1]
    assert outputs(roots[0]) == outputs(roots[1])


def test_a_population_of_a_million_is_trained_a_cohort_at_a_time(tmp_path: Path) -> None:
    program = linear(tmp_path)
    roots = [
        lay(
            tmp_path / f"run-{workers}",
            job(
                program=own(program),
                runtime={"kind": N, "workers": workers},
                data=DATA | {"sites": 1_000_000, "partitioner": {"kind": "virtual", "alpha": 0.5}},
                cohort={"size": 50},
                evaluate=CENTRAL,
                rounds=4,
            ),
            program,
        )
        for workers in (1, 2)
    ]
    run_all(dict.fromkeys(roots, N))

    assert outputs(roots[0]) == outputs(roots[1])
    assert finished(roots[0])[-1].metrics["accuracy"] > 0.3


def test_sites_trained_together_make_one_model_with_any_number_of_workers(tmp_path: Path) -> None:
    roots = [
        lay(
            tmp_path / f"run-{workers}",
            job(
                runtime={"kind": N, "workers": workers, "vectorized": True},
                data=DATA | {"sites": 200, "partitioner": {"kind": "dirichlet", "alpha": 1.0}},
                strategy={"kind": "fedprox", "mu": 0.1},
                evaluate=CENTRAL,
                rounds=3,
            ),
        )
        for workers in (1, 4)
    ]
    run_all(dict.fromkeys(roots, N))

    assert outputs(roots[0]) == outputs(roots[1])
    assert finished(roots[0])[-1].loss < finished(roots[0])[0].loss


def test_a_program_that_cannot_be_stacked_fails_with_the_mend(tmp_path: Path) -> None:
    program = bundle(tmp_path, RANDOM)
    spec = job(
        program=own(program),
        runtime={"kind": N, "workers": 1, "vectorized": True},
        evaluate=CENTRAL,
    )
    root = lay(tmp_path / "run", spec, program)
    with start(root, N) as process:
        assert process.wait(120) == 1

    cause = failed(root).cause
    assert cause.code is CauseCode.PROGRAM_RAISED
    assert "at every site of the cohort (5)" in cause.detail
    assert "set runtime.vectorized to false" in cause.detail


RANDOM = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(64, 10), nn.Dropout(0.5))

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
"""
