"""Every site takes part by a coin of its own, so the cohort's size varies from round to round.

Source: Poisson subsampling as in McMahan et al., "Learning Differentially Private Recurrent
Language Models", ICLR 2018, Algorithm 1, arXiv:1710.06963; amplification: Mironov, Talwar and
Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", 2019, arXiv:1908.10530
(neighbours differ by adding one site). There the sum is divided by the expected size; here, where
nothing is added to it, the mean is over the examples that came.
"""

from __future__ import annotations

from typing import ClassVar, Final

import numpy as np

from workflows.selection.selection import Drawing, Drawn, Selection

BLOCK: Final = 1 << 16


class Poisson(Selection, frozen=True, tag="poisson"):
    """Each site takes part independently with probability size / sites.

    The draw may be empty, and is never repeated for that: amplification would not survive it.
    Nobody is asked in such a round, and the model stays what it was. The ring is proved for all
    sites at once.
    """

    amplifies: ClassVar[bool] = True
    scales: ClassVar[bool] = True

    def draw(self, drawing: Drawing) -> Drawn:
        num_sites = len(drawing.sites)
        rng, drawn = drawing.rng(), []
        for start in range(0, num_sites, BLOCK):  # the same numbers as all at once
            coins = rng.integers(num_sites, size=min(BLOCK, num_sites - start))
            drawn += (start + np.flatnonzero(coins < drawing.size)).tolist()  # exact: none rounds
        return Drawn(tuple(drawing.sites[k] for k in drawn))

    def most(self, size: int, sites: int) -> int:
        return sites
