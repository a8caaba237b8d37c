"""What every strategy's fold promises: order, shards and workers do not show in it."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import (
    KINDS,
    CohortTooSmall,
    EmptyCohort,
    FedAvg,
    Incompatible,
    ModelUpdate,
    NotFinite,
    OutOfRing,
    Partial,
    Ring,
    ServerState,
    Strategy,
    digest_of_fold,
)
from strategies.median import CoordinateMedian
from strategies.qfedavg import QFedAvg
from tests.strategies.cohorts import (
    MODEL,
    RING,
    begun,
    completed,
    deltas,
    fold,
    scalar,
    scalars,
    updates,
)

SPECIMENS = {tag: kind() for tag, kind in KINDS.items() if kind.model_kind == "arrays"}
SPECIMENS["qfedavg"] = QFedAvg(lipschitz=0.1)  # for updates as large as those drawn here
EVERY = [pytest.param(one, id=tag) for tag, one in SPECIMENS.items()]
FOLDS = [pytest.param(FedAvg(), id="sums"), pytest.param(CoordinateMedian(), id="kept")]
FURTHER = [pytest.param(one, id=tag) for tag, one in SPECIMENS.items() if one.sums or one.vectors]
SEVEN = 7  # enough for every strategy's own defaults
SCALAR = {"w": np.zeros((), np.float32)}


def same(left: Partial, right: Partial) -> bool:
    """Equality in every field, written without ``digest_of_fold``."""
    return (
        (left.round, left.shapes, left.sites, left.weight, left.num_updates)
        == (right.round, right.shapes, right.sites, right.weight, right.num_updates)
        and left.sums.keys() == right.sums.keys()
        and all(np.array_equal(left.sums[name], right.sums[name]) for name in left.sums)
        and left.kept.keys() == right.kept.keys()
        and all(
            np.array_equal(
                left.kept[site].read(name, 0, 1 << 40), right.kept[site].read(name, 0, 1 << 40)
            )
            for site in left.kept
            for name in left.shapes
        )
    )


@pytest.mark.parametrize("strategy", FOLDS)
@given(cohort=updates(), data=st.data())
def test_order_does_not_show(
    strategy: Strategy, cohort: list[ModelUpdate], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(cohort))

    assert same(fold(shuffled, strategy), fold(cohort, strategy))
    assert digest_of_fold(fold(shuffled, strategy)) == digest_of_fold(fold(cohort, strategy))


@pytest.mark.parametrize("strategy", FOLDS)
@given(cohort=updates(), cuts=st.lists(st.integers(0, 6), max_size=3), flip=st.booleans())
def test_shards_do_not_show(
    strategy: Strategy, cohort: list[ModelUpdate], cuts: list[int], flip: bool
) -> None:
    bounds = [0, *sorted(cuts), len(cohort)]
    shards = [fold(cohort[a:b], strategy) for a, b in itertools.pairwise(bounds)]
    merged = shards.pop(0)
    for shard in shards:
        merged = strategy.merge(shard, merged) if flip else strategy.merge(merged, shard)

    assert same(merged, fold(cohort, strategy))


@pytest.mark.parametrize("strategy", FURTHER)
@given(cohort=updates(fewest=2), data=st.data())
def test_order_and_shards_do_not_show_in_what_is_folded_beside_the_delta(
    strategy: Strategy, cohort: list[ModelUpdate], data: st.DataObject
) -> None:
    told = st.floats(1, 20)
    cohort = [
        dataclasses.replace(completed(strategy, u), scalars=dict.fromkeys(strategy.scalars, s))
        for u, s in ((u, data.draw(told)) for u in cohort)
    ]
    ring = Ring(magnitude=4096.0)
    shuffled = data.draw(st.permutations(cohort))
    cut = data.draw(st.integers(0, len(cohort)))

    whole = fold(cohort, strategy, ring=ring)
    left, right = (fold(part, strategy, ring=ring) for part in (shuffled[:cut], shuffled[cut:]))

    assert same(strategy.merge(right, left), whole)
    assert digest_of_fold(right) == digest_of_fold(whole)


@given(cohort=updates())
def test_the_mean_is_the_exact_mean_of_what_the_ring_holds(cohort: list[ModelUpdate]) -> None:
    mean = FedAvg().finish(fold(cohort), RING)

    total = sum(update.num_examples for update in cohort)
    for name in MODEL:
        exact = sum(
            update.num_examples * round(float(update.delta[name].flat[0]) * 2**24)
            for update in cohort
        )
        assert float(mean[name].flat[0]) == pytest.approx(exact / total / 2**24, rel=1e-15)


@given(cohort=updates())
def test_the_mean_lies_between_the_sites(cohort: list[ModelUpdate]) -> None:
    mean = FedAvg().finish(fold(cohort), RING)
    for name in MODEL:
        sites = np.stack([update.delta[name] for update in cohort])
        assert (mean[name] >= sites.min(axis=0) - 2.0**-24).all()
        assert (mean[name] <= sites.max(axis=0) + 2.0**-24).all()


@given(delta=deltas(), weights=st.lists(st.integers(1, 1000), min_size=1, max_size=4))
def test_a_site_counts_as_often_as_its_examples(
    delta: dict[str, np.ndarray], weights: list[int]
) -> None:
    def sites(counts: list[int]) -> list[ModelUpdate]:
        return [
            ModelUpdate(site=str(i), round=1, delta=delta, num_examples=n)
            for i, n in enumerate(counts)
        ]

    apart, together = fold(sites(weights)), fold(sites([sum(weights)]))

    assert all(np.array_equal(apart.sums[name], together.sums[name]) for name in MODEL)
    assert apart.weight == together.weight


@given(cohort=updates(), exponent=st.integers(-4, 4))
def test_scaling_values_and_ring_alike_changes_no_sum(
    cohort: list[ModelUpdate], exponent: int
) -> None:
    factor = np.float32(2.0**exponent)
    scaled = [
        dataclasses.replace(u, delta={n: x * factor for n, x in u.delta.items()}) for u in cohort
    ]
    ring = Ring(fraction_bits=24 - exponent, magnitude=64.0 * float(factor))

    sums, of_scaled = fold(cohort).sums, fold(scaled, ring=ring).sums

    assert all(np.array_equal(of_scaled[name], sums[name]) for name in MODEL)


@pytest.mark.parametrize("strategy", EVERY)
@settings(max_examples=20)
@given(cohort=updates(fewest=SEVEN, most=SEVEN))
def test_a_round_writes_into_none_of_its_arguments(
    strategy: Strategy, cohort: list[ModelUpdate]
) -> None:
    state = strategy.init(MODEL)
    cohort = [completed(strategy, update) for update in cohort]
    cohort_before, state_before = copy.deepcopy(cohort), copy.deepcopy(state)
    for update in cohort:
        for x in update.delta.values():
            x.flags.writeable = False

    partial = begun(strategy, state)
    for update in cohort:
        assert strategy.accumulate(partial, update, RING) is partial
    partial_before = fold(cohort_before, strategy)
    delta = strategy.finish(partial, RING)
    delta_before = copy.deepcopy(delta)
    after = strategy.step(state, delta)

    assert same(partial, partial_before)
    assert all(np.array_equal(delta[name], delta_before[name]) for name in delta_before)
    for left, right in [(state.params, state_before.params)] + [
        (state.moments[m], state_before.moments[m]) for m in state.moments
    ]:
        assert all(np.array_equal(left[name], right[name]) for name in MODEL)
    for update, before in zip(cohort, cohort_before, strict=True):
        assert all(np.array_equal(update.delta[n], before.delta[n]) for n in MODEL)
    assert (state.round, after.round) == (0, 1)
    assert after.moments.keys() == state.moments.keys()


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_model_keeps_its_dtype_and_shapes(strategy: Strategy, dtype: type[np.floating]) -> None:
    state = strategy.init({"w": np.ones((2, 3), dtype), "b": np.ones((), dtype)})
    delta = {"w": np.full((2, 3), 0.5), "b": np.array(0.5)}
    delta |= {f"{v}/{name}": x for v in strategy.vectors for name, x in delta.items()}

    for _ in range(2):
        state = strategy.step(state, delta)

    for tree in (state.params, *state.moments.values()):
        assert {name: x.shape for name, x in tree.items()} == {"w": (2, 3), "b": ()}
        assert {x.dtype for x in tree.values()} == {np.dtype(dtype)}


@pytest.mark.parametrize("strategy", EVERY)
def test_shapes_do_not_broadcast(strategy: Strategy) -> None:
    with pytest.raises(ValueError, match="layers differ"):
        strategy.step(strategy.init({"w": np.zeros(3)}), {"w": np.zeros(1)})


@pytest.mark.parametrize("strategy", FOLDS)
@pytest.mark.parametrize(
    ("update", "error"),
    [
        (scalar("site-0009", np.nan), NotFinite),
        (scalar("site-0009", 65.0), OutOfRing),
        (scalar("site-0009", 1.0, num_examples=0), OutOfRing),
        (scalar("site-0001", 1.0), Incompatible),
        (ModelUpdate("site-0009", 2, {"w": np.zeros((), np.float32)}, 1), Incompatible),
        (ModelUpdate("site-0009", 1, {"v": np.zeros((), np.float32)}, 1), Incompatible),
        (ModelUpdate("site-0009", 1, {"w": np.zeros(1, np.float32)}, 1), Incompatible),
    ],
    ids=["nan", "too large", "no examples", "second of its site", "late", "layer", "shape"],
)
def test_a_refused_update_leaves_the_fold_as_it_was(
    strategy: Strategy, update: ModelUpdate, error: type[Exception]
) -> None:
    partial = fold(scalars(1.0, 2.0, 3.0), strategy, SCALAR)
    before = fold(scalars(1.0, 2.0, 3.0), strategy, SCALAR)

    with pytest.raises(error, match=update.site):
        strategy.accumulate(partial, update, RING)

    assert same(partial, before)


@pytest.mark.parametrize("strategy", FOLDS)
def test_a_bad_last_layer_leaves_the_first_alone(strategy: Strategy) -> None:
    model = {"a": np.zeros(2), "z": np.zeros(2)}
    update = ModelUpdate("site-0001", 1, {"a": np.ones(2), "z": np.array([0.0, np.nan])}, 1)
    partial = strategy.zero(ServerState(model))

    with pytest.raises(NotFinite, match="layer z"):
        strategy.accumulate(partial, update, RING)

    assert same(partial, strategy.zero(ServerState(model)))


@pytest.mark.parametrize("strategy", FOLDS)
def test_folds_of_another_round_model_or_the_same_site_do_not_merge(strategy: Strategy) -> None:
    left = fold(scalars(1.0, 2.0), strategy, SCALAR)
    before = fold(scalars(1.0, 2.0), strategy, SCALAR)
    later = strategy.zero(ServerState(SCALAR, round=1))
    other = strategy.zero(ServerState({"v": np.zeros(())}))

    for right in (later, other, fold(scalars(5.0), strategy, SCALAR)):
        with pytest.raises(ValueError, match="fold"):
            strategy.merge(left, right)

    assert same(left, before)


def test_folds_of_cohorts_from_different_populations_do_not_merge() -> None:
    left, right = fold(scalars(1.0), model=SCALAR), fold([scalar("b", 1.0)], model=SCALAR)
    right.population = 7

    with pytest.raises(ValueError, match="fold"):
        FedAvg().merge(left, right)


@pytest.mark.parametrize("strategy", FURTHER)
def test_a_model_whose_layer_would_be_taken_for_another_is_refused(strategy: Strategy) -> None:
    names = [*strategy.folded(SCALAR).keys() - SCALAR.keys()]

    with pytest.raises(ValueError, match="reserved"):
        strategy.zero(ServerState({"w": np.zeros(()), names[0]: np.zeros(())}))


@pytest.mark.parametrize("strategy", EVERY)
def test_an_empty_cohort_has_no_delta(strategy: Strategy) -> None:
    with pytest.raises(EmptyCohort):
        strategy.finish(strategy.zero(ServerState(SCALAR)), RING)


def test_a_median_of_two_means_nothing() -> None:
    with pytest.raises(CohortTooSmall, match="2 updates came in round 1, 3 are needed"):
        CoordinateMedian().finish(fold(scalars(1, 2), CoordinateMedian(), SCALAR), RING)


def test_the_digest_of_a_fold_is_written_down() -> None:
    """The bytes, put together by hand: a header, then every integer of every layer."""
    partial = fold([scalar("a", 1.0, 2), scalar("b", -0.5, 1)], model=SCALAR)
    header = b'["foedus-fold-1",[["w",[]]],3,2,[]]\n'
    total = (2 * 2**24 - 2**23).to_bytes(8, "little", signed=True)

    assert digest_of_fold(partial) == f"sha256:{hashlib.sha256(header + total).hexdigest()}"


def test_the_digest_of_kept_updates_is_written_down() -> None:
    partial = fold([scalar("b", 1.0), scalar("a", -1.0)], CoordinateMedian(), SCALAR)
    header = b'["foedus-fold-1",[["w",[]]],2,2,["a","b"]]\n'
    kept = b"".join((v * 2**24).to_bytes(8, "little", signed=True) for v in (-1, 1))

    assert digest_of_fold(partial) == f"sha256:{hashlib.sha256(header + kept).hexdigest()}"


@pytest.mark.parametrize("strategy", FOLDS)
def test_every_part_of_a_fold_shows_in_its_digest(strategy: Strategy) -> None:
    def digest(*cohort: ModelUpdate, model: dict[str, np.ndarray] = SCALAR) -> str:
        return digest_of_fold(fold(cohort, strategy, model))

    def named(name: str, shape: tuple[int, ...]) -> str:
        update = ModelUpdate("a", 1, {name: np.ones(shape, np.float32)}, 1)
        return digest(update, model={name: np.zeros(shape, np.float32)})

    digests = [
        digest(),
        digest(scalar("a", 1.0)),
        digest(scalar("a", 1.0, 2)),
        digest(scalar("a", 1.0 + 2**-23)),
        digest(scalar("a", 1.0), scalar("b", 0.0)),
        named("v", ()),
        named("v", (1,)),
        named("v", (2, 1)),
        named("v", (1, 2)),
    ]
    assert len(set(digests)) == len(digests)


def test_layers_keep_their_digest_in_any_order() -> None:
    a, b = np.ones(2), np.full(3, 2.0)
    there = fold([ModelUpdate("s", 1, {"a": a, "b": b}, 1)], model={"a": a, "b": b})
    back = fold([ModelUpdate("s", 1, {"b": b, "a": a}, 1)], model={"b": b, "a": a})

    assert digest_of_fold(there) == digest_of_fold(back)


@pytest.mark.parametrize("strategy", EVERY)
def test_a_strategy_is_its_own_document(strategy: Strategy) -> None:
    text = msgspec.json.encode(strategy)
    assert msgspec.json.decode(text, type=type(strategy)) == strategy


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_advancing_is_finishing_and_stepping_to_the_same_bits(
    strategy: Strategy, dtype: type[np.floating]
) -> None:
    """Long layers, short, empty and none at all, for two rounds."""
    rng = np.random.default_rng(3)
    shapes = {"long": (140, 1001), "odd": (3,), "none": (0, 2), "one": ()}
    apart = strategy.init({n: rng.normal(size=s).astype(dtype) for n, s in shapes.items()})
    at_once = apart
    for number in (1, 2):
        partials = [begun(strategy, apart), begun(strategy, at_once)]
        for partial in partials:
            partial.population = 3 * SEVEN
        for i in range(SEVEN):
            delta = {n: rng.normal(0, 0.1, s).astype(np.float32) for n, s in shapes.items()}
            update = completed(strategy, ModelUpdate(f"s{i}", number, delta, i + 1))
            for partial in partials:
                strategy.accumulate(partial, update, RING)
        apart = strategy.step(apart, strategy.finish(partials[0], RING))
        at_once = strategy.advance(at_once, partials[1], RING)

    assert at_once.round == apart.round == 2
    for one, other in [(at_once.params, apart.params)] + [
        (at_once.moments[m], apart.moments[m]) for m in apart.moments
    ]:
        assert list(one) == list(other)
        for name in shapes:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


def test_advancing_leaves_alone_what_somebody_still_looks_at() -> None:
    model = {"w": np.zeros(4, np.float32)}
    update = ModelUpdate("a", 1, {"w": np.ones(4, np.float32)}, 3)
    partial = fold([update], model=model)
    seen = partial.sums["w"]

    state = FedAvg().advance(ServerState(model), partial, RING)

    assert state.params["w"].tolist() == [1.0] * 4
    assert seen.shape == (4,)
    assert not np.shares_memory(seen, state.params["w"])


@pytest.mark.parametrize("strategy", EVERY)
def test_a_cohort_that_is_too_small_does_not_advance(strategy: Strategy) -> None:
    few = scalars(*[1.0] * (strategy.min_updates - 1))
    with pytest.raises((EmptyCohort, CohortTooSmall)):
        strategy.advance(strategy.init(SCALAR), fold(few, strategy, SCALAR), RING)
