"""Boosted trees over sites: in order, whole, and as Flower appends them."""

from __future__ import annotations

import json
import random

import msgspec
import numpy as np
import pytest
import xgboost as xgb
from flwr.serverapp.strategy.strategy_utils import aggregate_bagging

from strategies import (
    AnyStrategy,
    EmptyCohort,
    Incompatible,
    ModelUpdate,
    NotFinite,
    OutOfRing,
    Ring,
    ServerState,
    StrategyError,
    UpdateRefused,
    digest_of_fold,
)
from strategies.xgb_bagging import XgbBagging
from strategies.xgb_cyclic import XgbCyclic
from tests.strategies.forests import (
    Document,
    document_of,
    ensemble,
    fold,
    grown,
    layer,
    stump,
    trees_in,
    update,
)

BEGINNING = ServerState(layer(ensemble()))
A, B, C = (ensemble(stump(k, -k, k)) for k in (1.0, 2.0, 3.0))
POINTS = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)


def advanced(state: ServerState, *updates: ModelUpdate) -> ServerState:
    return XgbBagging().advance(state, fold(updates, state), Ring())


def thresholds(state: ServerState) -> list[float]:
    return [tree["split_conditions"][0] for tree in trees_in(document_of(state.params))]


def margins(content: bytes) -> np.ndarray:
    booster = xgb.Booster({"nthread": 1}, model_file=bytearray(content))
    found: np.ndarray = booster.predict(xgb.DMatrix(POINTS, nthread=1), output_margin=True)
    return found


def test_a_round_appends_the_trees_of_its_sites_by_their_names() -> None:
    first = advanced(BEGINNING, update("b", B), update("a", A))
    second = advanced(first, update("c", C, round_=2))

    assert thresholds(first) == [1.0, 2.0]
    assert thresholds(second) == [1.0, 2.0, 3.0]
    assert document_of(second.params) == ensemble(trees_in(A)[0], trees_in(B)[0], trees_in(C)[0])
    assert (first.round, second.round) == (1, 2)


def test_trees_of_classes_stay_with_their_class() -> None:
    state = ServerState(layer(ensemble(classes=3)))
    sent = {site: grown(seed, 3, 2) for site, seed in (("a", 1), ("b", 2))}
    partial = XgbBagging().zero(state)
    partial.epochs = 2
    for site, content in sent.items():
        XgbBagging().accumulate(partial, update(site, content), Ring())

    model = document_of(XgbBagging().advance(state, partial, Ring()).params)

    found = model["learner"]["gradient_booster"]["model"]
    assert found["tree_info"] == [0, 1, 2] * 4
    assert found["iteration_indptr"] == [0, 3, 6, 9, 12]
    expected = sum(margins(content) - 0.5 for content in sent.values()) + 0.5
    assert np.allclose(margins(json.dumps(model).encode()), expected, atol=1e-6)


def test_flower_appends_the_same_trees_where_it_holds() -> None:
    """For two classes and one local round; its first reply must be a whole model."""
    sent = [grown(seed) for seed in range(1, 5)]
    theirs = sent[0]
    for content in sent[1:]:
        theirs = aggregate_bagging(theirs, content)

    state = advanced(BEGINNING, *(update(str(k), content) for k, content in enumerate(sent)))

    assert document_of(state.params) == json.loads(theirs)
    assert np.array_equal(margins(state.params["trees"].tobytes()), margins(theirs))


def test_flower_loses_trees_that_are_kept_here() -> None:
    two_rounds = grown(1, rounds=2)
    theirs = json.loads(aggregate_bagging(grown(2), two_rounds))
    partial = XgbBagging().zero(BEGINNING)
    partial.epochs = 2
    XgbBagging().accumulate(partial, update("b", two_rounds), Ring())

    ours = XgbBagging().advance(BEGINNING, partial, Ring())

    assert len(trees_in(theirs)) == 1 + 1
    assert len(trees_in(document_of(ours.params))) == 2


