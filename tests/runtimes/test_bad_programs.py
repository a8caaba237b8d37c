"""What programs do wrong, through the whole step: a cause each, and the round goes on if it may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.runtimes.run_folders import bundle, failed, finished, job, lay, own, run, told
from workflows.causes import CauseCode
from workflows.events import SiteDropped
from workflows.job import Limits, Partitioned
from workflows.transcript import RoundTranscript

NATIVE = {"kind": "native", "workers": 1}

# A worker's own folder counts the calls: the n-th site asked misbehaves in the n-th way.
ONE_AFTER_THE_OTHER = """
import os, time
from pathlib import Path
import numpy as np
from sklearn.linear_model import SGDClassifier

WAYS = ["nan", "shape", "raise", "hang", "hog", "die", "flood"]

class Misbehaving(SGDClassifier):
    def partial_fit(self, x, y):
        mark = Path(os.environ["HOME"]) / "calls"
        calls = int(mark.read_text()) if mark.exists() else 0
        mark.write_text(str(calls + 1))
        way = WAYS[calls] if calls < len(WAYS) else ""
        if way == "raise":
            raise ValueError("these data are strange")
        if way == "hang":
            time.sleep(600)
        if way == "hog":
            hoard = [np.ones(1 << 20) for _ in range(10_000)]
        if way == "die":
            os._exit(9)
        if way == "flood":
            for _ in range(64):
                print("x" * (1 << 20))
        self.coef_ = self.coef_ + 0.1
        if way == "nan":
            self.coef_[:] = np.nan
        if way == "shape":
            self.coef_ = np.zeros((10, 3))

def build():
    return Misbehaving(loss="hinge")
"""


def test_every_way_to_fail_is_dropped_with_its_own_cause(tmp_path: Path) -> None:
    program = bundle(tmp_path, ONE_AFTER_THE_OTHER, 'framework = "sklearn"')
    spec = job(
        program=own(program),
        runtime=NATIVE,
        data=Partitioned(dataset="digits", sites=9, central=0.1),
        strategy={"kind": "fedavg"},
        evaluate={"where": "central"},
        limits=Limits(train_s=4.0, memory_mb=800),
        rounds=1,
    )
    root = lay(tmp_path / "run", spec, program)

    assert run(root) == 0, (root / "federate.log").read_text()[-3000:]

    causes = [event.cause for event in told(root) if isinstance(event, SiteDropped)]
    assert [(cause.site, cause.code) for cause in causes] == [
        ("site-0001", CauseCode.UPDATE_NOT_FINITE),
        ("site-0002", CauseCode.UPDATE_INCOMPATIBLE),
        ("site-0003", CauseCode.PROGRAM_RAISED),
        ("site-0004", CauseCode.PROGRAM_HUNG),
        ("site-0005", CauseCode.PROGRAM_OUT_OF_MEMORY),
        ("site-0006", CauseCode.PROGRAM_DIED),
    ]
    assert "these data are strange" in causes[2].evidence
    (event,) = finished(root)
    assert (event.sites, event.dropped) == (3, 6)
    line = (root / "transcripts.jsonl").read_bytes()
    transcript = msgspec.json.decode(line, type=RoundTranscript)
    assert [(d.site, d.cause) for d in transcript.dropped] == [(c.site, c.code) for c in causes]
    assert (root / "federate.log").stat().st_size > 64 << 20  # the wrapper bounds it


BROKEN = {
    "does not parse": ("def build(:", CauseCode.PROGRAM_RAISED),
    "imports what is not there": ("import no_such_package", CauseCode.PROGRAM_IMPORT_FAILED),
    "hangs when imported": ("import time; time.sleep(600)", CauseCode.PROGRAM_HUNG),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_program_that_cannot_be_opened_fails_the_step(tmp_path: Path, case: str) -> None:
    code, expected = BROKEN[case]
    program = bundle(tmp_path, code, 'framework = "sklearn"')
    limits: Any = {"import_s": 6.0}
    spec = job(program=own(program), runtime=NATIVE, limits=limits)
    root = lay(tmp_path / "run", spec, program)

    assert run(root) == 1

    assert failed(root).cause.code is expected


def test_an_archive_that_is_none_fails_the_step_before_any_worker_starts(tmp_path: Path) -> None:
    inputs = {"bundle.tar": b"rubbish"}
    root = lay(tmp_path / "run", job(program=own(inputs), runtime=NATIVE), inputs)

    assert run(root) == 1

    assert failed(root).cause.code is CauseCode.PROGRAM_IMPORT_FAILED


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    inputs = {"checkpoint.safetensors": b"rubbish", "transcripts.jsonl": b""}
    root = lay(tmp_path / "run", job(runtime=NATIVE), inputs)

    assert run(root) == 1

    assert failed(root).cause.code is CauseCode.INPUT_MISSING
