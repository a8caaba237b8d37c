"""Adapters that travel, and a base that does not."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from strategies import ClientHalf
from workflows.data.examples import Examples
from workflows.job import Local, Sgd
from workflows.programs import builtin_folder
from workflows.trainers import Trainer, load_trainer

GENTLE = Local(epochs=2, batch_size=8, optimizer=Sgd(lr=0.05))
NO_HALF = ClientHalf()


def lora(config: Mapping[str, Any] | None = None) -> Trainer:
    return load_trainer(builtin_folder("digits-lora"), {"width": 32} | dict(config or {}), 3)


def digits(seed: int) -> Examples:
    rng = np.random.default_rng(seed)
    x = rng.random((40, 64)).astype(np.float32)
    return Examples(x, rng.integers(0, 10, 40))


@pytest.mark.parametrize("train_a", [True, False])
def test_the_adapters_and_the_head_travel_and_nothing_else(train_a: bool) -> None:
    trainer = lora({"train_a": train_a, "rank": 2})

    shapes = {name: x.shape for name, x in trainer.initial().items()}

    a = {"first.lora_a": (2, 64), "second.lora_a": (2, 32)} if train_a else {}
    assert shapes == a | {
        "first.lora_b": (32, 2),
        "second.lora_b": (32, 2),
        "head.weight": (10, 32),
        "head.bias": (10,),
    }
    base = (64 * 32 + 32) + (32 * 32 + 32) + (0 if train_a else 2 * (64 + 32))
    assert trainer.facts.frozen_bytes == 4 * base


def by_hand(params: Mapping[str, np.ndarray], x: np.ndarray, config: Mapping[str, Any]) -> Any:
    """Equation 3 of Hu et al., layer by layer, on the base that the program builds."""
    torch.manual_seed(0)
    model = sys.modules["program"].build(**config)
    base = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    everything = base | {name: value.astype(float) for name, value in params.items()}
    for layer in ("first", "second"):
        w, bias = everything[f"{layer}.base.weight"], everything[f"{layer}.base.bias"]
        a = everything[f"{layer}.lora_a" if config["train_a"] else f"{layer}.fixed_a"]
        adapter = config["alpha"] / config["rank"] * everything[f"{layer}.lora_b"] @ a
        x = np.maximum(x @ (w + adapter).T + bias, 0)
    return x @ everything["head.weight"].T + everything["head.bias"]


@pytest.mark.parametrize("train_a", [True, False])
def test_an_adapter_is_a_product_beside_the_base(train_a: bool) -> None:
    config = {"train_a": train_a, "rank": 2, "alpha": 6.0, "width": 32}
    trainer, examples = lora(config), digits(1)
    params = trainer.initial()
    assert not params["first.lora_b"].any()
    assert not params["second.lora_b"].any()

    trained = trainer.train(params, examples, GENTLE, NO_HALF, 1)

    after = {name: x + trained.delta[name] for name, x in params.items()}
    assert all(x.any() for x in trained.delta.values())
    scores = by_hand(after, examples.x.astype(float), config)
    picked = scores[np.arange(len(examples)), examples.y]
    expected = np.mean(np.log(np.exp(scores).sum(1)) - picked)
    found = trainer.evaluate(after, examples, ["loss"]).values["loss"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_onnx_form_has_the_base_and_answers_like_the_model(tmp_path: Path) -> None:
    config = {"train_a": True, "rank": 2, "alpha": 6.0, "width": 32}
    trainer, examples = lora(config), digits(1)
    trained = trainer.train(trainer.initial(), examples, GENTLE, NO_HALF, 1)
    after = {name: x + trained.delta[name] for name, x in trainer.initial().items()}

    trainer.export(after, examples.x, tmp_path)

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (answers, *_) = session.run(None, {session.get_inputs()[0].name: examples.x})
    expected = by_hand(after, examples.x.astype(float), config)
    np.testing.assert_allclose(answers, expected, atol=1e-4)
