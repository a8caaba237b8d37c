"""A scikit-learn estimator as ONNX, through ``skl2onnx``; imported only where sklearn may be."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType
from sklearn.base import BaseEstimator, is_classifier

from translation import Untranslatable
from translation.signature import BATCH, INPUT, LABEL, OUTPUT


def to_onnx(estimator: BaseEstimator, samples: np.ndarray, path: Path, opset: int) -> np.ndarray:
    """Write a fitted ``estimator`` to ``path`` and return what it answers to ``samples``.

    A classifier gives ``label`` and ``output``: probabilities if it has any, else scores, with a
    column for each class. A regressor gives ``output`` with one column.

    Args:
        estimator: Left as it is.
        samples: Table of float32, shaped (samples, features), at least one row.
        path: One file.
        opset: Version of the operator set.

    Raises:
        Untranslatable: There is no converter for it.
    """
    options: dict[str, Any] = {}
    outputs: list[tuple[str, Any]] = []
    if is_classifier(estimator):
        options = {"zipmap": False}
        if not hasattr(estimator, "predict_proba"):
            options["raw_scores"] = True
        outputs = [(LABEL, Int64TensorType([None]))]
    answers = _answers(estimator, samples)
    outputs.append((OUTPUT, FloatTensorType([None, answers.shape[1]])))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = convert_sklearn(
                estimator,
                initial_types=[(INPUT, FloatTensorType([None, samples.shape[1]]))],
                final_types=outputs,
                options={id(estimator): options} if options else None,
                target_opset={"": opset, "ai.onnx.ml": 1},
            )
    except Exception as error:  # it raises whatever its converters raise
        detail = " ".join(str(error).split())[:500]
        raise Untranslatable(f"the estimator has no ONNX form: {detail}") from error
    _mend(model, opset)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return answers


def _answers(estimator: Any, samples: np.ndarray) -> np.ndarray:  # noqa: ANN401 - no types
    if not is_classifier(estimator):
        return np.asarray(estimator.predict(samples)).reshape(len(samples), -1)
    if hasattr(estimator, "predict_proba"):
        return np.asarray(estimator.predict_proba(samples))
    scores = np.asarray(estimator.decision_function(samples))
    return scores if scores.ndim == 2 else np.stack([-scores, scores], axis=1)


def _mend(model: Any, opset: int) -> None:  # noqa: ANN401 - onnx has no types
    """Name the batch axis and state the operator set once.

    skl2onnx states the oldest version in which its nodes mean the same, or states one twice; the
    nodes are those of ``opset`` either way.
    """
    imports = {entry.domain: entry.version for entry in model.opset_import} | {"": opset}
    del model.opset_import[:]
    for domain, version in sorted(imports.items()):
        model.opset_import.add(domain=domain, version=version)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
