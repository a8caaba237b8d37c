"""A linear model of scikit-learn through the whole job: rounds by both runtimes, then ONNX.

Classes go the same way in ``test_equality`` and ``tests.workflows.test_steps_translate``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from tests.runtimes.run_folders import ROOT, bundle, finished, job, lay, outputs, own, start
from workflows.steps.card import ModelSignature

CODE = """
from sklearn.linear_model import SGDRegressor

def build():
    return SGDRegressor(alpha=0.0)
"""


def test_real_values_are_learnt_alike_and_handed_out(tmp_path: Path) -> None:
    program = bundle(tmp_path, CODE, 'framework = "sklearn"')

    def laid(kind: str, workers: int) -> Path:
        spec = job(
            program=own(program),
            data={"kind": "partitioned", "dataset": "diabetes", "sites": 3, "central": 0.2},
            runtime={"kind": kind, "workers": workers},
            strategy={"kind": "fedavg"},
            local={"epochs": 5},
            ring={"magnitude": 1024.0, "fraction_bits": 20},  # progressions go up to 346
            evaluate={"metrics": ["mse"], "where": "central"},
        )
        return lay(tmp_path / kind, spec, program)

    native, flower = laid("native", 1), laid("flower", 2)
    with start(native, "native") as first, start(flower, "flower") as second:
        assert (first.wait(120), second.wait(120)) == (0, 0), (native / "federate.log").read_text()
    command = [sys.executable, "-m", "workflows.steps.translate", str(native)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0

    assert outputs(native)["model.safetensors"] == outputs(flower)["model.safetensors"]
    assert finished(native)[-1].metrics["mse"] < 5000  # the variance is 5,930
    signature = msgspec.json.decode((native / "signature.json").read_bytes(), type=ModelSignature)
    assert (signature.framework, signature.classes) == ("sklearn", ())
    assert signature.parity is not None
