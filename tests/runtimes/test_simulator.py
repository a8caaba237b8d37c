"""Runs of many simulated sites at once: neither workers nor runs show in what comes of them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tests.runtimes.run_folders import (
    bundle,
    finished,
    inputs_after,
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

    def laid(name: str, kind: str, workers: int, record: dict[str, bytes]) -> Path:
        runtime = msgspec.structs.replace(spec.runtime, kind=kind, workers=workers)
        changed = msgspec.structs.replace(spec, runtime=runtime)
        return lay(tmp_path / name, changed, program | record)

    one = laid("one", "native", 1, {})
    flower = laid("flower", "flower", 1, {})
    with start(one, "native") as first, start(flower, "flower") as second:
        assert (first.wait(120), second.wait(120)) == (0, 0), (one / "federate.log").read_text()
    two, four = laid("two", "native", 2, {}), laid("four", "native", 4, inputs_after(one, 2))
    with start(two, "native") as third, start(four, "native") as fourth:
        assert (third.wait(120), fourth.wait(120)) == (0, 0)

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
    dropped: list[list[tuple[str, CauseCode]]] = []
    models: list[list[str]] = []
    for workers in (1, 2):
        spec = job(
            program=own(program),
            runtime={"kind": "native", "workers": workers},
            data=DATA,
            evaluate=CENTRAL,
            rounds=1,
        )
        root = lay(tmp_path / f"run-{workers}", spec, program)
        with start(root, "native") as process:
            assert process.wait(120) == 0, (root / "federate.log").read_text()
        causes = [event.cause for event in told(root) if isinstance(event, SiteDropped)]
        dropped.append(sorted((str(cause.site), cause.code) for cause in causes))
        models.append([event.model for event in finished(root)])

    codes = {code for _, code in dropped[0]}
    assert codes == {CauseCode.PROGRAM_DIED, CauseCode.PROGRAM_RAISED}
    assert 2 < len(dropped[0]) < 60
    assert dropped[0] == dropped[1]
    assert models[0] == models[1]


def test_a_population_of_a_million_is_trained_a_cohort_at_a_time(tmp_path: Path) -> None:
    program = linear(tmp_path)

    def laid(name: str, workers: int, record: dict[str, bytes]) -> Path:
        spec = job(
            program=own(program),
            runtime={"kind": "native", "workers": workers},
            data=DATA | {"sites": 1_000_000, "partitioner": {"kind": "virtual", "alpha": 0.5}},
            cohort={"size": 50},
            evaluate=CENTRAL,
            rounds=4,
        )
        return lay(tmp_path / name, spec, program | record)

    one = laid("one", 1, {})
    with start(one, "native") as process:
        assert process.wait(120) == 0, (one / "federate.log").read_text()
    resumed = laid("resumed", 2, inputs_after(one, 2))
    with start(resumed, "native") as process:
        assert process.wait(120) == 0, (resumed / "federate.log").read_text()

    assert outputs(resumed) == outputs(one)
    assert finished(one)[-1].metrics["accuracy"] > 0.3
