"""Programs in scikit-learn: its linear models, whose state is a coefficient array and an intercept.

``local.epochs`` are passes over the data for SGDClassifier, SGDRegressor and Perceptron
(``partial_fit``, one example after another at the constant rate of the job, so ``batch_size`` has
no meaning for them) and steps of L-BFGS from the global model for LogisticRegression. Every site
knows all classes, whether it has examples of them or not. The loop is scikit-learn's own, so no
strategy can reach into it: the facts say ``own_train``, and admission refuses what would need to.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Perceptron, SGDClassifier, SGDRegressor
from sklearn.metrics import log_loss

from strategies import ClientHalf, Parameters
from workflows.capabilities import ProgramFacts
from workflows.causes import CauseCode
from workflows.data.examples import Examples
from workflows.job import Local, Sgd
from workflows.trainers.border import (
    Program,
    Shape,
    arguments_of_build,
    delta_of,
    developer_code,
    metrics_of_program,
    parameters_of,
    refusal,
    require_metrics,
    require_number,
    seed_everything,
)
from workflows.trainers.scores import scores_of
from workflows.trainers.trainer import Measured, Trained

INCREMENTAL: Final = (SGDClassifier, SGDRegressor, Perceptron)
SUPPORTED: Final = (*INCREMENTAL, LogisticRegression)
OPSET: Final = 17


class SklearnTrainer:
    """A loaded scikit-learn program."""

    def __init__(
        self, program: Program, config: Mapping[str, Any], seed: int, shape: Shape
    ) -> None:
        if not shape.features:
            raise refusal(
                "the size of a linear model comes from the data; state `example_features` and "
                "`classes` in program.toml so that it can be tried without"
            )
        if program.manifest.trainable != ("*",):
            raise refusal(
                "a linear model of scikit-learn travels whole; leave `trainable` out of "
                "program.toml"
            )
        self._program = program
        self._seed = seed
        self._shape = shape
        start = time.perf_counter()
        seed_everything(seed)
        self._pristine = program.call("build", **arguments_of_build(program, config, shape))
        self._import_s = program.import_s + time.perf_counter() - start
        _require_supported(self._pristine, shape.classes)
        num_outputs = shape.classes if shape.classes > 2 else 1
        num_features = int(np.prod(shape.features))
        per_class = (num_outputs, num_features) if shape.classes else (num_features,)
        self._initial = {"coef": np.zeros(per_class), "intercept": np.zeros(num_outputs)}

    @property
    def facts(self) -> ProgramFacts:
        return ProgramFacts(
            framework="sklearn",
            parameters=parameters_of(self._initial),
            features=self._shape.features,
            metrics=tuple(self._program.manifest.metrics),
            own_train=True,
            uses_hooks=False,
            import_s=self._import_s,
            summary=self._program.manifest.summary,
        )

    def initial(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._initial.items()}

    def train(
        self, params: Parameters, examples: Examples, local: Local, half: ClientHalf, seed: int
    ) -> Trained:
        if half.reaches_in or half.wants_gradient:
            raise refusal(
                "scikit-learn's own loop cannot add a proximal term or a correction, nor tell its "
                "steps; use another strategy"
            )
        told = self._loss_before(params, examples, half)
        seed_everything(seed)
        estimator = self._with(params)
        x, y = _table(examples.x), np.array(examples.y)
        with developer_code("training", self._program.folder), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # an epoch is not meant to converge
            if isinstance(estimator, LogisticRegression):
                estimator.set_params(
                    warm_start=True, max_iter=local.epochs, random_state=seed % 2**32
                )
                self._fit_all_classes(estimator, x, y)
            else:
                _set_rate(estimator, local)
                order = np.random.default_rng(seed)
                for _ in range(local.epochs):
                    rows = order.permutation(len(y))
                    estimator.partial_fit(x[rows], y[rows])
        after = {"coef": estimator.coef_, "intercept": estimator.intercept_}
        loss = self._loss(estimator, x, y)
        return Trained(delta_of(params, after), len(y), loss, told, trainable=frozenset(after))

    def evaluate(self, params: Parameters, examples: Examples, metrics: Sequence[str]) -> Measured:
        require_metrics(self._program, metrics)
        seed_everything(self._seed)
        estimator = self._with(params)
        x, y = _table(examples.x), np.array(examples.y)
        declared = [name for name in metrics if name in self._program.manifest.metrics]
        values = metrics_of_program(self._program, estimator, (x, y), declared)
        wanted = [name for name in metrics if name not in declared and name != "loss"]
        if wanted:
            is_classes = is_classifier(estimator)
            scores = estimator.decision_function(x) if is_classes else estimator.predict(x)
            values |= scores_of(np.asarray(scores), y, wanted)
        loss = self._loss(estimator, x, y)
        if "loss" in metrics and "loss" not in declared and loss is not None:
            values["loss"] = loss
        return Measured(values, len(y))

    def export(self, params: Parameters, samples: np.ndarray, folder: Path) -> None:
        from translation import TranslationError
        from translation.from_sklearn import to_onnx

        table = _table(samples).astype(np.float32)  # which is what the ONNX form takes
        try:
            outputs = to_onnx(self._with(params), table, folder / "model.onnx", OPSET)
        except TranslationError as error:
            raise refusal(str(error), CauseCode.TRANSLATION_FAILED) from error
        np.savez(folder / "reference.npz", inputs=table, outputs=outputs)

    def _loss_before(
        self, params: Parameters, examples: Examples, half: ClientHalf
    ) -> dict[str, float]:
        """The global model's loss on what the site trains on, if the strategy asks for it."""
        if "loss_before" not in half.scalars:
            return {}
        loss = self._loss(self._with(params), _table(examples.x), np.array(examples.y))
        if loss is None:
            raise refusal(
                "the strategy needs the loss of the global model, and this estimator gives no "
                "probabilities; use loss='log_loss' or LogisticRegression"
            )
        return {"loss_before": loss}

    def _with(self, params: Parameters) -> Any:  # noqa: ANN401 - scikit-learn has no types
        """A fresh estimator that holds ``params``, as if it had been fitted."""
        estimator = clone(self._pristine)
        estimator.coef_ = np.array(params["coef"], np.float64)
        estimator.intercept_ = np.array(params["intercept"], np.float64)
        estimator.n_features_in_ = estimator.coef_.shape[-1]
        if self._shape.classes:
            estimator.classes_ = np.arange(self._shape.classes)
        if isinstance(estimator, INCREMENTAL):
            estimator.t_ = 1.0  # steps so far, which a constant rate does not look at
        return estimator

    def _fit_all_classes(self, estimator: LogisticRegression, x: np.ndarray, y: np.ndarray) -> None:
        """Fit with every class present: one more example of each, of no weight."""
        classes = np.arange(self._shape.classes)
        estimator.fit(
            np.concatenate([x, np.zeros((len(classes), x.shape[1]), x.dtype)]),
            np.concatenate([y, classes]),
            sample_weight=np.concatenate([np.ones(len(y)), np.zeros(len(classes))]),
        )

    def _loss(self, estimator: Any, x: np.ndarray, y: np.ndarray) -> float | None:  # noqa: ANN401
        """Mean logarithmic loss or squared error; None where it gives no probabilities."""
        if not self._shape.classes:
            return require_number(np.mean((estimator.predict(x) - y) ** 2), "loss")
        if not hasattr(estimator, "predict_proba"):
            return None
        labels = np.arange(self._shape.classes)
        return require_number(log_loss(y, estimator.predict_proba(x), labels=labels), "loss")


