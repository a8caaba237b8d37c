"""Client momentum before a robust fold, so that wrong sites cannot hide in the noise of the honest.

Source: Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML
2021, Algorithm 2, arXiv:2012.10333: a site sends

    m_i = (1 - beta) * g_i + beta * m_i

and the server folds the m_i. Averaged over rounds, honest updates differ less, while a shift that
wrong sites add in every round adds up; a fold without memory cannot tell the two apart.

Gradients there, local updates here, so no guarantee of the paper carries over word for word. A
site's first m_i is its first g_i: from zero it would be shortened to 1 - beta of it, and sites that
were drawn later than others would stand out. There every site takes part in every round; here a
site that was not drawn keeps m_i as it is, and sends the older average when it is drawn again: the
smaller the cohort beside all sites, the staler. The site does the averaging, so a wrong one may
leave it out. As m_i is a mean of the site's own updates, it is no longer than the longest of them.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta

from strategies.kept import KeptFold
from strategies.strategy import LocalResult, SiteShare
from strategies.update import Array, Parameters, tree_map


class MomentumFold(KeptFold, frozen=True):
    """A fold whose sites may send a momentum of their updates; no kind of its own.

    Attributes:
        client_momentum: beta, the share of a site's momentum that stays from round to round; 0 for
            updates as they are.
    """

    is_abstract: ClassVar[bool] = True
    client_momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    @property
    def has_memory(self) -> bool:
        return self.client_momentum > 0

    def conclude(self, local: LocalResult, offered: Parameters, memory: Parameters) -> SiteShare:
        if not self.has_memory:
            return SiteShare(local.delta)
        beta = self.client_momentum

        def mixed(_: Array, g: Array, m: Array) -> Array:
            return (1 - beta) * g.astype(np.float64) + beta * m

        momentum = tree_map(mixed, offered, local.delta, memory or local.delta)
        return SiteShare(momentum, momentum)
