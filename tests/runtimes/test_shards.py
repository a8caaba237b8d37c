"""Simulated sites on several shards: neither how many they are nor that one dies shows."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tests.runtimes.run_folders import (
    finished,
    job,
    lay,
    linear,
    outputs,
    own,
)
from tests.runtimes.test_simulator import CENTRAL, DATA, run_all
from workflows.job import JobSpec

N = "native"


def spread(spec: JobSpec, shards: int, workers: int = 1) -> JobSpec:
    runtime = msgspec.structs.replace(spec.runtime, kind=N, workers=workers, shards=shards)
    return msgspec.structs.replace(spec, runtime=runtime)


def test_many_sites_make_one_model_on_any_number_of_shards(tmp_path: Path) -> None:
    program = linear(tmp_path)
    spec = job(
        program=own(program),
        data=DATA,
        cohort={"size": 48, "selection": {"kind": "weighted"}},
        codec={"kind": "int8", "bucket": 64},
        evaluate=CENTRAL,
        rounds=4,
    )
    one, two, three = (
        lay(tmp_path / f"run-{shards}", spread(spec, shards), program) for shards in (1, 2, 3)
    )
    run_all({one: N, two: N, three: N})

    assert outputs(three) == outputs(two) == outputs(one)
    log = (three / "federate.log").read_text()
    assert all(f"shard {number} is there, with 1 workers" in log for number in (1, 2, 3))
    assert "lost" not in log
    compared = [(e.loss, e.sites, e.bytes_up, e.bytes_down) for e in finished(one)]
    assert compared == [(e.loss, e.sites, e.bytes_up, e.bytes_down) for e in finished(three)]
