"""Sites are drawn in proportion to their examples, and then count by how often they were drawn.

Source: Li et al., "On the Convergence of FedAvg on Non-IID Data", ICLR 2020, section 3.2, Scheme I,
arXiv:1907.02189; Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020,
Algorithm 2, arXiv:1812.06127. The mean over the draws is unbiased for the mean over all examples.
"""

from __future__ import annotations

import numpy as np

from workflows.selection.selection import Drawing, Drawn, Selection


class Weighted(Selection, frozen=True, tag="weighted"):
    """``size`` draws with replacement, each of a site with probability by its examples.

    A site that is drawn twice trains once and counts twice; otherwise its examples, which made the
    draw likely, do not count again. So a round asks at most ``size`` sites, and at least one. The
    draw depends on the data, so no amplification may rest on it. A fold that does not weight, such
    as a median, counts a site once all the same.
    """

    def draw(self, drawing: Drawing) -> Drawn:
        ends = np.cumsum(drawing.examples())
        tickets = drawing.rng().integers(ends[-1], size=drawing.size)
        places, counts = np.unique(np.searchsorted(ends, tickets, side="right"), return_counts=True)
        sites = tuple(drawing.sites[k] for k in places)
        return Drawn(sites, counts=dict(zip(sites, counts.tolist(), strict=True)))
