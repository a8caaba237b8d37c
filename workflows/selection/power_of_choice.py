"""Of some candidates, those take part where the model is worst.

Source: Cho, Wang and Joshi, "Towards Understanding Biased Client Selection in Federated Learning",
AISTATS 2022, section 3.1 (pi_pow-d), arXiv:2010.01243: d candidates are drawn without replacement
with probability by their examples, each tells its local loss F_k(w), and the m with the largest
make the round; their models are averaged plainly, since their examples made the draw likely. Equal
losses are settled by name, where the paper does so at random.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta

from workflows.selection.selection import Drawing, Drawn, Misfit, Selection


class PowerOfChoice(Selection, frozen=True, tag="power-of-choice"):
    """The ``size`` sites with the largest loss of the global model, out of ``candidates``.

    It costs an extra question a round: each candidate is sent the model and tells its mean loss
    over its training examples, if they are no fewer than ``evaluate.minimum_count``. The mean of
    the updates is biased towards those sites, on purpose. The draw depends on the data and
    releases losses, so no amplification may rest on it.

    Attributes:
        candidates: Sites that are asked for their loss, d in the paper; at least ``size``, where
            nothing is chosen, and at most all.
    """

    candidates: Annotated[int, Meta(ge=1)]

    def called(self, drawing: Drawing) -> tuple[str, ...]:
        examples = drawing.examples()
        num_called = min(self.candidates, len(drawing.sites))
        places = drawing.rng().choice(
            len(drawing.sites), num_called, replace=False, p=examples / examples.sum()
        )
        return tuple(drawing.sites[k] for k in np.sort(places))

    def draw(self, drawing: Drawing) -> Drawn:
        worst = sorted(drawing.losses, key=lambda site: (-drawing.losses[site], site))
        sites = tuple(sorted(worst[: drawing.size]))
        return Drawn(sites, counts=dict.fromkeys(sites, 1))

    def misfit(self, size: int | None, sites: int) -> Misfit | None:
        fields = ("selection.candidates", "size")
        if size is None:
            return Misfit(fields[::-1], f"all {sites} sites are asked anyway", "set cohort.size")
        if not size <= self.candidates <= sites:
            problem = f"{size} of {self.candidates} candidates of {sites} sites cannot be drawn"
            return Misfit(fields, problem, f"set candidates to {size}..{sites}")
        return None
