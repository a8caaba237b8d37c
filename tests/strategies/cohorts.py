"""Cohorts of updates, drawn by hypothesis or written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from strategies import ROOT, FedAvg, ModelUpdate, Parameters, Partial, Ring, ServerState, Strategy

RING = Ring()
MODEL = {"w": np.zeros((2, 2), np.float32), "b": np.zeros((), np.float32)}


def float32s(bound: float) -> st.SearchStrategy[float]:
    return st.floats(-bound, bound, width=32)


def deltas(bound: float = 64.0) -> st.SearchStrategy[Parameters]:
    entries = float32s(bound)
    return st.fixed_dictionaries(
        {
            "w": arrays(np.float32, (2, 2), elements=entries),
            "b": arrays(np.float32, (), elements=entries),
        }
    )


def updates(fewest: int = 1, most: int = 6) -> st.SearchStrategy[list[ModelUpdate]]:
    """Updates of round 1 for ``MODEL``, each from another site."""
    weighted = st.tuples(deltas(), st.integers(1, RING.max_weight))
    return st.lists(weighted, min_size=fewest, max_size=most).map(
        lambda drawn: [
            ModelUpdate(site=f"site-{i:04}", round=1, delta=delta, num_examples=n)
            for i, (delta, n) in enumerate(drawn, start=1)
        ]
    )


def completed(strategy: Strategy, update: ModelUpdate) -> ModelUpdate:
    """``update`` with what else the strategy has a site send."""
    told = dict.fromkeys(strategy.scalars, 1.0)
    further = {f"{v}/{name}": x for v in strategy.vectors for name, x in update.delta.items()}
    return replace(update, delta={**update.delta, **further}, scalars=told)


def scalar(site: str, value: float, num_examples: int = 1) -> ModelUpdate:
    """An update of a model of one number."""
    delta = {"w": np.array(value, np.float32)}
    return ModelUpdate(site=site, round=1, delta=delta, num_examples=num_examples)


def scalars(*values: float) -> list[ModelUpdate]:
    return [scalar(f"site-{i:04}", value) for i, value in enumerate(values, start=1)]


def begun(strategy: Strategy, state: ServerState, ring: Ring = RING) -> Partial:
    """The empty fold of a round, with the server's own update where the strategy wants one."""
    partial = strategy.zero(state)
    if strategy.wants_root:
        ones = {name: np.ones(x.shape, np.float32) for name, x in state.params.items()}
        strategy.accumulate(partial, ModelUpdate(ROOT, state.round + 1, ones, 1), ring)
    return partial


def fold(
    updates: Sequence[ModelUpdate],
    strategy: Strategy | None = None,
    model: Parameters = MODEL,
    ring: Ring = RING,
) -> Partial:
    strategy = strategy or FedAvg()
    partial = begun(strategy, ServerState(model), ring)
    for update in updates:
        strategy.accumulate(partial, update, ring)
    return partial
