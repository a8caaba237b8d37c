"""Programs of which only named layers are trained and travel."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from strategies import ClientHalf
from tests.workflows.trainers.test_torch_trainer import as_bytes, cause_of, load, some_examples
from workflows.causes import CauseCode
from workflows.job import Local, Sgd
from workflows.program import ManifestInvalid, read_manifest
from workflows.trainers import ProgramError, Trainer, load_trainer

TWO = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x))

def build():
    return Two()

def loss(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)
"""
HEAD = 'trainable = ["head.*"]'
LOCAL = Local(epochs=3, batch_size=7, optimizer=Sgd(lr=0.5, momentum=0.9, weight_decay=0.1))
NO_HALF = ClientHalf()


def loss_of(trainer: Trainer, params: Mapping[str, np.ndarray]) -> float:
    return trainer.evaluate(params, some_examples(), ["loss"]).values["loss"]


def test_only_the_named_layers_travel(tmp_path: Path) -> None:
    trainer = load(tmp_path, TWO, toml=HEAD)

    trained = trainer.train(trainer.initial(), some_examples(), LOCAL, NO_HALF, 1)

    assert set(trainer.initial()) == set(trained.delta) == {"head.weight", "head.bias"}
    assert trained.trainable == {"head.weight", "head.bias"}
    assert [p.name for p in trainer.facts.parameters] == ["head.weight", "head.bias"]
    assert trainer.facts.frozen_bytes == 4 * (4 * 3 + 4 + 4 * 4)
    assert all(x.any() for x in trained.delta.values())


def test_the_steps_are_those_of_the_head_on_what_the_base_answers(tmp_path: Path) -> None:
    """Softmax regression by hand, on what the base, built under seed 0, gives in evaluation."""
    trainer, examples = load(tmp_path, TWO, toml=HEAD), some_examples()
    whole = Local(epochs=4, batch_size=len(examples), optimizer=Sgd(lr=0.3))
    origin = trainer.initial()
    torch.manual_seed(0)
    body = sys.modules["program"].build().body.eval()
    features = body(torch.from_numpy(examples.x)).detach().double().numpy()

    trained = trainer.train(origin, examples, whole, NO_HALF, 1)

    w, b = (origin[name].astype(float) for name in ("head.weight", "head.bias"))
    for _ in range(4):
        scores = features @ w.T + b
        p = np.exp(scores - scores.max(1, keepdims=True))
        residual = (p / p.sum(1, keepdims=True) - np.eye(2)[examples.y]) / len(examples)
        w, b = w - 0.3 * residual.T @ features, b - 0.3 * residual.sum(0)
    np.testing.assert_allclose(trained.delta["head.weight"], w - origin["head.weight"], atol=1e-5)
    np.testing.assert_allclose(trained.delta["head.bias"], b - origin["head.bias"], atol=1e-5)


def test_the_base_is_the_same_under_every_seed_and_the_start_is_not(tmp_path: Path) -> None:
    load(tmp_path, TWO, toml=HEAD)
    one, other = (load_trainer(tmp_path, {}, seed) for seed in (1, 2))

    given = one.initial()

    assert as_bytes(given) != as_bytes(other.initial())
    assert loss_of(one, given) == loss_of(other, given)


def test_training_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    trainer = load(tmp_path, TWO, toml=HEAD)
    given = trainer.initial()
    before = loss_of(trainer, given)

    trainer.train(given, some_examples(), LOCAL, NO_HALF, 1)

    assert loss_of(trainer, given) == before


def test_a_model_that_cannot_be_copied_keeps_its_base_too(tmp_path: Path) -> None:
    code = TWO.replace("        self.head =", "        self.lock = iter([])\n        self.head =")
    code = code.replace("iter([])", "__import__('threading').Lock()")
    built, copied = load(tmp_path / "b", code, toml=HEAD), load(tmp_path / "c", TWO, toml=HEAD)

    one, other = (t.train(t.initial(), some_examples(), LOCAL, NO_HALF, 1) for t in (built, copied))

    assert as_bytes(one.delta) == as_bytes(other.delta)


def test_all_layers_by_name_are_all_layers(tmp_path: Path) -> None:
    named = load(tmp_path / "named", TWO, toml='trainable = ["body.*", "head.*"]')
    usual = load(tmp_path / "usual", TWO)

    assert as_bytes(named.initial()) == as_bytes(usual.initial())
    one, other = (t.train(t.initial(), some_examples(), LOCAL, NO_HALF, 1) for t in (named, usual))
    assert as_bytes(one.delta) == as_bytes(other.delta)
    assert named.facts.frozen_bytes == 0


