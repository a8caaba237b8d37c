from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strategies import ClientHalf
from workflows.causes import CauseCode
from workflows.data.examples import Examples
from workflows.job import Adam, Local, Sgd
from workflows.trainers import ProgramError, Trainer, load_trainer

LINEAR = """
import torch
from torch import nn

def build(width=3):
    return nn.Linear(width, 2)

def loss(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)
"""
NOISY = """
import random
import numpy as np
import torch
from torch import nn

class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)
        )
        self.seen = 0

    def forward(self, x):
        self.seen += 1
        return self.layers(x) * (1 + 0.1 * self.seen)

def build():
    return Noisy()

def loss(model, batch):
    x, y = batch
    x = x + 0.1 * torch.randn_like(x) + 0.1 * random.random() + 0.1 * float(np.random.rand())
    return nn.functional.cross_entropy(model(x), y)
"""
LOCAL = Local(epochs=2, batch_size=4, optimizer=Sgd(lr=0.1, momentum=0.9))
NO_HALF = ClientHalf()


def load(
    folder: Path, code: str, config: Mapping[str, Any] | None = None, toml: str = "", **shape: Any
) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "program.py").write_text(textwrap.dedent(code))
    (folder / "program.toml").write_text(f'name = "p"\nframework = "torch"\n{toml}\n')
    return load_trainer(folder, config or {}, 7, **shape)


def some_examples(seed: int = 0, count: int = 21) -> Examples:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3)).astype(np.float32)
    return Examples(x, (x[:, 0] > 0).astype(np.int64))


def cause_of(folder: Path, code: str, toml: str = "") -> tuple[CauseCode, str, str]:
    """What running the program from import to evaluation fails with."""
    with pytest.raises(ProgramError) as caught:
        run(folder, code, toml)
    cause = caught.value.cause
    return cause.code, cause.detail, cause.evidence


def run(folder: Path, code: str, toml: str) -> None:
    trainer = load(folder, code, toml=toml)
    trainer.train(trainer.initial(), some_examples(), LOCAL, NO_HALF, 1)
    trainer.evaluate(trainer.initial(), some_examples(), ["accuracy"])


