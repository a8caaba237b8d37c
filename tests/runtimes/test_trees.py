"""Boosted trees by every runtime: one ensemble, whoever counts, resumed or not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import xgboost as xgb

from sharing.object_store import digest_of
from strategies.forest import forest_of
from tests.runtimes.run_folders import (
    ROOT,
    failed,
    finished,
    inputs_after,
    job,
    lay,
    outputs,
    run,
    start,
)
from workflows.causes import CauseCode
from workflows.checkpoint import read_model
from workflows.job import JobSpec
from workflows.steps.card import ModelSignature

TREES: dict[str, Any] = {
    "program": {"kind": "builtin", "name": "breast-cancer-xgb"},
    "data": {"kind": "partitioned", "dataset": "breast-cancer", "sites": 5, "central": 0.3},
    "strategy": {"kind": "xgb-bagging"},
    "local": {"epochs": 2},
    "evaluate": {"metrics": ["accuracy", "auroc"], "where": "central"},
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "a bag": {},
    "turns": {
        "strategy": {"kind": "xgb-cyclic"},
        "cohort": {"size": 1, "selection": {"kind": "round-robin"}},
    },
}


def trees(kind: str = "native", workers: int = 1, **fields: Any) -> JobSpec:
    return job(**{**TREES, **fields, "runtime": {"kind": kind, "workers": workers}})


@pytest.mark.parametrize("fields", STRATEGIES.values(), ids=STRATEGIES)
def test_neither_runtime_workers_nor_a_resumption_show(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    sites = 1 if "cohort" in fields else 5
    one = lay(tmp_path / "one", trees(**fields))
    assert run(one) == 0, (one / "federate.log").read_text()
    others = {
        "flower": lay(tmp_path / "flower", trees("flower", 4, **fields)),
        "after 1": lay(tmp_path / "1", trees("native", 2, **fields), inputs_after(one, 1)),
    }
    if not fields:
        others["after 2"] = lay(tmp_path / "2", trees(), inputs_after(one, 2))

    for name, root in others.items():
        with start(root, name if name == "flower" else "native") as process:
            assert process.wait(120) == 0, (root / "federate.log").read_text()

    for root in others.values():
        assert outputs(root)["model.safetensors"] == outputs(one)["model.safetensors"]
    flower = others.pop("flower")
    assert all(outputs(resumed) == outputs(one) for resumed in others.values())
    events = finished(one)
    assert [event.model for event in finished(flower)] == [event.model for event in events]
    assert [event.sites for event in events] == [sites] * 3
    assert events[-1].metrics["accuracy"] > 0.85
    assert events[-1].bytes_down > events[0].bytes_down
    assert forest_of(read_model(outputs(one)["model.safetensors"])).num_trees == 3 * 2 * sites


def test_a_run_goes_on_from_earlier_trees_of_its_kind_and_ends_in_onnx(tmp_path: Path) -> None:
    first = lay(tmp_path / "first", trees(rounds=1))
    assert run(first) == 0, (first / "federate.log").read_text()
    model = outputs(first)["model.safetensors"]
    earlier = {"init": {"kind": "model", "digest": digest_of(model)}, "rounds": 1}
    onwards = lay(tmp_path / "onwards", trees(**earlier), {"init.safetensors": model})
    iris = {
        "program": {"kind": "builtin", "name": "digits-xgb"},
        "data": {"kind": "partitioned", "dataset": "digits", "sites": 5, "central": 0.3},
        "evaluate": {"metrics": ["accuracy"]},
    }
    astray = lay(tmp_path / "astray", trees(**earlier, **iris), {"init.safetensors": model})

    with start(onwards, "native") as one, start(astray, "native") as other:
        assert (one.wait(120), other.wait(120)) == (0, 1)
    command = [sys.executable, "-m", "workflows.steps.translate", str(onwards)]
    assert subprocess.run(command, cwd=ROOT, check=False, capture_output=True).returncode == 0

    after = read_model(outputs(onwards)["model.safetensors"])
    assert forest_of(after).num_trees == 20
    assert failed(astray).cause.code is CauseCode.UPDATE_INCOMPATIBLE
    assert "its header" in failed(astray).cause.detail
    signature = msgspec.json.decode((onwards / "signature.json").read_bytes(), type=ModelSignature)
    assert signature.framework == "xgboost"
    assert signature.parity is not None
    assert signature.parity.labels_equal
    assert signature.parity.max_abs_difference < 1e-5
    # What is handed out is a model of XGBoost's own.
    booster = xgb.Booster({"nthread": 1}, model_file=bytearray(after["trees"].tobytes()))
    assert booster.predict(xgb.DMatrix(np.zeros((1, 30)), nthread=1)).shape == (1,)
