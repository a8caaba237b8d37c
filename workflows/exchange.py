"""What a round loop asks of its sites, whatever the runtime.

A runtime brings an ``Exchange``, which carries questions and answers by its framework's means.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from strategies import Parameters, Strategy
from workflows.folding import FoldedSites, SiteUpdate
from workflows.tasks import SiteFailure


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What a cohort is asked in a round.

    Attributes:
        round: Which it is asked in, from 1; seeds and signatures of the answers carry it.
        sites: The cohort, sorted; or ``ROOT`` alone, which is the server's own data.
        params: Global model, and beside it what else the strategy has travel; the same object as
            long as it is the same model.
        strategy: Whose client half applies.
        deadline_s: How long to wait for the answers.
        memories: What each site kept when it was last drawn; only those that kept something.
        may_fold: Whether answers may come as a fold of them.
        counts: How often each site counts in such a fold; None where it counts by its examples.
    """

    round: int
    sites: tuple[str, ...]
    params: Parameters
    strategy: Strategy
    deadline_s: float
    memories: Mapping[str, Parameters] = field(default_factory=dict)
    may_fold: bool = False
    counts: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class SiteMeasures:
    """The global model on one site's held-out part, or on the central one (``site`` None)."""

    site: str | None
    values: Mapping[str, float]
    num_examples: int


class Exchange(Protocol):
    """How a runtime reaches sites. Failures carry the site in their cause."""

    def ask(self, question: Question) -> Iterator[SiteUpdate | FoldedSites | SiteFailure]:
        """Have each site of the question train; each is in one outcome, in any order."""
        ...

    def measure(
        self,
        round: int,
        params: Parameters,
        sites: Sequence[str | None],
    ) -> Iterator[SiteMeasures | SiteFailure]:
        """Have ``params`` measured at each site; one outcome per site, in any order."""
        ...

    def tell_losses(
        self, round: int, params: Parameters, sites: Sequence[str]
    ) -> Iterator[SiteMeasures | SiteFailure]:
        """Have the loss of ``params`` told on what each site trains on; one outcome per site."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Federation:
    """Who takes part, and how they are reached.

    Attributes:
        sites: All of them, sorted.
        exchange: How.
        directions: Of the program's own metrics.
        num_examples: That each site trains on, for draws that go by it.
        clock: Monotonic seconds.
    """

    sites: Sequence[str]
    exchange: Exchange
    directions: Mapping[str, Literal["maximize", "minimize"]] = field(default_factory=dict)
    num_examples: Mapping[str, int] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
