"""What every strategy says of an update that cannot be folded: whose it is, and what is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from strategies import (
    KINDS,
    CohortTooSmall,
    EmptyCohort,
    Incompatible,
    ModelUpdate,
    NotFinite,
    OutOfRing,
    ServerState,
    Strategy,
    UpdateRefused,
    digest_of_fold,
)
from tests.strategies.cohorts import RING, begun, completed

ARRAYS = {tag: kind for tag, kind in KINDS.items() if kind.model_kind == "arrays"}
"""What folds arrays; ``test_xgb`` has the same for trees."""
MODEL = {"w": np.zeros((2, 3), np.float32), "b": np.zeros((), np.float32)}
WHO = "site-0042"
Spoil = Callable[[ModelUpdate], ModelUpdate]


def update(strategy: Strategy, site: str = WHO) -> ModelUpdate:
    delta = {"w": np.full((2, 3), 0.5, np.float32), "b": np.array(0.25, np.float32)}
    return completed(strategy, ModelUpdate(site, 1, delta, 10))


def layer(name: str, value: Any) -> Spoil:
    return lambda u: replace(u, delta={**u.delta, name: value})


def without(name: str) -> Spoil:
    return lambda u: replace(u, delta={n: x for n, x in u.delta.items() if n != name})


def counting(num_examples: int) -> Spoil:
    return lambda u: replace(u, num_examples=num_examples)


def whole(value: float) -> np.ndarray:
    return np.full((2, 3), value, np.float32)


BAD: dict[str, tuple[Spoil, type[UpdateRefused], str]] = {
    "NaN": (layer("w", whole(math.nan)), NotFinite, "layer w holds NaN"),
    "infinity": (layer("w", whole(math.inf)), NotFinite, "layer w holds NaN or infinity"),
    "minus infinity": (layer("b", np.array(-math.inf)), NotFinite, "layer b"),
    "beyond the ring": (layer("w", whole(65.0)), OutOfRing, "beyond 64"),
    "another shape": (layer("w", np.zeros((3, 2))), Incompatible, "shape"),
    "a shape that would broadcast": (layer("w", np.zeros((1, 3))), Incompatible, "shape"),
    "a number for a layer": (layer("w", np.zeros(())), Incompatible, "shape"),
    "a layer missing": (without("b"), Incompatible, "layers missing or unknown: b"),
    "a layer more": (layer("more", np.zeros(2)), Incompatible, "layers missing or unknown: more"),
    "integers": (layer("w", np.ones((2, 3), np.int32)), Incompatible, "int32"),
    "truths": (layer("w", np.ones((2, 3), np.bool_)), Incompatible, "bool"),
    "long doubles": (layer("w", np.ones((2, 3), np.longdouble)), Incompatible, "not float16"),
    "complex numbers": (layer("w", np.ones((2, 3), np.complex64)), Incompatible, "complex64"),
    "texts": (layer("w", np.full((2, 3), "a")), Incompatible, "not float16"),
    "no examples": (counting(0), OutOfRing, "weight 0"),
    "a negative number of examples": (counting(-3), OutOfRing, "weight -3"),
    "more examples than the ring takes": (counting(1 << 62), OutOfRing, "weight"),
    "an earlier round": (lambda u: replace(u, round=0), Incompatible, "round 0"),
    "a later round": (lambda u: replace(u, round=7), Incompatible, "round 7"),
}
BESIDE: dict[str, tuple[Any, type[UpdateRefused]]] = {
    "NaN": (whole(math.nan), NotFinite),
    "beyond the ring": (whole(-65.0), OutOfRing),
    "another shape": (np.zeros(6, np.float32), Incompatible),
    "integers": (np.ones((2, 3), np.int64), Incompatible),
}
TOLD: dict[str, tuple[str, float | None, type[UpdateRefused]]] = {
    "no normaliser": ("normaliser", None, Incompatible),
    "a normaliser of NaN": ("normaliser", math.nan, NotFinite),
    "an infinite normaliser": ("normaliser", math.inf, NotFinite),
    "a negative normaliser": ("normaliser", -2.0, OutOfRing),
    "a normaliser of no step": ("normaliser", 0.0, OutOfRing),
    "a huge normaliser": ("normaliser", 1e300, OutOfRing),
    "no loss": ("loss_before", None, Incompatible),
    "a loss of NaN": ("loss_before", math.nan, NotFinite),
    "an infinite loss": ("loss_before", math.inf, NotFinite),
    "a negative loss": ("loss_before", -0.5, OutOfRing),
}
CASES = (
    [
        pytest.param(kind(), spoil, error, words, id=f"{tag}: {name}")
        for tag, kind in ARRAYS.items()
        for name, (spoil, error, words) in BAD.items()
    ]
    + [
        pytest.param(
            kind(), layer(f"{vector}/w", value), error, f"{vector}/w", id=f"{tag}: {vector} {name}"
        )
        for tag, kind in ARRAYS.items()
        for vector in kind.vectors
        for name, (value, error) in BESIDE.items()
    ]
    + [
        pytest.param(kind(), without(f"{v}/b"), Incompatible, f"{v}/b", id=f"{tag}: no {v}")
        for tag, kind in ARRAYS.items()
        for v in kind.vectors
    ]
)


def refused(strategy: Strategy, bad: ModelUpdate, error: type[UpdateRefused], words: str) -> None:
    """Folding ``bad`` is refused by name, and the cohort goes on as if it had not come."""
    partial, clean = (begun(strategy, ServerState(MODEL)) for _ in range(2))
    strategy.accumulate(partial, update(strategy, "site-0001"), RING)
    strategy.accumulate(clean, update(strategy, "site-0001"), RING)

    with pytest.raises(error, match=words) as caught:
        strategy.accumulate(partial, bad, RING)

    assert type(caught.value) is error
    assert caught.value.site == WHO
    assert str(caught.value).startswith(f"{WHO}: ")
    for fold in (partial, clean):
        strategy.accumulate(fold, update(strategy, "site-0099"), RING)
    assert digest_of_fold(partial) == digest_of_fold(clean)
    assert partial.sites == {"site-0001", "site-0099"}


@pytest.mark.parametrize(("strategy", "spoil", "error", "words"), CASES)
def test_a_bad_update_is_refused_by_name_and_the_cohort_goes_on(
    strategy: Strategy, spoil: Spoil, error: type[UpdateRefused], words: str
) -> None:
    refused(strategy, spoil(update(strategy)), error, words)


@pytest.mark.parametrize(
    ("kind", "name", "value", "error"),
    [
        pytest.param(kind, name, value, error, id=f"{tag}: {case}")
        for tag, kind in ARRAYS.items()
        for case, (name, value, error) in TOLD.items()
        if name in kind.scalars
    ],
)
def test_a_bad_number_is_refused_by_name_and_the_cohort_goes_on(
    kind: type[Strategy], name: str, value: float | None, error: type[UpdateRefused]
) -> None:
    told = {} if value is None else {name: value}
    refused(kind(), replace(update(kind()), scalars=told), error, name)


@pytest.mark.parametrize("kind", ARRAYS.values(), ids=ARRAYS)
def test_a_second_update_of_a_site_is_refused(kind: type[Strategy]) -> None:
    strategy = kind()
    partial = begun(strategy, ServerState(MODEL))
    strategy.accumulate(partial, update(strategy), RING)
    before = digest_of_fold(partial)

    with pytest.raises(Incompatible, match=f"{WHO}: a second update"):
        strategy.accumulate(partial, update(strategy), RING)

    assert digest_of_fold(partial) == before


@pytest.mark.parametrize("kind", ARRAYS.values(), ids=ARRAYS)
def test_a_cohort_that_is_empty_or_too_small_says_how_many_it_takes(kind: type[Strategy]) -> None:
    strategy = kind()
    partial = begun(strategy, ServerState(MODEL))
    with pytest.raises(EmptyCohort, match="no update came in round 1"):
        strategy.finish(partial, RING)

    for k in range(1, strategy.min_updates):
        strategy.accumulate(partial, update(strategy, f"site-{k:04}"), RING)
        with pytest.raises(CohortTooSmall, match=f"{k} updates .* {strategy.min_updates} are"):
            strategy.finish(partial, RING)
    strategy.accumulate(partial, update(strategy, "site-9999"), RING)
    strategy.finish(partial, RING)


def test_every_number_that_a_strategy_has_a_site_tell_is_spoilt_here() -> None:
    told = {name for kind in KINDS.values() for name in kind.scalars}
    assert told == {name for name, _, _ in TOLD.values()}
