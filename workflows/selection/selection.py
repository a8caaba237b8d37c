"""The shape of a cohort selection: a frozen value that draws the sites of a round.

A draw is pure: it follows from the job's seed, the round, and what is known of the sites before
anything of the round happens, so that a resumed run asks the same sites. Whether an argument of
privacy amplification by subsampling may rest on it is a property of the kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import msgspec
import numpy as np

from workflows.seeds import derive


class Misfit(NamedTuple):
    """Why a selection does not go with the rest of the cohort.

    Attributes:
        fields: Paths within ``cohort``, the one to change first.
        problem: What does not fit.
        mend: What would.
    """

    fields: tuple[str, ...]
    problem: str
    mend: str


class Asked(NamedTuple):
    """When a site was asked in the rounds before.

    Attributes:
        last: Round in which it was last; 0 for never.
        times: How often it was.
    """

    last: int = 0
    times: int = 0

    def again(self, round: int) -> Asked:
        """The same after ``round``, in which it was asked."""
        return Asked(round, self.times + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """What a cohort is drawn from.

    Attributes:
        sites: All there are, sorted.
        size: Sites that the job wants in a round, at most as many as there are.
        round: From 1.
        seed: Of the job.
        num_examples: Examples that each site trains on.
        asked: When sites were asked before, for kinds that go by it; those that never were are
            missing.
        losses: Of the global model at those sites that ``Selection.called`` named and that told.
    """

    sites: Sequence[str]
    size: int
    round: int
    seed: int
    num_examples: Mapping[str, int] = field(default_factory=dict)
    asked: Mapping[str, Asked] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)

    def rng(self, *purpose: str | int) -> np.random.Generator:
        """Generator of this round's draw; ``purpose`` sets apart the kinds that need several."""
        return np.random.default_rng(derive(self.seed, "cohort", self.round, *purpose))

    def examples(self) -> np.ndarray:
        """Examples of each site, in the order of ``sites``; 1 where it is not known."""
        return np.array([self.num_examples.get(site, 1) for site in self.sites], np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """The sites of a round.

    Attributes:
        sites: To be asked, sorted.
        reserve: To be asked in the place of sites that are lost, in this order.
        counts: How often each of ``sites`` and ``reserve`` counts in the mean; None where a site
            counts by its examples.
    """

    sites: tuple[str, ...]
    reserve: tuple[str, ...] = ()
    counts: Mapping[str, int] | None = None


class Selection(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """A way to draw a cohort.

    A round whose draw has fewer sites than ``cohort.minimum``, or than the strategy needs, asks
    nobody: it is on record with an empty cohort, and the model stays what it was.

    Attributes:
        amplifies: Whether privacy amplification by subsampling may rest on the draw: every site is
            in it by chance alone, independent of data, history and other sites' doing, as a
            theorem on subsampling has it. The draw must then be kept from the adversary, too.
        goes_by_history: Whether it is told when sites were asked before.
        scales: Whether a draw takes memory for those that it draws alone, not for all sites.
    """

    amplifies: ClassVar[bool] = False
    goes_by_history: ClassVar[bool] = False
    scales: ClassVar[bool] = False

    def draw(self, drawing: Drawing) -> Drawn:
        """The sites of a round; the same for the same ``drawing``."""
        raise NotImplementedError

    def called(self, drawing: Drawing) -> tuple[str, ...]:
        """Sites, sorted, that must tell the global model's loss before the draw; often none."""
        return ()

    def most(self, size: int, sites: int) -> int:
        """Most updates that one round can fold, which is what the ring is proved for."""
        return size

    def misfit(self, size: int | None, sites: int) -> Misfit | None:
        """What keeps the kind from drawing ``size`` of ``sites``; None if nothing does.

        Args:
            size: As the job has it; None for all.
            sites: All there are, at least ``size``.
        """
        return None
