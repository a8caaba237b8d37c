from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.linear_model import LogisticRegression

from strategies import ClientHalf
from workflows.causes import CauseCode
from workflows.data.examples import Examples
from workflows.job import Adam, Local, Sgd
from workflows.trainers import ProgramError, Trainer, load_trainer

NO_HALF = ClientHalf()
LOADERS = {"iris": load_iris, "breast-cancer": load_breast_cancer, "diabetes": load_diabetes}


def load(folder: Path, expression: str, more: str = "", toml: str = "", **shape: Any) -> Trainer:
    folder.mkdir(exist_ok=True)
    code = f"from sklearn.linear_model import *\n\ndef build():\n    return {expression}\n{more}"
    (folder / "program.py").write_text(code)
    (folder / "program.toml").write_text(f'name = "p"\nframework = "sklearn"\n{toml}\n')
    return load_trainer(folder, {}, 7, **shape)


def some_examples(name: str) -> Examples:
    x, y = LOADERS[name](return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    is_real = name == "diabetes"
    y = (y - y.mean()) / y.std() if is_real else y
    return Examples(x.astype(np.float32), y.astype(np.float32 if is_real else np.int64))


def only(examples: Examples, rows: np.ndarray) -> Examples:
    return Examples(examples.x[rows], examples.y[rows])


def federate(trainer: Trainer, sites: list[Examples], local: Local) -> dict[str, np.ndarray]:
    """Plain averaging, ten rounds."""
    params = trainer.initial()
    total = sum(map(len, sites))
    for number in range(10):
        updates = [trainer.train(params, site, local, NO_HALF, number) for site in sites]
        params = {
            name: array + sum(u.delta[name] * (u.num_examples / total) for u in updates)
            for name, array in params.items()
        }
    return params


@pytest.mark.parametrize(
    ("expression", "name", "metric", "enough"),
    [
        ("SGDClassifier(loss='log_loss')", "iris", "accuracy", 0.85),
        ("SGDClassifier()", "breast-cancer", "auroc", 0.98),
        ("Perceptron()", "breast-cancer", "accuracy", 0.93),
        ("LogisticRegression()", "iris", "accuracy", 0.85),
        ("LogisticRegression()", "breast-cancer", "auroc", 0.98),
        ("SGDRegressor()", "diabetes", "mse", None),
    ],
)
def test_linear_models_learn_from_sites_that_lack_classes(
    tmp_path: Path, expression: str, name: str, metric: str, enough: float | None
) -> None:
    examples = some_examples(name)
    classes = 0 if name == "diabetes" else len(np.unique(examples.y))
    trainer = load(tmp_path, expression, features=examples.x.shape[1:], classes=classes)
    halves = [
        only(examples, examples.y <= np.median(examples.y)),
        only(examples, np.arange(len(examples)) % 2 == 0),
        only(examples, examples.y == examples.y.max()),
    ]

    epochs = 1 if expression.startswith("Logistic") else 3
    params = federate(trainer, halves, Local(epochs=epochs, optimizer=Sgd(lr=0.01)))

    measured = trainer.evaluate(params, examples, [metric]).values[metric]
    assert measured > enough if enough else measured < 0.8
    assert {a.dtype for a in params.values()} == {np.dtype(np.float64)}
    assert trainer.facts.own_train
    assert not trainer.facts.uses_hooks


def test_one_site_with_many_steps_finds_the_model_of_scikit_learn(tmp_path: Path) -> None:
    examples = some_examples("iris")
    trainer = load(tmp_path, "LogisticRegression(tol=1e-9)", features=(4,), classes=3)

    trained = trainer.train(trainer.initial(), examples, Local(epochs=1000), NO_HALF, 1)

    alone = LogisticRegression(tol=1e-9, max_iter=1000).fit(examples.x.astype(float), examples.y)
    np.testing.assert_allclose(trained.delta["coef"], alone.coef_, atol=1e-4)
    np.testing.assert_allclose(trained.delta["intercept"], alone.intercept_, atol=1e-4)


def test_training_goes_on_from_the_global_model(tmp_path: Path) -> None:
    examples = some_examples("iris")
    trainer = load(tmp_path, "LogisticRegression(tol=1e-9)", features=(4,), classes=3)
    zero = trainer.initial()
    first = trainer.train(zero, examples, Local(epochs=200), NO_HALF, 1)
    reached = {name: zero[name] + first.delta[name] for name in zero}

    more = trainer.train(reached, examples, Local(epochs=200), NO_HALF, 2)

    assert np.abs(first.delta["coef"]).max() > 0.5
    assert np.abs(more.delta["coef"]).max() < 1e-4


@pytest.mark.parametrize("expression", ["SGDClassifier()", "LogisticRegression()"])
def test_the_same_seed_gives_the_same_bits_whatever_was_trained_between(
    tmp_path: Path, expression: str
) -> None:
    examples = some_examples("iris")
    trainer = load(tmp_path, expression, features=(4,), classes=3)
    local = Local(epochs=3)

    first = trainer.train(trainer.initial(), examples, local, NO_HALF, 5)
    trainer.train(trainer.initial(), only(examples, examples.y > 0), local, NO_HALF, 6)
    again = trainer.train(trainer.initial(), examples, local, NO_HALF, 5)

    for name, array in first.delta.items():
        assert array.tobytes() == again.delta[name].tobytes()


def test_declared_metrics_come_from_the_program(tmp_path: Path) -> None:
    more = "\ndef evaluate(model, batch):\n    return {'share': float(batch[1].mean())}\n"
    examples = some_examples("breast-cancer")
    trainer = load(
        tmp_path,
        "SGDClassifier()",
        more,
        'metrics = {share = "maximize"}',
        features=(30,),
        classes=2,
    )

    values = trainer.evaluate(trainer.initial(), examples, ["share", "accuracy"]).values

    assert values["share"] == pytest.approx(examples.y.mean())
    assert values["accuracy"] == pytest.approx(1 - examples.y.mean())


def test_a_metric_that_is_not_defined_here_is_left_out(tmp_path: Path) -> None:
    examples = some_examples("breast-cancer")
    trainer = load(tmp_path, "SGDClassifier()", features=(30,), classes=2)

    measured = trainer.evaluate(
        trainer.initial(), only(examples, examples.y == 1), ["auroc", "accuracy"]
    )

    assert set(measured.values) == {"accuracy"}


@pytest.mark.parametrize(
    ("expression", "classes", "words"),
    [
        ("RidgeClassifier()", 3, "it must return one of LogisticRegression, Perceptron, SGD"),
        ("SGDRegressor()", 3, "needs a classifier"),
        ("SGDClassifier()", 0, "needs a regressor"),
        ("SGDClassifier(fit_intercept=False)", 3, "fit_intercept=True"),
    ],
)
def test_what_cannot_be_federated_is_refused(
    tmp_path: Path, expression: str, classes: int, words: str
) -> None:
    with pytest.raises(ProgramError, match=words):
        load(tmp_path, expression, features=(4,), classes=classes)


def test_a_linear_model_needs_the_size_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="example_features"):
        load(tmp_path, "SGDClassifier()")


