"""When answers arrive, where the server steps while sites are training.

In a simulation they arrive in virtual time, so that a run follows from its job: a number of sites
is always at work, each for a drawn delay, and when one returns another idle site is drawn. An
answer need not be computed before it arrives. The order is recomputed when a run is resumed; all
that has to be kept are the models that sites at work were given.

Source: the setting of Nguyen et al., AISTATS 2022, section 6, arXiv:2106.06639 (a constant number
of clients training at a time). Sites that are too stale are given up as soon as they are, as in
Huba et al., "Papaya", MLSys 2022, section 4, arXiv:2111.04877.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta

from workflows.seeds import derive


class VirtualTime(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="virtual",
):
    """``cohort.size`` simulated sites at work, each for a log-normal delay of median 1.

    The next site is drawn uniformly among the idle ones that have not answered in this round yet.
    Who is idle depends on who was fast, so no amplification may rest on the draw.

    Attributes:
        sigma: Of the logarithm of a delay; 0 for delays that are all the same.
        max_staleness: Server steps after which a site at work is given up.
    """

    sigma: Annotated[float, Meta(ge=0, le=10)] = 0.5
    max_staleness: Annotated[int, Meta(ge=0, le=100_000)] = 100


class Arrival(NamedTuple):
    """An answer that arrived, or was given up.

    Attributes:
        site: Whose.
        asked: Round in which the site was asked, and whose model it was given.
    """

    site: str
    asked: int


class SitesAtWork:
    """The sites that train now: built up in place, by the one loop that owns it.

    Between two steps a site answers once, so that no round holds two updates of it, and no site is
    asked twice in a round.

    Attributes:
        round: Whose buffer is being filled, from 1.
        time: Virtual, of the last arrival; the median delay is 1.
    """

    def __init__(self, arrivals: VirtualTime, seed: int, sites: Sequence[str], most: int) -> None:
        """Nobody was asked yet.

        Args:
            arrivals: When answers arrive.
            seed: Of the job.
            sites: All there are, sorted.
            most: That are at work at a time.
        """
        self.round, self.time = 1, 0.0
        self._arrivals, self._most = arrivals, most
        self._rng = np.random.default_rng(derive(seed, "arrivals"))
        self._idle, self._answered = list(sites), list[str]()
        self._at_work: list[tuple[float, int, Arrival]] = []
        self._num_asked = 0

    @property
    def rounds(self) -> set[int]:
        """Rounds in which the sites at work were asked."""
        return {arrival.asked for _, _, arrival in self._at_work}

    def arrive(self, most: int) -> list[Arrival]:
        """The next answers, in their order; fewer than ``most`` if every site has answered."""
        arrived: list[Arrival] = []
        while len(arrived) < most:
            self._ask()
            if not self._at_work:
                break
            self.time, _, arrival = heapq.heappop(self._at_work)
            self._answered.append(arrival.site)
            arrived.append(arrival)
        return arrived

    def step(self) -> list[Arrival]:
        """Go on to the next round; who is given up, because it would be too stale there."""
        self.round += 1
        oldest = self.round - self._arrivals.max_staleness
        late = sorted(one for _, _, one in self._at_work if one.asked < oldest)
        self._at_work = [entry for entry in self._at_work if entry[2].asked >= oldest]
        heapq.heapify(self._at_work)
        self._idle += sorted([*self._answered, *(one.site for one in late)])
        self._answered.clear()
        return late

    def _ask(self) -> None:
        """Draw idle sites until as many are at work as may be."""
        while len(self._at_work) < self._most and self._idle:
            k = int(self._rng.integers(len(self._idle)))
            self._idle[k], self._idle[-1] = self._idle[-1], self._idle[k]
            due = self.time + math.exp(self._arrivals.sigma * self._rng.normal())
            arrival = Arrival(self._idle.pop(), self.round)
            heapq.heappush(self._at_work, (due, self._num_asked, arrival))
            self._num_asked += 1