def as_bytes(arrays: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


def gradient(w: np.ndarray, b: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Of the mean cross entropy of softmax(x w^T + b), by hand."""
    scores = x @ w.T + b
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    residual = (p - np.eye(2)[y]) / len(x)
    return [residual.T @ x, residual.sum(0)]


@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_local_steps_are_those_of_the_proximal_objective(tmp_path: Path, mu: float) -> None:
    trainer, examples = load(tmp_path, LINEAR), some_examples()
    origin = trainer.initial()
    whole = Local(epochs=4, batch_size=len(examples), optimizer=Sgd(lr=0.3))

    trained = trainer.train(origin, examples, whole, ClientHalf(proximal_mu=mu), 1)

    w, b = origin["weight"].astype(float), origin["bias"].astype(float)
    for _ in range(4):
        g_w, g_b = gradient(w, b, examples.x.astype(float), examples.y)
        w -= 0.3 * (g_w + mu * (w - origin["weight"]))
        b -= 0.3 * (g_b + mu * (b - origin["bias"]))
    np.testing.assert_allclose(trained.delta["weight"], w - origin["weight"], atol=1e-6)
    np.testing.assert_allclose(trained.delta["bias"], b - origin["bias"], atol=1e-6)
    assert trained.num_examples == len(examples)


def test_a_program_that_trains_itself_gets_the_same_penalty_as_a_hook(tmp_path: Path) -> None:
    own = LINEAR + textwrap.dedent("""
        def train(model, data, config):
            optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
            for _ in range(config.epochs):
                optimizer.zero_grad()
                value = loss(model, (data.x, data.y)) + config.hooks.penalty(model)
                value.backward()
                optimizer.step()
            return float(value.detach())
    """)
    whole = Local(epochs=4, batch_size=21, optimizer=Sgd(lr=0.3))
    half = ClientHalf(proximal_mu=0.7)
    ours = load(tmp_path / "ours", LINEAR)
    theirs = load(tmp_path / "theirs", own, toml="hooks = true")

    expected = ours.train(ours.initial(), some_examples(), whole, half, 1)
    trained = theirs.train(ours.initial(), some_examples(), whole, half, 1)

    np.testing.assert_allclose(trained.delta["weight"], expected.delta["weight"], atol=1e-6)
    assert trained.loss is not None
    assert (theirs.facts.own_train, theirs.facts.uses_hooks) == (True, True)
    assert (ours.facts.own_train, ours.facts.uses_hooks) == (False, False)


def test_the_same_seed_gives_the_same_bits_whatever_was_trained_between(tmp_path: Path) -> None:
    trainer = load(tmp_path, NOISY)
    origin = trainer.initial()

    first = trainer.train(origin, some_examples(1), LOCAL, NO_HALF, 5)
    other = trainer.train(origin, some_examples(2, 40), LOCAL, NO_HALF, 6)
    trainer.evaluate(origin, some_examples(3), ["accuracy", "loss"])
    again = trainer.train(origin, some_examples(1), LOCAL, NO_HALF, 5)
    reloaded = load(tmp_path, NOISY).train(origin, some_examples(1), LOCAL, NO_HALF, 5)
    another_seed = trainer.train(origin, some_examples(1), LOCAL, NO_HALF, 8)

    assert as_bytes(first.delta) == as_bytes(again.delta) == as_bytes(reloaded.delta)
    assert first.loss == again.loss == reloaded.loss
    assert as_bytes(first.delta) != as_bytes(other.delta)
    assert as_bytes(first.delta) != as_bytes(another_seed.delta)


def test_floating_buffers_travel_and_counters_stay(tmp_path: Path) -> None:
    trainer = load(tmp_path, NOISY)

    names = set(trainer.initial())

    assert "layers.1.running_mean" in names
    assert "layers.1.num_batches_tracked" not in names


def test_a_model_that_cannot_be_copied_is_built_anew(tmp_path: Path) -> None:
    computed = LINEAR.replace(
        "return nn.Linear(width, 2)",
        "m = nn.Linear(width, 2); m.scale = torch.ones(1, requires_grad=True) * 2; return m",
    )
    trainer = load(tmp_path, computed)
    origin = trainer.initial()

    first = trainer.train(origin, some_examples(), LOCAL, NO_HALF, 5)
    again = trainer.train(origin, some_examples(), LOCAL, NO_HALF, 5)

    assert as_bytes(first.delta) == as_bytes(again.delta)


def test_arguments_are_not_written_to(tmp_path: Path) -> None:
    writer = LINEAR.replace("x, y = batch", "x, y = batch; x.zero_(); y.zero_()")
    trainer, examples = load(tmp_path, writer), some_examples()
    origin = trainer.initial()
    before = examples.x.copy(), as_bytes(origin)
    for array in (*origin.values(), examples.x, examples.y):
        array.flags.writeable = False

    trainer.train(origin, examples, LOCAL, NO_HALF, 5)

    assert (examples.x == before[0]).all()
    assert as_bytes(origin) == before[1]


def test_the_initial_model_depends_on_the_seed_alone(tmp_path: Path) -> None:
    load(tmp_path, LINEAR)

    one, same, other = (load_trainer(tmp_path, {}, seed).initial() for seed in (1, 1, 2))

    assert as_bytes(one) == as_bytes(same) != as_bytes(other)


def test_build_gets_the_config_and_the_shape_of_the_data_it_asks_for(tmp_path: Path) -> None:
    asks = """
        from torch import nn
        def build(features, classes, width=1):
            return nn.Linear(features[0] * width, classes)
        def loss(model, batch): ...
    """

    trainer = load(tmp_path, asks, {"width": 2}, features=(5,), classes=4)

    assert trainer.facts.parameters[0].shape == (4, 10)
    assert trainer.facts.features == (5,)


def test_a_program_may_bring_its_optimizer(tmp_path: Path) -> None:
    brings = LINEAR + textwrap.dedent("""
        def optimizer(model, local):
            return torch.optim.SGD(model.parameters(), lr=2 * local.optimizer.lr)
    """)
    examples, plain = some_examples(), load(tmp_path / "plain", LINEAR)

    def delta(trainer: Trainer, lr: float) -> dict[str, bytes]:
        local = Local(epochs=2, batch_size=4, optimizer=Sgd(lr=lr))
        return as_bytes(trainer.train(plain.initial(), examples, local, NO_HALF, 5).delta)

    doubled = delta(plain, 0.2)
    assert delta(load(tmp_path / "brings", brings), 0.1) == doubled


def test_adam_moves_each_weight_by_about_its_rate_at_first(tmp_path: Path) -> None:
    trainer, examples = load(tmp_path, LINEAR), some_examples()
    one_step = Local(epochs=1, batch_size=len(examples), optimizer=Adam(lr=0.01))

    trained = trainer.train(trainer.initial(), examples, one_step, NO_HALF, 1)

    np.testing.assert_allclose(np.abs(trained.delta["weight"]), 0.01, rtol=1e-3)


def test_metrics_are_means_over_examples_not_over_batches(tmp_path: Path) -> None:
    declares = LINEAR + textwrap.dedent("""
        def evaluate(model, batch):
            return {"share": batch[1].double().mean()}
    """)
    trainer = load(tmp_path, declares, toml='metrics = {share = "maximize"}')
    examples = some_examples(count=300)
    w, b = (trainer.initial()[name].astype(float) for name in ("weight", "bias"))

    measured = trainer.evaluate(trainer.initial(), examples, ["share", "accuracy", "loss"])

    scores = examples.x @ w.T + b
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    assert measured.values["share"] == pytest.approx(examples.y.mean())
    assert measured.values["accuracy"] == pytest.approx(np.mean(scores.argmax(1) == examples.y))
    assert measured.values["loss"] == pytest.approx(
        -log_p[np.arange(300), examples.y].mean(), rel=1e-5
    )
    assert measured.num_examples == 300


BAD = {
    "raises in loss": (
        LINEAR.replace("x, y = batch", "x, y = batch\n    raise ValueError('no such dial')"),
        CauseCode.PROGRAM_RAISED,
        "loss() raised ValueError: no such dial",
    ),
    "raises while imported": (
        "raise RuntimeError('early')",
        CauseCode.PROGRAM_RAISED,
        "importing program.py raised RuntimeError: early",
    ),
    "is no Python": ("def build(:", CauseCode.PROGRAM_RAISED, "SyntaxError"),
    "imports what is not there": (
        "import tensorflow\n" + LINEAR,
        CauseCode.PROGRAM_IMPORT_FAILED,
        "the package `tensorflow` is not in the runtime's environment; there are numpy, torch",
    ),
    "imports a name that is not there": (
        "from torch import no_such_name\n" + LINEAR,
        CauseCode.PROGRAM_IMPORT_FAILED,
        "no_such_name",
    ),
    "has no build": (
        "def loss(model, batch): ...",
        CauseCode.PROGRAM_RAISED,
        "program.py has no function `build`",
    ),
    "has no loss": (
        LINEAR.replace("def loss", "def lose"),
        CauseCode.PROGRAM_RAISED,
        "program.py has no function `loss`",
    ),
    "builds no model": (
        LINEAR.replace("return nn.Linear(width, 2)", "return {}"),
        CauseCode.PROGRAM_RAISED,
        "build() returned dict; it must return an nn.Module",
    ),
    "builds an empty model": (
        LINEAR.replace("return nn.Linear(width, 2)", "return nn.ReLU()"),
        CauseCode.PROGRAM_RAISED,
        "no floating-point parameters",
    ),
    "builds a half-precision model": (
        LINEAR.replace("nn.Linear(width, 2)", "nn.Linear(width, 2).bfloat16()"),
        CauseCode.PROGRAM_RAISED,
        "layer `weight` is torch.bfloat16",
    ),
    "needs an argument nobody gives": (
        LINEAR.replace("width=3", "depth"),
        CauseCode.PROGRAM_RAISED,
        "missing a required argument: 'depth'; it takes depth",
    ),
    "returns NaN": (
        LINEAR.replace("cross_entropy(model(x), y)", "cross_entropy(model(x), y) * float('nan')"),
        CauseCode.UPDATE_NOT_FINITE,
        "layer `weight` holds NaN or infinity",
    ),
    "returns no number": (
        LINEAR.replace("cross_entropy(model(x), y)", "relu(model(x))"),
        CauseCode.PROGRAM_RAISED,
        "loss() returned (4, 2); it must return one number",
    ),
    "returns a float": (
        LINEAR.replace("return nn.functional", "return 1.0 or nn.functional"),
        CauseCode.PROGRAM_RAISED,
        "loss() returned float; it must return one number as a tensor",
    ),
    "loses the gradient": (
        LINEAR.replace("cross_entropy(model(x), y)", "cross_entropy(model(x), y).detach()"),
        CauseCode.PROGRAM_RAISED,
        "does not depend on the model's parameters",
    ),
    "changes a layer's shape": (
        LINEAR + "def train(model, data, config): model.weight = nn.Parameter(torch.ones(5, 5))",
        CauseCode.UPDATE_INCOMPATIBLE,
        "layer `weight` has the shape (5, 5), but build() made it (2, 3)",
    ),
    "adds a layer": (
        LINEAR + "def train(model, data, config): model.extra = nn.Linear(1, 1)",
        CauseCode.UPDATE_INCOMPATIBLE,
        "layer `extra.weight` has the shape (1, 1), but build() made it None",
    ),
    "returns a text from train": (
        LINEAR + "def train(model, data, config): return 'fine'",
        CauseCode.PROGRAM_RAISED,
        "`what train() returns` is str, not a number",
    ),
    "answers with a tuple": (
        """
        import torch
        from torch import nn
        class Two(nn.Linear):
            def forward(self, x):
                return super().forward(x), x
        def build():
            return Two(3, 2)
        def loss(model, batch):
            return model(batch[0])[0].sum()
        """,
        CauseCode.PROGRAM_RAISED,
        "the model must return one tensor with a row per example",
    ),
}


@pytest.mark.parametrize(("code", "expected", "words"), BAD.values(), ids=BAD.keys())
def test_a_program_that(tmp_path: Path, code: str, expected: CauseCode, words: str) -> None:
    found, detail, _ = cause_of(tmp_path, code)

    assert found is expected
    assert words in detail


def test_a_dependency_that_is_not_there_is_named(tmp_path: Path) -> None:
    found, detail, _ = cause_of(tmp_path, LINEAR, toml='dependencies = ["numpy", "no-such-lib"]')

    assert found is CauseCode.PROGRAM_IMPORT_FAILED
    assert "no-such-lib" in detail


def test_an_unknown_metric_is_refused_with_those_there_are(tmp_path: Path) -> None:
    trainer = load(tmp_path, LINEAR)

    with pytest.raises(
        ProgramError, match=r"`f1` is unknown; there are accuracy, auroc, loss, mse"
    ):
        trainer.evaluate(trainer.initial(), some_examples(), ["f1"])


def test_an_unknown_config_field_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"unexpected keyword argument 'widht'; it takes width"):
        load(tmp_path, LINEAR, {"widht": 3})


def test_evidence_shows_the_developers_frames_and_little_else(tmp_path: Path) -> None:
    deep = LINEAR.replace("x, y = batch", "x, y = batch\n    dig(1000)") + textwrap.dedent("""
        def dig(depth):
            if not depth:
                raise ValueError("x" * 100_000)
            dig(depth - 1) if depth > 900 else dig(0)
    """)

    _, detail, evidence = cause_of(tmp_path, deep)

    assert len(evidence) <= 4096
    assert len(detail) <= 500
    _, _, short = cause_of(
        tmp_path / "short", LINEAR.replace("x, y = batch", "raise ValueError('oops')")
    )
    assert 'File "program.py", line' in short
    assert "torch_trainer" not in short
    assert str(tmp_path) not in short
    assert short.endswith("ValueError: oops\n")


def test_modules_beside_the_program_are_its_own(tmp_path: Path) -> None:
    code = LINEAR.replace("def build", "import layers\ndef build").replace(
        "nn.Linear(width, 2)", "nn.Linear(width, layers.OUT)"
    )
    for name, out in (("first", 2), ("second", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "layers.py").write_text(f"OUT = {out}\n")

    shapes = [load(tmp_path / n, code).facts.parameters[0].shape for n in ("first", "second")]

    assert shapes == [(2, 3), (5, 3)]