def test_a_strategy_reaches_into_what_travels_alone(tmp_path: Path) -> None:
    trainer = load(tmp_path, TWO, toml=HEAD)
    origin = trainer.initial()
    correction = {name: np.full_like(x, 0.01) for name, x in origin.items()}
    half = ClientHalf(
        proximal_mu=0.5, correction=correction, wants_gradient=True, wants_gradients_only=True
    )

    trained = trainer.train(origin, some_examples(), LOCAL, half, 1)

    assert set(trained.gradient) == set(trained.delta) == set(origin)


TIED = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.other = nn.Linear(3, 3)
        self.other.weight = self.one.weight
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.other(self.one(x)))

def build():
    return Tied()

def loss(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)
"""


def test_a_layer_of_two_names_moves_if_one_of_them_is_named(tmp_path: Path) -> None:
    trainer = load(tmp_path, TIED, toml='trainable = ["one.weight", "head.*"]')

    trained = trainer.train(trainer.initial(), some_examples(), LOCAL, NO_HALF, 1)

    assert set(trained.delta) == {"one.weight", "head.weight", "head.bias"}
    assert trained.delta["one.weight"].any()
    assert trainer.facts.frozen_bytes == 4 * (3 + 3)


OWN = """

def train(model, data, config):
    {}
    torch.nn.functional.cross_entropy(model(data.x), data.y).backward()
    for weight in model.parameters():
        if weight.grad is not None:
            weight.data -= config.lr * weight.grad
"""


def test_a_loop_of_ones_own_trains_the_head(tmp_path: Path) -> None:
    trainer = load(tmp_path, TWO + OWN.format("pass"), toml=HEAD)

    trained = trainer.train(trainer.initial(), some_examples(), LOCAL, NO_HALF, 1)

    assert trained.delta["head.weight"].any()


@pytest.mark.parametrize(
    ("line", "layer"),
    [
        ("model.body[0].weight.data += 1", "body.0.weight"),
        ("model.train()", "body.1.running_mean"),
        ("model.body[0] = nn.Linear(3, 4, bias=False)", "body.0.bias"),
    ],
    ids=["a weight", "running statistics", "a layer that is gone"],
)
def test_a_loop_of_ones_own_that_changes_the_base_is_refused(
    tmp_path: Path, line: str, layer: str
) -> None:
    found, detail, _ = cause_of(tmp_path, TWO + OWN.format(line), toml=HEAD)

    assert found is CauseCode.PROGRAM_RAISED
    assert f"training changed layer `{layer}`" in detail


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('trainable = ["haed.*"]', ("haed.*", "head.bias")),
        ('trainable = ["head.*", "zzz"]', ("zzz", "body.0.bias")),
        ('trainable = ["head"]', ("names head,", "head.weight")),
    ],
    ids=["a slip", "nothing like it", "a module instead of its layers"],
)
def test_a_pattern_that_names_nothing_is_told_with_what_there_is(
    tmp_path: Path, toml: str, said: tuple[str, ...]
) -> None:
    found, detail, _ = cause_of(tmp_path, TWO, toml=toml)

    assert found is CauseCode.PROGRAM_RAISED
    assert all(word in detail for word in said)


def test_layers_that_no_gradient_can_move_teach_nothing(tmp_path: Path) -> None:
    _, detail, _ = cause_of(tmp_path, TWO, toml='trainable = ["body.1.running_*"]')

    assert "nothing can be learnt" in detail


@pytest.mark.parametrize("toml", ["trainable = []", 'trainable = [""]', 'trainable = "head.*"'])
def test_what_is_no_list_of_patterns_is_no_manifest(tmp_path: Path, toml: str) -> None:
    with pytest.raises(ProgramError):
        load(tmp_path, TWO, toml=toml)
    with pytest.raises(ManifestInvalid, match="trainable"):
        read_manifest(tmp_path)


def test_linear_models_of_scikit_learn_travel_whole(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "from sklearn.linear_model import SGDClassifier\n\ndef build():\n    return SGDClassifier()"
    )
    (tmp_path / "program.toml").write_text(
        'name = "p"\nframework = "sklearn"\ntrainable = ["coef"]\n'
    )

    with pytest.raises(ProgramError, match="travels whole"):
        load_trainer(tmp_path, {}, 7, features=(3,), classes=2)
