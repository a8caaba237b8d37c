"""Ensembles of trees: what is taken, and that nothing that is taken can harm XGBoost."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.forest import (
    MOST_DEPTH,
    ForestInvalid,
    ValueTooLarge,
    content_of,
    read_forest,
    read_growth,
)
from tests.strategies.forests import (
    Document,
    altered,
    ensemble,
    grown,
    stump,
    trees_in,
)

EMPTY = read_forest(json.dumps(ensemble()).encode())
POINTS = np.array([[-2.0, 0.5], [0.0, 3.0], [1.5, -1.0], [np.nan, 1.0]], np.float32)


def growth(document: Document | bytes, most_rounds: int = 3) -> bytes:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return read_growth(content, EMPTY, most_rounds).write()


def margins(content: bytes) -> np.ndarray:
    booster = xgb.Booster({"nthread": 1}, model_file=bytearray(content))
    found: np.ndarray = booster.predict(xgb.DMatrix(POINTS, nthread=1), output_margin=True)
    return found


def chain(depth: int) -> Document:
    """A tree that splits once more at every right child."""
    size = 2 * depth + 1
    tree = stump(0.0, 0.0, 0.0)
    tree["left_children"] = [k + 1 if k % 2 == 0 and k < size - 1 else -1 for k in range(size)]
    tree["right_children"] = [k + 2 if k % 2 == 0 and k < size - 1 else -1 for k in range(size)]
    tree["parents"] = [2147483647] + [(k - 1) // 2 * 2 for k in range(1, size)]
    for name in ("base_weights", "loss_changes", "split_conditions", "sum_hessian"):
        tree[name] = [0.0] * size
    for name in ("default_left", "split_indices", "split_type"):
        tree[name] = [0] * size
    tree["tree_param"]["num_nodes"] = str(size)
    return tree


def test_what_is_written_answers_by_the_thresholds_and_leaves_in_it() -> None:
    content = growth(ensemble(stump(0.0, -1.5, 2.5), stump(1.0, 0.25, 0.5, feature=1)))

    # below 0 goes left; 0 itself right; what is missing right, as default_left says
    assert margins(content).tolist() == [-1.5 + 0.25, 2.5 + 0.5, 2.5 + 0.25, 2.5 + 0.5]


@pytest.mark.parametrize(("classes", "rounds"), [(0, 1), (0, 3), (3, 2)])
def test_what_xgboost_writes_comes_back_with_the_same_answers(classes: int, rounds: int) -> None:
    content = grown(1, classes, rounds)
    empty = read_forest(content).emptied()

    written = read_growth(content, empty, rounds).write()

    assert json.loads(written) == json.loads(content)
    assert np.array_equal(margins(written), margins(content))
    assert read_growth(written, empty, rounds).write() == written


def test_a_forest_tells_what_it_is() -> None:
    forest = read_forest(grown(1, 3, 2))

    assert (forest.num_features, forest.num_groups, forest.num_trees) == (2, 3, 6)
    assert (forest.num_rounds, forest.groups) == (2, [0, 1, 2, 0, 1, 2])
    assert (forest.objective, forest.base_scores) == ("multi:softprob", (0.5, 0.5, 0.5))
    assert forest.emptied().num_trees == 0


def test_a_tree_as_deep_as_may_be_is_taken_and_a_deeper_one_is_not() -> None:
    assert growth(ensemble(chain(MOST_DEPTH)))
    with pytest.raises(ForestInvalid, match="17 splits deep, more than 16"):
        growth(ensemble(chain(MOST_DEPTH + 1)))


def node(name: str, index: int, value: object) -> Callable[[Document], object]:
    return lambda d: trees_in(d)[1][name].__setitem__(index, value)


def head(*path: str, value: object) -> Callable[[Document], object]:
    def change(document: Document) -> None:
        *way, last = path
        for key in way:
            document = document[key]
        document[last] = value

    return change


MODEL = ("learner", "gradient_booster", "model")
PARAM = ("learner", "learner_model_param")
BAD: dict[str, tuple[Callable[[Document], object], str]] = {
    "a child out of range": (node("left_children", 0, 7), "child of one other"),
    "a negative child": (node("left_children", 0, -2), "left_children"),
    "a child that is the root": (node("left_children", 0, 0), "child of one other"),
    "one child only": (node("left_children", 0, -1), "child of one other"),
    "twice the same child": (node("right_children", 0, 1), "child of one other"),
    "a cycle": (node("left_children", 1, 1), "child of one other"),
    "another parent": (node("parents", 1, 2), "contradict"),
    "a root with a parent": (node("parents", 0, 0), "contradict"),
    "a feature out of range": (node("split_indices", 0, 2), "feature 2 of 2"),
    "a negative feature": (node("split_indices", 1, -1), "a split asks for"),
    "a huge feature": (node("split_indices", 0, 1 << 40), "split_indices"),
    "a list that is short": (lambda d: trees_in(d)[1]["split_conditions"].pop(), "one length"),
    "other sizes": (lambda d: trees_in(d)[1]["tree_param"].update(num_nodes="4"), "tree_param"),
    "other features": (lambda d: trees_in(d)[1]["tree_param"].update(num_feature="9"), "tree_par"),
    "a size as text": (lambda d: trees_in(d)[1]["tree_param"].update(num_nodes="x"), "num_nodes"),
    "a deleted node": (lambda d: trees_in(d)[1]["tree_param"].update(num_deleted="1"), "deleted"),
    "a leaf of vectors": (
        lambda d: trees_in(d)[1]["tree_param"].update(size_leaf_vector="2"),
        "leaf_vector",
    ),
    "categories": (node("split_type", 0, 1), "split_type"),
    "a list of categories": (lambda d: trees_in(d)[1]["categories"].append(1), "categories"),
    "text for a number": (node("split_conditions", 0, "1"), "split_conditions"),
    "a number that is none": (node("split_conditions", 0, float("nan")), "no ensemble"),
    "infinity": (node("split_conditions", 1, float("inf")), "no ensemble"),
    "an unknown field": (lambda d: trees_in(d)[1].update(more=1), "more"),
    "a missing field": (lambda d: trees_in(d)[1].pop("parents"), "parents"),
    "no nodes": (
        lambda d: trees_in(d)[1].update({k: [] for k, v in stump(0, 0, 0).items() if v == [0] * 3}),
        "one length",
    ),
    "other counts": (head(*MODEL, "gbtree_model_param", "num_trees", value="3"), "gbtree_model"),
    "other rounds": (head(*MODEL, "iteration_indptr", value=[0, 2]), "iteration_indptr"),
    "other groups": (head(*MODEL, "tree_info", value=[0, 1]), "tree_info"),
    "no parallel": (head(*MODEL, "gbtree_model_param", "num_parallel_tree", value="0"), "1..1000"),
    "other parallel": (
        head(*MODEL, "gbtree_model_param", "num_parallel_tree", value="2"),
        "iteration_indptr",
    ),
    "another booster": (head("learner", "gradient_booster", "name", value="dart"), "name"),
    "another objective": (head("learner", "objective", "name", value="reg:x"), "header"),
    "another version": (head("version", value=[3, 1, 0]), "header"),
    "another base score": (head(*PARAM, "base_score", value="[4E-1]"), "header"),
    "no base score": (head(*PARAM, "base_score", value="half"), "base_score"),
    "two base scores": (head(*PARAM, "base_score", value="[5E-1,5E-1]"), "base_score"),
    "more features": (head(*PARAM, "num_feature", value="3"), "header"),
    "more classes": (head(*PARAM, "num_class", value="3"), "whole rounds"),
    "more targets": (head(*PARAM, "num_target", value="2"), "num_target"),
    "an attribute": (head("learner", "attributes", value={"a": "b"}), "attributes"),
    "no trees": (lambda d: d.update(ensemble()), "0 boosting rounds"),
    "too many trees": (lambda d: d.update(ensemble(*[stump(0, 1, 2)] * 4)), "4 boosting rounds"),
}


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD)
def test_what_is_no_tree_is_refused(change: Callable[[Document], object], said: str) -> None:
    good = ensemble(stump(0.0, -1.0, 1.0), stump(1.0, 0.5, -0.5))
    assert growth(good)

    with pytest.raises(ForestInvalid, match=said):
        growth(altered(good, change))


@pytest.mark.parametrize("index", [0, 1])
def test_a_number_whose_sums_would_overflow_is_refused(index: int) -> None:
    with pytest.raises(ValueTooLarge, match="split_conditions holds a number beyond 1e\\+30"):
        growth(altered(ensemble(*[stump(0, 1, 2)] * 2), node("split_conditions", index, -1.1e30)))


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"learner":'], ids=repr
)
def test_bytes_that_are_no_document_are_refused(content: bytes) -> None:
    with pytest.raises(ForestInvalid):
        read_forest(content)


@pytest.mark.parametrize(
    "params",
    [{}, {"w": np.zeros(3, np.uint8)}, {"trees": np.zeros(3)}, {"trees": np.zeros((1, 3), "u1")}],
    ids=["nothing", "another layer", "numbers", "a table"],
)
def test_other_layers_are_no_ensemble(params: dict[str, np.ndarray]) -> None:
    with pytest.raises(ForestInvalid):
        content_of(params)


def test_what_grows_leaves_what_it_grew_from_as_it_was() -> None:
    content = grown(2, 0, 2)
    forest = read_forest(content)
    before = forest.write()

    after = forest.grown_by([read_growth(content, forest.emptied(), 2)])

    assert (forest.num_trees, after.num_trees) == (2, 4)
    assert forest.write() == before


VALUES = st.one_of(
    st.integers(-3, 9),
    st.sampled_from([2**31 - 1, 2**31, -(2**31), 2**63, 10**30, 1e29, -1e38, 1e308, 0.1, 1e-45]),
    st.sampled_from(["", "0", "1", "99999999", "-1", None, True, [], {}, [0], "gbtree"]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, part in inner if isinstance(value, dict | list) else ():
        found.append((*path, key))
        found += places(part, (*path, key)) if isinstance(part, dict | list) else []
    return found


WHOLE = json.loads(grown(3, 0, 2, depth=2))
PLACES = places(WHOLE)


@settings(max_examples=200)
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3))
def test_a_document_with_changed_values_is_refused_or_harmless(
    changes: list[tuple[tuple[Any, ...], Any]],
) -> None:
    def change(document: Document) -> None:
        for (*way, last), value in changes:
            part: Any = document
            try:
                for key in way:
                    part = part[key]
                part[last] = value
            except (KeyError, IndexError, TypeError):
                continue  # an earlier change took the place away

    _refused_or_harmless(json.dumps(altered(WHOLE, change)).encode())


@settings(max_examples=200)
@given(
    at=st.integers(0, len(grown(3, 0, 2, depth=2)) - 1),
    length=st.integers(0, 3),
    instead=st.binary(max_size=3) | st.sampled_from([b"9", b"-", b"0", b",", b"]", b"e9"]),
)
def test_a_document_with_changed_bytes_is_refused_or_harmless(
    at: int, length: int, instead: bytes
) -> None:
    content = grown(3, 0, 2, depth=2)

    _refused_or_harmless(content[:at] + instead + content[at + length :])


def _refused_or_harmless(content: bytes) -> None:
    """XGBoost ends the process where it reads beyond its arrays: then this test ends too."""
    try:
        written = read_growth(content, EMPTY, 3).write()
    except ForestInvalid:
        return
    booster = xgb.Booster({"nthread": 1}, model_file=bytearray(written))
    assert np.isfinite(booster.predict(xgb.DMatrix(POINTS, nthread=1), output_margin=True)).all()
    booster.update(xgb.DMatrix(POINTS, np.arange(4) % 2, nthread=1), booster.num_boosted_rounds())
    assert booster[:1].save_raw("json")
