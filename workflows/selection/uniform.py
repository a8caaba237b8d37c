"""Every set of ``size`` sites is as likely as any other.

Source: McMahan et al., AISTATS 2017, Algorithm 1 (S_t), arXiv:1602.05629. Amplification for
sampling without replacement: Wang, Balle and Kasiviswanathan, "Subsampled Renyi Differential
Privacy and Analytical Moments Accountant", AISTATS 2019, Theorem 9, arXiv:1808.00087 (neighbours
differ by replacing one site).
"""

from __future__ import annotations

from typing import ClassVar

from workflows.selection.selection import Drawing, Drawn, Selection


class Uniform(Selection, frozen=True, tag="uniform"):
    """A cohort drawn uniformly without replacement, anew each round from the job's seed."""

    amplifies: ClassVar[bool] = True
    scales: ClassVar[bool] = True  # numpy chooses few of many by Floyd's algorithm

    def draw(self, drawing: Drawing) -> Drawn:
        if drawing.size == len(drawing.sites):
            return Drawn(tuple(drawing.sites))
        places = drawing.rng().choice(len(drawing.sites), drawing.size, replace=False)
        return Drawn(tuple(drawing.sites[k] for k in sorted(places)))
