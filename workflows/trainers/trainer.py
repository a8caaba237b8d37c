"""What a worker can do with a program, whichever framework it is written in.

One module per framework implements this. Arrays come in and go out as numpy; a trainer keeps its
model between calls but never carries anything of one site over to another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from strategies import ClientHalf, Parameters
from workflows.capabilities import ProgramFacts
from workflows.causes import Cause
from workflows.data.examples import Examples
from workflows.job import Local


class ProgramError(Exception):
    """The developer's program did not do what it must.

    Attributes:
        cause: What went wrong, with the developer's traceback as evidence.
    """

    def __init__(self, cause: Cause) -> None:
        super().__init__(f"{cause.code}: {cause.detail}")
        self.cause = cause


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """Local training of one site in one round.

    Attributes:
        delta: Local minus global parameters.
        num_examples: Training examples used.
        loss: Mean loss over the last epoch; None if the program does not tell.
        scalars: What the client half asked for.
        gradient: Of the mean loss at the global model, by layer that gradients move; empty if the
            client half did not ask for it.
        trainable: Layers that gradients move.
    """

    delta: dict[str, np.ndarray]
    num_examples: int
    loss: float | None
    scalars: Mapping[str, float] = field(default_factory=dict)
    gradient: Mapping[str, np.ndarray] = field(default_factory=dict)
    trainable: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Measured:
    """A model on some examples: metrics by name, and how many examples stand behind them."""

    values: Mapping[str, float]
    num_examples: int


@runtime_checkable
class GroupTrainer(Protocol):
    """A loaded program whose sites can be trained together."""

    def train_together(
        self,
        params: Parameters,
        examples: Sequence[Examples],
        local: Local,
        half: ClientHalf,
        seeds: Sequence[int],
    ) -> list[Trained | ProgramError]:
        """What ``train`` gives for each of some sites with as many examples, but for last bits.

        The same arguments give the same bits. A site that spoils its own model alone has its error
        in the place of its result.

        Raises:
            ProgramError: The program raised, or cannot be run over a stack of sites.
        """
        ...


class Trainer(Protocol):
    """A loaded program."""

    @property
    def facts(self) -> ProgramFacts:
        """What the program is."""
        ...

    def initial(self) -> dict[str, np.ndarray]:
        """Federated arrays as the program builds them under the job's seed."""
        ...

    def train(
        self, params: Parameters, examples: Examples, local: Local, half: ClientHalf, seed: int
    ) -> Trained:
        """Train from ``params``; the same arguments give the same bits.

        Raises:
            ProgramError: The program raised, or returned what is no update.
        """
        ...

    def evaluate(self, params: Parameters, examples: Examples, metrics: Sequence[str]) -> Measured:
        """Measure ``params``; a metric that is not defined on these examples is left out.

        Raises:
            ProgramError: The program raised, or does not know a metric.
        """
        ...

    def export(self, params: Parameters, samples: np.ndarray, folder: Path) -> None:
        """Write ``model.onnx`` and ``reference.npz`` (arrays ``inputs``, ``outputs``) into folder.

        Raises:
            ProgramError: The model has no ONNX form.
        """
        ...
