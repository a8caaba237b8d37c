from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xgboost as xgb

from strategies.forest import read_forest
from tests.strategies.forests import altered, ensemble, grown, stump
from translation import Untranslatable
from translation.from_forest import to_onnx
from translation.inference import OnnxModel
from translation.parity import check_parity
from translation.signature import OUTPUT, TensorSpec, read_signature

POINTS = np.random.default_rng(4).normal(size=(40, 2)).astype(np.float32)
SINGLE_LEAF = altered(
    ensemble(stump(0.0, 0.0, 0.0)),
    lambda d: d["learner"]["gradient_booster"]["model"]["trees"][0].update(
        base_weights=[0.5],
        default_left=[0],
        left_children=[-1],
        loss_changes=[0.0],
        parents=[2147483647],
        right_children=[-1],
        split_conditions=[0.5],
        split_indices=[0],
        split_type=[0],
        sum_hessian=[1.0],
        tree_param={**stump(0, 0, 0)["tree_param"], "num_nodes": "1"},
    ),
)


def answers(path: Path, points: np.ndarray) -> np.ndarray:
    return OnnxModel(path).answers(points, len(points))[OUTPUT]


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        (grown(1, rounds=5, depth=5), 2),
        (grown(2, classes=3, rounds=4), 3),
        (json.dumps(ensemble()).encode(), 2),
        (json.dumps(ensemble(classes=3)).encode(), 3),
        (json.dumps(SINGLE_LEAF).encode(), 2),
    ],
    ids=["two classes", "three classes", "no trees", "no trees of classes", "a single leaf"],
)
def test_it_answers_as_xgboost_does(tmp_path: Path, content: bytes, columns: int) -> None:
    booster = xgb.Booster({"nthread": 1}, model_file=bytearray(content))
    expected = booster.predict(xgb.DMatrix(POINTS, nthread=1)).reshape(len(POINTS), -1)
    if columns == 2:
        expected = np.concatenate([1 - expected, expected], axis=1)
    path = tmp_path / "model.onnx"

    to_onnx(read_forest(content), path, 17)

    parity = check_parity(path, POINTS, expected, atol=1e-6, rtol=1e-6)
    assert parity.labels_equal
    signature = read_signature(path)
    assert signature.outputs == (
        TensorSpec(name=OUTPUT, shape=("batch", columns), dtype="float32"),
    )
    assert signature.opset == 17


def test_what_lies_on_a_threshold_or_is_missing_goes_where_xgboost_sends_it(
    tmp_path: Path,
) -> None:
    left_if_missing = altered(
        ensemble(stump(0.25, -1.0, 2.0)),
        lambda d: d["learner"]["gradient_booster"]["model"]["trees"][0].update(
            default_left=[1, 0, 0]
        ),
    )
    points = np.array([[0.25, 0], [np.nextafter(np.float32(0.25), 0), 0], [np.nan, 0]], np.float32)
    path = tmp_path / "model.onnx"

    to_onnx(read_forest(json.dumps(left_if_missing).encode()), path, 17)

    second = answers(path, points)[:, 1]
    assert np.allclose(second, 1 / (1 + np.exp([-2.0, 1.0, 1.0])), atol=1e-6)


def test_a_value_is_the_sum_of_its_leaves_and_the_base_score(tmp_path: Path) -> None:
    values = altered(
        ensemble(stump(0.0, -100.0, 50.0), stump(1.0, 7.0, 9.0, feature=1)),
        lambda d: d["learner"].update(objective={"name": "reg:squarederror"}),
    )
    path = tmp_path / "model.onnx"

    to_onnx(read_forest(json.dumps(values).encode()), path, 17)

    points = np.array([[-1.0, 0.0], [1.0, 2.0]], np.float32)
    assert answers(path, points).tolist() == [[-92.5], [59.5]]


def test_an_objective_without_an_onnx_form_is_said(tmp_path: Path) -> None:
    other = altered(ensemble(), lambda d: d["learner"].update(objective={"name": "survival:cox"}))

    with pytest.raises(Untranslatable, match="survival:cox"):
        to_onnx(read_forest(json.dumps(other).encode()), tmp_path / "model.onnx", 17)


def test_the_same_ensemble_is_the_same_bytes(tmp_path: Path) -> None:
    forest = read_forest(grown(1, rounds=2))
    for name in ("a", "b"):
        to_onnx(forest, tmp_path / name, 17)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
