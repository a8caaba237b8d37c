"""Programs in XGBoost: an ensemble of boosted trees, to which each site adds its own.

``build()`` returns parameters of XGBoost as a dictionary, and nothing else of the developer's runs
within the boosting. ``local.epochs`` are boosting rounds; the optimiser and the batch size of the
job mean nothing here. A site's update is its new trees alone. What all sites must agree on lies in
the empty ensemble that training starts from: objective, features, classes, and the base score,
which XGBoost would otherwise take from the labels of one site (0.5 unless ``build()`` sets it).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import xgboost as xgb

from strategies import ClientHalf, Parameters
from strategies.forest import (
    MOST_DEPTH,
    MOST_PARALLEL,
    ForestInvalid,
    ValueTooLarge,
    content_of,
    layer_of,
    read_forest,
    read_growth,
)
from workflows.capabilities import ProgramFacts
from workflows.causes import CauseCode
from workflows.data.examples import Examples
from workflows.job import Local
from workflows.trainers.border import (
    Program,
    Shape,
    arguments_of_build,
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

SETTABLE: Final = frozenset(
    (
        *("objective", "base_score", "scale_pos_weight"),
        *("eta", "learning_rate", "num_parallel_tree", "max_bin"),
        *("max_depth", "min_child_weight", "max_delta_step", "gamma", "min_split_loss"),
        *("lambda", "reg_lambda", "alpha", "reg_alpha", "subsample"),
        *("colsample_bytree", "colsample_bylevel", "colsample_bynode"),
    )
)
FIXED: Final[Mapping[str, Any]] = {
    "booster": "gbtree",
    "tree_method": "hist",
    "device": "cpu",
    "nthread": 1,  # sums of threads are in no fixed order
    "verbosity": 0,
}
DEFAULT_DEPTH: Final = 6
OPSET: Final = 17
TREE_BYTES: Final = 512
NODE_BYTES: Final = 128
"""Most text that a tree takes beside its nodes, and each node (10 numbers of at most 15 digits,
sign, exponent and comma among them)."""


class XgboostTrainer:
    """A loaded XGBoost program."""

    def __init__(
        self, program: Program, config: Mapping[str, Any], seed: int, shape: Shape
    ) -> None:
        if not shape.features:
            raise refusal(
                "what trees may ask for comes from the data; state `example_features` and "
                "`classes` in program.toml so that it can be tried without"
            )
        self._program = program
        self._shape = shape
        self._seed = seed
        start = time.perf_counter()
        seed_everything(seed)
        built = program.call("build", **arguments_of_build(program, config, shape))
        self._params = _params_of(built, shape.classes)
        xgb.set_config(nthread=1)  # for reading a model, which heeds no parameter: 54 ms, else 2
        self._empty = read_forest(self._empty_ensemble())
        self._loaded: tuple[bytes, xgb.Booster] | None = None
        self._import_s = program.import_s + time.perf_counter() - start

    @property
    def facts(self) -> ProgramFacts:
        num_nodes = 2 ** (self._params["max_depth"] + 1) - 1
        tree_bytes = TREE_BYTES + NODE_BYTES * num_nodes
        return ProgramFacts(
            framework="xgboost",
            parameters=parameters_of(self.initial()),
            features=self._shape.features,
            metrics=tuple(self._program.manifest.metrics),
            own_train=True,
            uses_hooks=False,
            growth_bytes=self._empty.trees_per_round * tree_bytes,
            import_s=self._import_s,
            summary=self._program.manifest.summary,
        )

    def initial(self) -> dict[str, np.ndarray]:
        return dict(layer_of(self._empty))

    def train(
        self, params: Parameters, examples: Examples, local: Local, half: ClientHalf, seed: int
    ) -> Trained:
        if half.reaches_in or half.wants_gradient or half.scalars:
            raise refusal("trees have no gradients or steps to tell of; use xgb-bagging")
        content = content_of(params)
        booster = self._booster(content, seed)
        data = self._table(examples.x, examples.y)
        first = booster.num_boosted_rounds()
        with developer_code("training", self._program.folder):
            for number in range(first, first + local.epochs):
                booster.update(data, number)
            grown = bytes(booster[first:].save_raw("json"))
        try:
            growth = read_growth(grown, read_forest(content), local.epochs)
        except ValueTooLarge as error:
            raise refusal(f"after training, {error}", CauseCode.UPDATE_NOT_FINITE) from error
        except ForestInvalid as error:
            raise refusal(f"after training, {error}", CauseCode.UPDATE_INCOMPATIBLE) from error
        loss = _loss(_margins(booster, data), examples.y, self._shape.classes)
        return Trained(dict(layer_of(growth)), len(examples), loss)

    def evaluate(self, params: Parameters, examples: Examples, metrics: Sequence[str]) -> Measured:
        require_metrics(self._program, metrics)
        booster, data = self._open(params), self._table(examples.x)
        declared = [name for name in metrics if name in self._program.manifest.metrics]
        seed_everything(self._seed)
        batch = (np.array(examples.x), np.array(examples.y))
        values = metrics_of_program(self._program, booster, batch, declared)
        margins, y = _margins(booster, data), np.array(examples.y)
        wanted = [name for name in metrics if name not in declared and name != "loss"]
        values |= scores_of(margins, y, wanted)
        if "loss" in metrics and "loss" not in declared:
            values["loss"] = _loss(margins, y, self._shape.classes)
        return Measured(values, len(y))

    def export(self, params: Parameters, samples: np.ndarray, folder: Path) -> None:
        from translation import TranslationError
        from translation.from_forest import to_onnx

        table = np.array(samples, np.float32).reshape(len(samples), -1)
        answers = self._open(params).predict(self._table(table)).reshape(len(table), -1)
        if self._shape.classes and answers.shape[1] == 1:
            answers = np.concatenate([1 - answers, answers], axis=1)
        try:
            to_onnx(read_forest(content_of(params)), folder / "model.onnx", OPSET)
        except TranslationError as error:
            raise refusal(str(error), CauseCode.TRANSLATION_FAILED) from error
        np.savez(folder / "reference.npz", inputs=table, outputs=answers)

    def _empty_ensemble(self) -> bytes:
        """The ensemble of no trees, with all that its trees must agree on."""
        num_features = int(np.prod(self._shape.features))
        try:
            nothing = self._table(np.zeros((1, num_features)), np.zeros(1))
            booster = xgb.train(self._params, nothing, num_boost_round=0)
            return bytes(booster.save_raw("json"))
        except (xgb.core.XGBoostError, TypeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0].rpartition("Check failed: ")[2]
            raise refusal(f"XGBoost does not take what build() returned: {reason}") from error

    def _booster(self, content: bytes, seed: int) -> xgb.Booster:
        """An ensemble that can be boosted."""
        taken = {name: v for name, v in self._params.items() if name != "base_score"}
        seeded = taken | {"seed": seed % 2**31}
        return xgb.Booster(seeded, model_file=bytearray(content))

    def _open(self, params: Parameters) -> xgb.Booster:
        """An ensemble to be asked; the last one stays open, for it is asked site by site."""
        content = content_of(params)
        if self._loaded is None or self._loaded[0] != content:
            self._loaded = (content, self._booster(content, self._seed))
        return self._loaded[1]

    def _table(self, x: np.ndarray, y: np.ndarray | None = None) -> xgb.DMatrix:
        rows = np.array(x, np.float32).reshape(len(x), -1)
        return xgb.DMatrix(rows, None if y is None else np.array(y, np.float32), nthread=1)


def _params_of(built: object, classes: int) -> dict[str, Any]:
    """What XGBoost is given.

    Raises:
        ProgramError: ``build`` returned something else, or sets what is not the developer's.
    """
    if not isinstance(built, Mapping):
        raise refusal(
            f"build() returned {type(built).__name__}; it must return parameters of XGBoost as a "
            "dict, such as {'eta': 0.3, 'max_depth': 4}"
        )
    if unknown := sorted(str(name) for name in built.keys() - SETTABLE):
        raise refusal(
            f"build() sets {', '.join(unknown)}; it may set {', '.join(sorted(SETTABLE))}"
        )
    usual = {0: "reg:squarederror", 2: "binary:logistic"}.get(classes, "multi:softprob")
    params = {"objective": usual, "base_score": 0.5, "max_depth": DEFAULT_DEPTH, **built, **FIXED}
    fitting = {usual, "multi:softprob"} if classes else {usual}
    if params["objective"] not in fitting:
        known = " or ".join(sorted(fitting))
        raise refusal(
            f"build() sets the objective {params['objective']}; the data has {classes} classes "
            f"and needs {known}"
        )
    _require_count(params, "max_depth", MOST_DEPTH)
    _require_count({"num_parallel_tree": 1, **params}, "num_parallel_tree", MOST_PARALLEL)
    if params["objective"] == "multi:softprob":
        params["num_class"] = classes
    return params


def _require_count(params: Mapping[str, Any], name: str, most: int) -> None:
    value = params[name]
    if not isinstance(value, int) or not 1 <= value <= most:
        raise refusal(f"build() sets {name} to {value!r}; it must be an integer from 1 to {most}")


def _margins(booster: xgb.Booster, data: xgb.DMatrix) -> np.ndarray:
    """Sums of leaves, a row per example, in float64."""
    return np.asarray(booster.predict(data, output_margin=True), np.float64)


def _loss(margins: np.ndarray, y: np.ndarray, classes: int) -> float:
    """Mean logarithmic loss in nats, or mean squared error."""
    rows = margins.reshape(len(y), -1)
    if not classes:
        return require_number(np.mean((rows[:, 0] - y) ** 2), "loss")
    if rows.shape[1] == 1:
        rows = np.concatenate([np.zeros_like(rows), rows], axis=1)
    top = rows.max(axis=1)
    whole = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
    return require_number(np.mean(whole - rows[np.arange(len(y)), y]), "loss")
