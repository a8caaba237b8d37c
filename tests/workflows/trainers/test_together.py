"""Small sites trained together: each as if alone, but for last bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from strategies import ClientHalf
from workflows.data.examples import Examples
from workflows.groups import GROUP, groups_of
from workflows.job import Local
from workflows.trainers import ProgramError, load_trainer
from workflows.trainers.torch_trainer import TorchTrainer

MLP = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
"""


def trainer(folder: Path, code: str = MLP) -> TorchTrainer:
    folder.mkdir(exist_ok=True)
    (folder / "program.py").write_text(code)
    (folder / "program.toml").write_text('name = "own"\nframework = "torch"\n')
    made = load_trainer(folder, {}, 3, (6,), 3)
    assert isinstance(made, TorchTrainer)
    return made


def sites(num_sites: int, num_examples: int = 11) -> list[Examples]:
    rng = np.random.default_rng(0)
    return [
        Examples(
            rng.normal(size=(num_examples, 6)).astype(np.float32),
            rng.integers(3, size=num_examples),
        )
        for _ in range(num_sites)
    ]


LOCALS: dict[str, tuple[dict[str, Any], ClientHalf]] = {
    "plain": ({"epochs": 2, "optimizer": {"kind": "sgd", "lr": 0.1}}, ClientHalf()),
    "momentum and decay": (
        {
            "epochs": 3,
            "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        },
        ClientHalf(),
    ),
    "adam": ({"epochs": 2, "optimizer": {"kind": "adam", "weight_decay": 0.1}}, ClientHalf()),
    "held near and counted": (
        {"epochs": 2, "optimizer": {"kind": "sgd", "lr": 0.1}},
        ClientHalf(proximal_mu=0.5, scalars=("steps", "rate", "normaliser")),
    ),
}


@pytest.mark.parametrize(("fields", "half"), LOCALS.values(), ids=LOCALS)
def test_together_is_as_alone_but_for_last_bits(
    tmp_path: Path, fields: dict[str, Any], half: ClientHalf
) -> None:
    made, parts = trainer(tmp_path), sites(5)
    local = msgspec.convert({"batch_size": 5} | fields, Local)
    params, seeds = made.initial(), [7, 8, 9, 10, 11]
    before = [part.x.copy() for part in parts]

    together = made.train_together(params, parts, local, half, seeds)

    for part, seed, one in zip(parts, seeds, together, strict=True):
        alone = made.train(params, part, local, half, seed)
        assert not isinstance(one, ProgramError)
        assert one.delta.keys() == alone.delta.keys()
        for name, x in alone.delta.items():
            np.testing.assert_allclose(one.delta[name], x, atol=2e-6)
            assert one.delta[name].dtype == x.dtype
        assert one.loss == pytest.approx(alone.loss, abs=1e-6)
        assert (one.scalars, one.trainable) == (alone.scalars, alone.trainable)
        assert one.num_examples == alone.num_examples
    again = made.train_together(params, parts, local, half, seeds)
    for one, other in zip(together, again, strict=True):
        assert not isinstance(one, ProgramError)
        assert not isinstance(other, ProgramError)
        assert all((one.delta[name] == x).all() for name, x in other.delta.items())
    assert all((part.x == x).all() for part, x in zip(parts, before, strict=True))


TIED = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = nn.Linear(6, 6)
        self.b.weight = self.a.weight
        self.out = nn.Linear(6, 3)
        self.out.bias.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.out(self.b(torch.relu(self.a(x))))

def build():
    return Tied()

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
"""


def test_shared_frozen_and_unused_layers_are_as_alone(tmp_path: Path) -> None:
    made, parts = trainer(tmp_path, TIED), sites(3)
    local = Local(batch_size=4)

    together = made.train_together(made.initial(), parts, local, ClientHalf(), [1, 2, 3])

    for part, seed, one in zip(parts, [1, 2, 3], together, strict=True):
        alone = made.train(made.initial(), part, local, ClientHalf(), seed)
        assert not isinstance(one, ProgramError)
        assert one.delta.keys() == alone.delta.keys()
        for name, x in alone.delta.items():
            np.testing.assert_allclose(one.delta[name], x, atol=2e-6)


def test_a_site_whose_training_diverges_is_lost_alone(tmp_path: Path) -> None:
    made, parts = trainer(tmp_path), sites(3)
    parts[1].x[0] = np.inf

    first, second, third = made.train_together(
        made.initial(), parts, Local(), ClientHalf(), [1, 2, 3]
    )

    assert isinstance(second, ProgramError)
    assert "NaN or infinity" in second.cause.detail
    assert not isinstance(first, ProgramError)
    assert not isinstance(third, ProgramError)


CANNOT = {
    "running statistics": (
        MLP.replace("nn.Tanh()", "nn.BatchNorm1d(5)"),
        "is a buffer that no gradient moves",
    ),
    "random layers": (MLP.replace("nn.Tanh()", "nn.Dropout(0.5)"), "randomness"),
    "a path that goes by the data": (
        MLP.replace(
            "    return nn.functional", "    if batch[0].sum() > 0: pass\n    return nn.functional"
        ),
        "data-dependent",
    ),
    "a loss of many numbers": (
        MLP.replace("batch[1])", "batch[1], reduction='none')"),
        "shape",
    ),
}


@pytest.mark.parametrize(("code", "problem"), CANNOT.values(), ids=CANNOT)
def test_a_program_that_cannot_be_stacked_says_so_with_a_mend(
    tmp_path: Path, code: str, problem: str
) -> None:
    made = trainer(tmp_path, code)

    with pytest.raises(ProgramError) as refusal:
        made.train_together(made.initial(), sites(3), Local(), ClientHalf(), [1, 2, 3])

    assert problem in refusal.value.cause.detail
    assert "set runtime.vectorized to false" in refusal.value.cause.detail


def test_groups_are_of_sites_with_as_many_examples() -> None:
    examples = {f"site-{k:03}": 1 + (k > 40) for k in range(100)}

    groups = list(groups_of(examples, examples.__getitem__))

    assert [site for group in groups for site in group] == list(examples)
    assert [len(group) for group in groups] == [GROUP, 41 - GROUP, GROUP, 59 - GROUP]
    assert all(len({examples[site] for site in group}) == 1 for group in groups)
