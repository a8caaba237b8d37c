"""Sites with data of their own, and rounds over them as the round loop plays them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strategies import ModelUpdate, ServerState
from strategies.tally import Tally
from workflows.analyses import Finding, Query
from workflows.analyses.columns import Columns, SiteColumns
from workflows.analyses.terms import ring_of
from workflows.data.examples import Examples
from workflows.data.labels import Class

NAMES = ("age", "weight")


def site(
    age: Sequence[float],
    labels: Sequence[float] | None = None,
    classes: tuple[Class, ...] = (),
    names: tuple[str, ...] = NAMES,
) -> SiteColumns:
    """A site whose examples have an age, a weight of twice that, and a label."""
    x = np.array([[a, 2 * a] for a in age], np.float32).reshape(len(age), 2)
    kind = np.int64 if classes else np.float32
    y = np.zeros(len(age), kind) if labels is None else np.array(labels, kind)
    return SiteColumns(Examples(x, y), Columns(names, 2, "y"), classes)


def found(
    query: Query, sites: Sequence[SiteColumns], later: Sequence[SiteColumns] | None = None
) -> Finding:
    """What all rounds of ``query`` find, folded in the ring that a job would have.

    ``later`` are the sites that answer after the first round, if others than in it.
    """
    ring = ring_of(sum(len(one) for one in sites), len(sites))
    state = Tally().init(query.blank())
    for round_ in range(1, query.num_rounds + 1):
        partial = Tally().zero(state)
        for number, one in enumerate(sites if round_ == 1 or later is None else later):
            answer = query.answered(one, state.params)
            Tally().accumulate(partial, ModelUpdate(f"s{number}", round_, answer, 1), ring)
        state = ServerState(Tally().advance(state, partial, ring).params, round=round_)
    return query.finding(state.params)