@pytest.mark.parametrize(
    ("local", "half", "words"),
    [
        (Local(optimizer=Adam()), NO_HALF, "local.optimizer"),
        (Local(optimizer=Sgd(momentum=0.9)), NO_HALF, "local.optimizer"),
        (Local(), ClientHalf(proximal_mu=0.1), "proximal term"),
        (Local(), ClientHalf(correction={}), "correction"),
        (Local(), ClientHalf(scalars=("steps",)), "steps"),
    ],
)
def test_what_its_loop_cannot_do_is_refused_not_ignored(
    tmp_path: Path, local: Local, half: ClientHalf, words: str
) -> None:
    trainer = load(tmp_path, "SGDClassifier()", features=(4,), classes=3)

    with pytest.raises(ProgramError, match=words):
        trainer.train(trainer.initial(), some_examples("iris"), local, half, 1)


def test_a_model_of_nan_is_no_update(tmp_path: Path) -> None:
    broken = """
class Broken(SGDClassifier):
    def partial_fit(self, x, y):
        self.coef_[0, 0] = float("nan")
"""
    trainer = load(tmp_path, "Broken()", broken, features=(4,), classes=3)

    with pytest.raises(ProgramError, match="layer `coef` holds NaN") as caught:
        trainer.train(trainer.initial(), some_examples("iris"), Local(), NO_HALF, 1)

    assert caught.value.cause.code is CauseCode.UPDATE_NOT_FINITE