def test_neither_order_nor_shards_show() -> None:
    updates = [update(f"site-{k}", grown(k)) for k in range(6)]
    whole = fold(updates, BEGINNING)
    name = digest_of_fold(whole)
    model = XgbBagging().advance(BEGINNING, whole, Ring()).params["trees"].tobytes()

    for seed in range(4):
        shuffled = random.Random(seed).sample(updates, len(updates))
        parts = fold(shuffled[:seed], BEGINNING), fold(shuffled[seed:], BEGINNING)
        merged = XgbBagging().merge(*parts)
        assert digest_of_fold(merged) == name
        found = XgbBagging().advance(BEGINNING, merged, Ring())
        assert found.params["trees"].tobytes() == model


def test_the_name_of_a_fold_covers_the_trees() -> None:
    names = {digest_of_fold(fold([update("a", x)], BEGINNING)) for x in (A, B, C)}

    assert len(names) == 3


def test_the_way_of_writing_does_not_show() -> None:
    spaced = json.dumps(A, indent=1).encode()

    one, other = (fold([update("a", x)], BEGINNING) for x in (A, spaced))

    assert digest_of_fold(one) == digest_of_fold(other)


def test_what_was_kept_is_wiped_and_arguments_stay_as_they_are() -> None:
    partial = fold([update("a", A)], BEGINNING)
    before = BEGINNING.params["trees"].copy()

    XgbBagging().advance(BEGINNING, partial, Ring())

    assert len(partial.kept) == 0
    assert np.array_equal(BEGINNING.params["trees"], before)


@pytest.mark.parametrize(
    ("sent", "kind", "said"),
    [
        (update("x", b"{"), Incompatible, "no ensemble of trees"),
        (update("x", ensemble()), Incompatible, "0 boosting rounds, not 1 to 1"),
        (update("x", ensemble(*[stump(0, 1, 2)] * 2)), Incompatible, "2 boosting rounds, not 1"),
        (update("x", ensemble(stump(0, 1, 2, feature=2))), Incompatible, "feature 2 of 2"),
        (update("x", grown(1, 3)), Incompatible, "its header"),
        (update("x", ensemble(stump(0, 1, 1e31))), NotFinite, "beyond 1e\\+30"),
        (update("x", A, round_=2), Incompatible, "round 2 came in round 1"),
        (ModelUpdate("x", 1, {"w": np.zeros(3)}, 10), Incompatible, "its layers are w"),
        (ModelUpdate("x", 1, {"trees": np.zeros(3)}, 10), Incompatible, "not bytes"),
        (ModelUpdate("x", 1, layer(A), 0), OutOfRing, "weight 0"),
        (ModelUpdate("x", 1, layer(A), 1 << 40), OutOfRing, "weight"),
        (update("a", A), Incompatible, "a second update"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_one_site_is_refused_and_the_others_go_on(
    sent: ModelUpdate, kind: type[UpdateRefused], said: str
) -> None:
    partial = fold([update("a", A)], BEGINNING)
    before = digest_of_fold(partial)

    with pytest.raises(kind, match=said) as refused:
        XgbBagging().accumulate(partial, sent, Ring())

    assert refused.value.site == sent.site
    assert digest_of_fold(partial) == before
    XgbBagging().accumulate(partial, update("b", B), Ring())
    assert thresholds(XgbBagging().advance(BEGINNING, partial, Ring())) == [1.0, 2.0]


def test_nothing_comes_of_nothing() -> None:
    with pytest.raises(EmptyCohort):
        advanced(BEGINNING)


def test_in_turn_one_site_a_round_goes_on_from_the_one_before() -> None:
    state = BEGINNING
    for number, (site, document) in enumerate([("b", B), ("a", A)], 1):
        sent = update(site, document, number)
        state = XgbCyclic().advance(state, fold([sent], state, XgbCyclic()), Ring())

    assert thresholds(state) == [2.0, 1.0]
    two = fold([update("a", A), update("b", B)], BEGINNING, XgbCyclic())
    with pytest.raises(StrategyError, match="2 sites trained"):
        XgbCyclic().advance(BEGINNING, two, Ring())


def test_no_bound_is_claimed_for_what_one_site_changes() -> None:
    assert XgbBagging().sensitivity(1.0, 10).parts == {"delta": float("inf")}


@pytest.mark.parametrize("text", ['{"kind":"xgb-bagging"}', '{"kind":"xgb-cyclic"}'])
def test_a_job_names_them_by_their_kind(text: str) -> None:
    strategy: Document = msgspec.json.decode(text, type=AnyStrategy)  # type: ignore[assignment]

    assert msgspec.json.encode(strategy).decode() == text
