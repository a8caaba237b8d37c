"""More sites are called than are needed, and the first to answer make the round.

Source: Bonawitz et al., "Towards Federated Learning at Scale: System Design", MLSys 2019, section
9, arXiv:1902.01046 (130 % of the goal). Who is first must not depend on the machine that simulates:
here a site's delay is virtual, its examples times a log-normal factor from the job's seed. So the
sites that would have come too late are never trained, only kept to stand in for those that fail;
at real sites they would be, and bytes would be sent to them.
"""

from __future__ import annotations

from math import ceil
from typing import Annotated

import numpy as np
from msgspec import Meta

from workflows.selection.selection import Drawing, Drawn, Misfit, Selection


class OverSelection(Selection, frozen=True, tag="over-selection"):
    """Of ``factor`` times ``size`` sites drawn uniformly, the first ``size`` in virtual time.

    Sites with few examples are early, so they take part more often than others, and no
    amplification may rest on it. Sites of equal delay come in the order of their names. Reserves
    stand in while ``cohort.deadline_s`` lasts; with ``on_site_failure: fail`` none ever does.

    Attributes:
        factor: Sites called for each that is needed.
        sigma: Of the logarithm of a delay; 0 makes the order that of the examples alone.
    """

    factor: Annotated[float, Meta(ge=1, le=100)] = 1.3
    sigma: Annotated[float, Meta(ge=0, le=10)] = 0.5

    def draw(self, drawing: Drawing) -> Drawn:
        num_sites = len(drawing.sites)
        called = min(num_sites, ceil(round(self.factor * drawing.size, 6)))  # 1.1 * 10 is 11
        rng = drawing.rng()
        places = np.sort(rng.choice(num_sites, called, replace=False))
        delays = np.log(drawing.examples()[places]) + self.sigma * rng.normal(size=called)
        order = places[np.argsort(delays, kind="stable")]
        first, later = order[: drawing.size], order[drawing.size :]
        return Drawn(
            tuple(drawing.sites[k] for k in sorted(first)),
            reserve=tuple(drawing.sites[k] for k in later),
        )

    def misfit(self, size: int | None, sites: int) -> Misfit | None:
        if size is not None:
            return None
        fields = ("size", "selection.kind")
        return Misfit(fields, f"all {sites} sites are asked anyway", "set cohort.size")
