"""scikit-learn's linear models become ONNX models that answer the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Perceptron,
    SGDClassifier,
    SGDRegressor,
)

from translation import Untranslatable
from translation.from_sklearn import to_onnx
from translation.inference import OnnxModel
from translation.parity import check_parity
from translation.signature import Signature, TensorSpec, read_signature

X = np.random.default_rng(2).normal(size=(60, 5)).astype(np.float32)
TARGETS = {
    "three": (X @ np.random.default_rng(3).normal(size=(5, 3))).argmax(axis=1),
    "two": (X[:, 0] > 0).astype(np.int64),
    "real": X @ np.arange(5.0),
}


@pytest.mark.parametrize(
    ("estimator", "target"),
    [
        (LogisticRegression(), "three"),
        (LogisticRegression(), "two"),
        (SGDClassifier(random_state=1), "three"),
        (SGDClassifier(random_state=1), "two"),
        (SGDClassifier(loss="log_loss", random_state=1), "three"),
        (SGDClassifier(loss="log_loss", random_state=1), "two"),
        (Perceptron(random_state=1), "three"),
    ],
    ids=lambda value: getattr(value, "loss", None) or str(value).partition("(")[0],
)
def test_a_classifier_gives_the_same_classes_and_scores(
    estimator: Any, target: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    estimator.fit(X, TARGETS[target])
    num_classes = {"three": 3, "two": 2}[target]

    reference = to_onnx(estimator, X, path, 17)

    assert reference.shape == (60, num_classes)
    assert np.array_equal(reference.argmax(axis=1), estimator.predict(X))
    assert np.array_equal(OnnxModel(path).answers(X, 60)["label"], estimator.predict(X))
    assert check_parity(path, X, reference, atol=1e-4, rtol=1e-4).labels_equal is True
    assert read_signature(path) == Signature(
        inputs=(TensorSpec(name="input", shape=("batch", 5), dtype="float32"),),
        outputs=(
            TensorSpec(name="label", shape=("batch",), dtype="int64"),
            TensorSpec(name="output", shape=("batch", num_classes), dtype="float32"),
        ),
        opset=17,
    )


@pytest.mark.parametrize("estimator", [LinearRegression(), SGDRegressor(random_state=1)], ids=str)
def test_a_regressor_gives_the_same_values(estimator: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    estimator.fit(X, TARGETS["real"])

    reference = to_onnx(estimator, X, path, 17)

    assert np.array_equal(reference[:, 0], estimator.predict(X))
    parity = check_parity(path, X, reference, atol=1e-4, rtol=1e-4)
    assert parity.labels_equal is None
    assert parity.max_abs_difference < 1e-4
    [output] = read_signature(path).outputs
    assert output == TensorSpec(name="output", shape=("batch", 1), dtype="float32")


def test_an_estimator_of_the_developers_own_is_refused(tmp_path: Path) -> None:
    class Constant(BaseEstimator):  # type: ignore[misc]
        def predict(self, x: np.ndarray) -> np.ndarray:
            return np.zeros(len(x))

    with pytest.raises(Untranslatable, match="Constant"):
        to_onnx(Constant(), X, tmp_path / "model.onnx", 17)

    assert not list(tmp_path.iterdir())
