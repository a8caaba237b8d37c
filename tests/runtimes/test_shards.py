"""Simulated sites on several shards: neither how many they are nor that one dies shows."""

from __future__ import annotations

import os
import signal
import time
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
)
from tests.runtimes.test_simulator import CENTRAL, DATA, run_all
from workflows.causes import CauseCode
from workflows.job import JobSpec
from workflows.workers import family

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


def test_a_shard_that_dies_does_not_show(tmp_path: Path) -> None:
    program = linear(tmp_path)
    spec = job(program=own(program), data=DATA, evaluate=CENTRAL, rounds=12)
    alone, struck = (
        lay(tmp_path / f"run-{shards}", spread(spec, shards), program) for shards in (1, 2)
    )
    with start(alone, N) as undisturbed, start(struck, N) as process:
        while not finished(struck):
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(shards_of(process.pid)[0], signal.SIGKILL)
        assert undisturbed.wait(120) == process.wait(120) == 0

    log = (struck / "federate.log").read_text()
    assert "was lost" in log
    assert log.count("is there") == 3
    assert outputs(struck) == outputs(alone)


# It ends who started it, which nothing that confines it forbids.
MUTINY = """
import os, signal
from sklearn.linear_model import SGDClassifier

class Mutineer(SGDClassifier):
    def partial_fit(self, x, y, classes=None, sample_weight=None):
        if len(x):
            os.kill(os.getppid(), signal.SIGKILL)
        return super().partial_fit(x, y, classes, sample_weight)

def build():
    return Mutineer(loss="log_loss", eta0=0.05)
"""


def test_shards_that_never_last_end_the_attempt_with_the_cause(tmp_path: Path) -> None:
    program = bundle(tmp_path, MUTINY, 'framework = "sklearn"')
    spec = job(program=own(program), data=DATA, evaluate=CENTRAL)
    root = lay(tmp_path / "run", spread(spec, 2), program)
    with start(root, N) as process:
        assert process.wait(120) == 1
        assert not shards_of(process.pid)

    cause = failed(root).cause
    assert cause.code is CauseCode.ATTEMPT_LOST
    assert cause.detail == "no shard was there any more: each ended 4 times"


def shards_of(pid: int) -> list[int]:
    """Processes of a step's shards."""
    return [one for one in family(pid) if b"workflows.shard\0" in _command(one)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
