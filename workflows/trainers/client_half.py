"""The client half of a strategy around a trainer: what a site does in a round, whoever calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from strategies import LocalResult, Parameters, SiteShare, Strategy
from workflows.data.examples import Examples
from workflows.job import Local
from workflows.trainers.trainer import Trained, Trainer


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A site's part in a round.

    Attributes:
        share: What it sends, and what it keeps.
        num_examples: Behind it.
        loss: Of the training; None if the program does not tell.
        scalars: What the strategy has it tell, and nothing else.
    """

    share: SiteShare
    num_examples: int
    loss: float | None
    scalars: Mapping[str, float]


def train_site(
    trainer: Trainer,
    examples: Examples,
    local: Local,
    strategy: Strategy,
    offered: Parameters,
    memory: Parameters,
    seed: int,
) -> Share:
    """Train one site from what it was offered; the same arguments give the same bits.

    Raises:
        ProgramError: The program failed, or cannot do what the strategy asks.
    """
    trained = trainer.train(
        strategy.model_of(offered), examples, local, strategy.half_at(offered, memory), seed
    )
    return conclude(strategy, trained, offered, memory)


def conclude(
    strategy: Strategy, trained: Trained, offered: Parameters, memory: Parameters
) -> Share:
    """A site's part, of what its training gave."""
    found = LocalResult(trained.delta, trained.scalars, trained.gradient, trained.trainable)
    share = strategy.conclude(found, offered, memory)
    told = {str(name): trained.scalars[name] for name in strategy.scalars}
    return Share(share, trained.num_examples, trained.loss, told)
