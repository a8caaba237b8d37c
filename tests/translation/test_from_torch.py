"""PyTorch models become ONNX models that answer the same, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from translation import ParityFailed, Untranslatable
from translation.from_torch import to_onnx
from translation.parity import check_parity
from translation.signature import Signature, TensorSpec, read_signature

pytestmark = pytest.mark.usefixtures("as_in_a_worker")


@pytest.fixture
def as_in_a_worker() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(3)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 6, batch_first=True)
        self.head = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(x)
        logits: torch.Tensor = self.head(states[:, -1])
        return logits


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.encoder(x).mean(1))
        return logits


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(64, 10),
    )


class Forgetful(nn.Module):
    """Drops out even where it should not."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = nn.functional.dropout(x.flatten(1), 0.5, training=True)
        logits: torch.Tensor = self.head(kept)
        return logits


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Raising(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no way through")


class Two(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class Summing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


@pytest.mark.parametrize("build", [mlp, cnn, Gru, Attention])
def test_the_onnx_model_answers_as_the_original(
    build: Callable[[], nn.Module], samples: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    model = build().train()

    reference = to_onnx(model, samples, path, 17)

    with torch.no_grad():
        assert np.array_equal(reference, model.eval()(torch.from_numpy(samples)).numpy())
    parity = check_parity(path, samples, reference, atol=1e-5, rtol=1e-5)
    assert parity.samples == 12
    assert parity.labels_equal is True
    assert parity.max_abs_difference < 1e-5
    assert read_signature(path) == Signature(
        inputs=(TensorSpec(name="input", shape=("batch", 8, 8), dtype="float32"),),
        outputs=(TensorSpec(name="output", shape=("batch", 10), dtype="float32"),),
        opset=20,
    )


def test_exporting_again_gives_the_same_bytes_and_tells_nothing_of_the_source(
    samples: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Gru()

    to_onnx(model, samples, tmp_path / "first.onnx", 17)
    to_onnx(model, samples[:1], tmp_path / "second.onnx", 17)

    content = (tmp_path / "first.onnx").read_bytes()
    assert content == (tmp_path / "second.onnx").read_bytes()
    assert b"test_from_torch" not in content
    assert b"states[:, -1]" not in content
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["first.onnx", "second.onnx"]
    assert capfd.readouterr() == ("", "")


def test_a_higher_opset_is_written_if_asked_for(samples: np.ndarray, tmp_path: Path) -> None:
    to_onnx(mlp(), samples, tmp_path / "model.onnx", 21)

    assert read_signature(tmp_path / "model.onnx").opset == 21


def test_randomness_in_forward_fails_parity(samples: np.ndarray, tmp_path: Path) -> None:
    reference = to_onnx(Forgetful(), samples, tmp_path / "model.onnx", 17)

    with pytest.raises(ParityFailed, match=r"sample \d+ gives .* instead of .* at \(\d,\)"):
        check_parity(tmp_path / "model.onnx", samples, reference, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (Branching, "data-dependent"),
        (Raising, r"forward\(\) raised ValueError: no way through"),
        (Two, "one tensor"),
        (Summing, "a row per example"),
    ],
    ids=["branches on values", "raises", "gives two tensors", "gives one number"],
)
def test_what_has_no_onnx_form_is_said_in_a_few_words(
    build: Callable[[], nn.Module], reason: str, samples: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(Untranslatable, match=reason) as caught:
        to_onnx(build(), samples, tmp_path / "model.onnx", 17)

    assert len(str(caught.value)) < 600
    assert not list(tmp_path.iterdir())
