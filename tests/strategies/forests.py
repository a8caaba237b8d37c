"""Ensembles for tests: written out by hand, and grown by XGBoost itself."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import xgboost as xgb

from strategies import ModelUpdate, Partial, Ring, ServerState
from strategies.forest import LAYER
from strategies.xgb_bagging import XgbBagging

Document = dict[str, Any]


def stump(threshold: float, left: float, right: float, feature: int = 0) -> Document:
    """``left`` for examples whose feature is below ``threshold``, else ``right``."""
    return {
        "base_weights": [0.0, left, right],
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
        "default_left": [0, 0, 0],
        "id": 0,
        "left_children": [1, -1, -1],
        "loss_changes": [1.0, 0.0, 0.0],
        "parents": [2147483647, 0, 0],
        "right_children": [2, -1, -1],
        "split_conditions": [threshold, left, right],
        "split_indices": [feature, 0, 0],
        "split_type": [0, 0, 0],
        "sum_hessian": [2.0, 1.0, 1.0],
        "tree_param": {
            "num_deleted": "0",
            "num_feature": "2",
            "num_nodes": "3",
            "size_leaf_vector": "1",
        },
    }


def ensemble(*trees: Document, classes: int = 0) -> Document:
    """A document of these trees, each a boosting round (or a class of one) of its own."""
    groups = max(1, classes)
    softmax = {"name": "multi:softprob", "softmax_multiclass_param": {"num_class": str(classes)}}
    binary = {"name": "binary:logistic", "reg_loss_param": {"scale_pos_weight": "1"}}
    return {
        "learner": {
            "attributes": {},
            "feature_names": [],
            "feature_types": [],
            "gradient_booster": {
                "model": {
                    "cats": {"enc": [], "feature_segments": [], "sorted_idx": []},
                    "gbtree_model_param": {
                        "num_parallel_tree": "1",
                        "num_trees": str(len(trees)),
                    },
                    "iteration_indptr": list(range(0, len(trees) + 1, groups)),
                    "tree_info": [k % groups for k in range(len(trees))],
                    "trees": [{**copy.deepcopy(tree), "id": k} for k, tree in enumerate(trees)],
                },
                "name": "gbtree",
            },
            "learner_model_param": {
                "base_score": f"[{','.join(['5E-1'] * groups)}]",
                "boost_from_average": "0",
                "num_class": str(classes),
                "num_feature": "2",
                "num_target": "1",
            },
            "objective": softmax if classes else binary,
        },
        "version": [3, 2, 0],
    }


def trees_in(document: Document) -> list[Document]:
    found: list[Document] = document["learner"]["gradient_booster"]["model"]["trees"]
    return found


def layer(document: Document | bytes) -> dict[str, np.ndarray]:
    """A document as the model of a federation."""
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return {LAYER: np.frombuffer(content, np.uint8)}


def document_of(params: Any) -> Document:
    found: Document = json.loads(params[LAYER].tobytes())
    return found


def update(site: str, document: Document | bytes, round_: int = 1) -> ModelUpdate:
    return ModelUpdate(site, round_, layer(document), 10)


def fold(
    updates: Sequence[ModelUpdate], state: ServerState, strategy: XgbBagging | None = None
) -> Partial:
    strategy = strategy or XgbBagging()
    partial = strategy.zero(state)
    for one in updates:
        strategy.accumulate(partial, one, Ring())
    return partial


@cache
def grown(seed: int, classes: int = 0, rounds: int = 1, depth: int = 3) -> bytes:
    """What XGBoost makes of some examples with two features, as it writes it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 2)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0) + (x[:, 0] > 1) * (classes > 2)
    params = {
        "objective": "multi:softprob" if classes else "binary:logistic",
        "base_score": 0.5,
        "max_depth": depth,
        "nthread": 1,
        "verbosity": 0,
        **({"num_class": classes} if classes else {}),
    }
    empty = xgb.train(params, xgb.DMatrix(x[:1], y[:1] * 0, nthread=1), 0).save_raw("json")
    del params["base_score"]
    booster = xgb.Booster(params, model_file=empty)
    data = xgb.DMatrix(x, y, nthread=1)
    for k in range(rounds):
        booster.update(data, k)
    return bytes(booster.save_raw("json"))


def altered(document: Document, change: Callable[[Document], object]) -> Document:
    """A copy that ``change`` was let loose on."""
    copied = copy.deepcopy(document)
    change(copied)
    return copied