def _require_supported(estimator: object, classes: int) -> None:
    if not isinstance(estimator, SUPPORTED):
        names = ", ".join(sorted(kind.__name__ for kind in SUPPORTED))
        raise refusal(f"build() returned {type(estimator).__name__}; it must return one of {names}")
    if is_classifier(estimator) != bool(classes):
        wanted = "a classifier" if classes else "a regressor"
        raise refusal(
            f"build() returned {type(estimator).__name__}, but the data has {classes} classes and "
            f"needs {wanted}"
        )
    if not estimator.get_params().get("fit_intercept", True):
        raise refusal("build() must leave fit_intercept=True, for the intercept travels too")


def _set_rate(estimator: Any, local: Local) -> None:  # noqa: ANN401 - scikit-learn has no types
    optimizer = local.optimizer
    if not isinstance(optimizer, Sgd) or optimizer.momentum or optimizer.weight_decay:
        raise refusal(
            "scikit-learn trains by plain SGD: set local.optimizer to {kind: sgd, lr: ...} and any "
            "decay as `alpha` of the estimator"
        )
    rate: dict[str, Any] = {"eta0": optimizer.lr}
    if not isinstance(estimator, Perceptron):  # whose rate is constant anyway
        rate["learning_rate"] = "constant"
    estimator.set_params(**rate, shuffle=False)


def _table(x: np.ndarray) -> np.ndarray:
    """Features as rows of numbers, copied."""
    return np.array(x, np.float64).reshape(len(x), -1)
