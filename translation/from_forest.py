"""An ensemble of boosted trees as ONNX, written node by node; no XGBoost is needed for it.

ONNX's ``TreeEnsembleRegressor`` compares and adds in float32 as XGBoost does: an example goes left
if its feature is less than the threshold, and to the side that the node names if the feature is
missing (NaN). Covered are the ensembles that ``strategies.forest`` reads, for ``OBJECTIVES``.

Source: ONNX operators ai.onnx.ml 3, TreeEnsembleRegressor; XGBoost 3.2, ``src/objective``, for what
turns a margin into an answer.
"""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any, Final

from onnx import TensorProto, checker, helper

from strategies.forest import NO_CHILD, Forest, Tree
from translation import Untranslatable
from translation.signature import BATCH, INPUT, OUTPUT

ML_OPSET: Final = 3
IR_VERSION: Final = 8
OBJECTIVES: Final = ("binary:logistic", "multi:softprob", "reg:squarederror")


def to_onnx(forest: Forest, path: Path, opset: int) -> None:
    """Write ``forest`` to ``path``: probabilities with a column for each class, or one value.

    Args:
        forest: Of one of ``OBJECTIVES``.
        path: One file.
        opset: Version of the operator set.

    Raises:
        Untranslatable: It has another objective.
    """
    if forest.objective not in OBJECTIVES:
        raise Untranslatable(f"there is no ONNX form for the objective {forest.objective}")
    columns = 2 if forest.objective == "binary:logistic" else forest.num_groups
    base = [_margin(forest.objective, score) for score in forest.base_scores]
    constants = [helper.make_tensor("base", TensorProto.FLOAT, [1, len(base)], base)]
    nodes = [_ensemble(forest), helper.make_node("Add", ["sums", "base"], ["margins"])]
    if forest.objective == "binary:logistic":
        constants.append(helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]))
        nodes += [
            helper.make_node("Sigmoid", ["margins"], ["second"]),
            helper.make_node("Sub", ["one", "second"], ["first"]),
            helper.make_node("Concat", ["first", "second"], [OUTPUT], axis=1),
        ]
    elif forest.objective == "multi:softprob":
        nodes.append(helper.make_node("Softmax", ["margins"], [OUTPUT], axis=1))
    else:
        nodes.append(helper.make_node("Identity", ["margins"], [OUTPUT]))
    graph = helper.make_graph(
        nodes,
        "trees",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [BATCH, forest.num_features])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [BATCH, columns])],
        initializer=constants,
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _ensemble(forest: Forest) -> Any:  # noqa: ANN401 - onnx has no types
    """Sums of the leaves of each group.

    The base scores are added by a node of their own, for onnxruntime counts ``base_values`` twice
    where a group has no tree.
    """
    columns: dict[str, list[Any]] = {name: [] for name in (*_NODE, *_TARGET)}
    for number, (group, tree) in enumerate(zip(forest.groups, forest.trees(), strict=True)):
        _add(columns, number, group, tree)
    for number in range(0 if forest.num_trees else forest.num_groups):
        _add_leaf(columns, number, 0, number, 0.0)  # there must be a tree: one that adds nothing
    return helper.make_node(
        "TreeEnsembleRegressor",
        [INPUT],
        ["sums"],
        domain="ai.onnx.ml",
        n_targets=forest.num_groups,
        aggregate_function="SUM",
        post_transform="NONE",
        **columns,
    )


_NODE: Final = (
    *("nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_modes", "nodes_values"),
    *("nodes_truenodeids", "nodes_falsenodeids", "nodes_missing_value_tracks_true"),
)
_TARGET: Final = ("target_treeids", "target_nodeids", "target_ids", "target_weights")


def _add(columns: dict[str, list[Any]], number: int, group: int, tree: Tree) -> None:
    for node, left in enumerate(tree.left_children):
        if left == NO_CHILD:
            _add_leaf(columns, number, node, group, tree.split_conditions[node])
            continue
        _extend(
            columns,
            _NODE,
            *(number, node, tree.split_indices[node], "BRANCH_LT", tree.split_conditions[node]),
            *(left, tree.right_children[node], tree.default_left[node]),
        )


def _add_leaf(
    columns: dict[str, list[Any]], number: int, node: int, group: int, weight: float
) -> None:
    _extend(columns, _NODE, number, node, 0, "LEAF", 0.0, 0, 0, 0)
    _extend(columns, _TARGET, number, node, group, weight)


def _extend(columns: dict[str, list[Any]], names: tuple[str, ...], *values: object) -> None:
    for name, value in zip(names, values, strict=True):
        columns[name].append(value)


def _margin(objective: str, score: float) -> float:
    """What a base score is before the objective turns it into an answer."""
    return log(score / (1 - score)) if objective == "binary:logistic" else score
