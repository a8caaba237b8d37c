"""Sites take turns: of those that are there, the ones that have waited longest.

Every site is asked equally often, which no random draw gives over few rounds.

Source: the scheduling policy "round robin" of Yang et al., "Scheduling Policies for Federated
Learning in Wireless Networks", IEEE Transactions on Communications 68(1), 2020, section III,
arXiv:1908.06287; that sites come and go is ours, as is the coin that simulates it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta

from workflows.seeds import derive
from workflows.selection.selection import Asked, Drawing, Drawn, Selection


class RoundRobin(Selection, frozen=True, tag="round-robin"):
    """The ``size`` available sites that were asked longest ago.

    Of sites that were last asked in the same round, those come first that were asked less often,
    then those whose lot, drawn once for the whole run, is lower. Where fewer are there, those are
    asked. Who was asked when is read from the record of the run. The next cohort can be told from
    the last, so no amplification may rest on it.

    Attributes:
        availability: Probability that a simulated site is there in a round, by a coin of its own.
    """

    goes_by_history: ClassVar[bool] = True
    availability: Annotated[float, Meta(gt=0, le=1)] = 1.0

    def draw(self, drawing: Drawing) -> Drawn:
        num_sites = len(drawing.sites)
        lots = np.random.default_rng(derive(drawing.seed, "turns")).permutation(num_sites)
        asked = [drawing.asked.get(site, Asked()) for site in drawing.sites]
        there = drawing.rng("availability").random(num_sites) < self.availability
        turns = sorted(np.flatnonzero(there), key=lambda k: (asked[k], lots[k]))
        return Drawn(tuple(drawing.sites[int(k)] for k in sorted(turns[: drawing.size])))
