"""Ensembles of boosted trees in the JSON form of XGBoost, read strictly and written canonically.

XGBoost's own loader believes what it reads: a child out of range ends the process, and a cycle
never ends. So a document that came from elsewhere is taken apart here, every array of every tree is
checked, and what goes on is written anew from what was understood.

Source: the model schema of XGBoost 3.2, ``doc/model.schema`` and "Introduction to Model IO". Taken
are plain trees alone: one value a leaf, numerical splits, nothing pruned away, children after their
parent, which is how the histogram method makes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar, cast

import msgspec
import numpy as np
from msgspec import Meta, Raw

from strategies.update import Array, Parameters

LAYER: Final = "trees"
"""Name of the one layer of a model that is an ensemble: its document, as uint8."""
MOST_DEPTH: Final = 16
MOST_PARALLEL: Final = 1000
MOST_ROUNDS: Final = 10**8
MOST_VALUE: Final = 1e30
"""So that a sum of a hundred million leaves is finite in float32."""
NO_PARENT: Final = 2**31 - 1
NO_CHILD: Final = -1

Count = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,8})$")]
Nothing = Annotated[list[int], Meta(max_length=0)]
Index = Annotated[int, Meta(ge=-1, lt=2**31)]


class ForestInvalid(Exception):
    """The bytes are no ensemble that can be taken; the message says why."""


class ValueTooLarge(ForestInvalid):
    """A number is so large that sums of such would overflow."""


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the document; fields are in the order in which XGBoost writes them."""


class TreeParam(_Part, frozen=True):
    """Sizes of a tree."""

    num_deleted: Literal["0"]
    num_feature: Count
    num_nodes: Count
    size_leaf_vector: Literal["1"]


class Tree(_Part, frozen=True):
    """One tree; an entry per node in each list, the root first.

    Attributes:
        base_weights: What the node itself would answer.
        default_left: 1 where a missing feature goes left.
        left_children: Index of the child for features below the condition; -1 in a leaf.
        loss_changes: Gain of the split.
        parents: Index of the parent; 2**31 - 1 in the root.
        right_children: Index of the other child; -1 in a leaf.
        split_conditions: Threshold; in a leaf its answer.
        split_indices: Feature that is compared.
        sum_hessian: Weight of the examples that came by.
    """

    base_weights: list[float]
    categories: Nothing
    categories_nodes: Nothing
    categories_segments: Nothing
    categories_sizes: Nothing
    default_left: list[Literal[0, 1]]
    id: Index
    left_children: list[Index]
    loss_changes: list[float]
    parents: list[Index]
    right_children: list[Index]
    split_conditions: list[float]
    split_indices: list[Index]
    split_type: list[Literal[0]]
    sum_hessian: list[float]
    tree_param: TreeParam


class _Categories(_Part, frozen=True):
    enc: Nothing
    feature_segments: Nothing
    sorted_idx: Nothing


class _GbtreeParam(_Part, frozen=True):
    num_parallel_tree: Count
    num_trees: Count


class _Model(_Part, frozen=True):
    cats: _Categories
    gbtree_model_param: _GbtreeParam
    iteration_indptr: list[Index]
    tree_info: list[Index]
    trees: list[Raw]


class _Booster(_Part, frozen=True):
    model: _Model
    name: Literal["gbtree"]


class _LearnerParam(_Part, frozen=True):
    base_score: str
    boost_from_average: str
    num_class: Count
    num_feature: Count
    num_target: Literal["1"]


class _Learner(_Part, frozen=True):
    attributes: Annotated[Mapping[str, str], Meta(max_length=0)]
    feature_names: Nothing
    feature_types: Nothing
    gradient_booster: _Booster
    learner_model_param: _LearnerParam
    objective: Mapping[str, str | Mapping[str, str]]


class Forest(_Part, frozen=True):
    """An ensemble; its trees stay text until they are asked for."""

    learner: _Learner
    version: tuple[int, int, int]

    @property
    def num_features(self) -> int:
        """Numbers of an example."""
        return int(self.learner.learner_model_param.num_feature)

    @property
    def num_groups(self) -> int:
        """Scores of an answer: one for each class, or one."""
        return max(1, int(self.learner.learner_model_param.num_class))

    @property
    def objective(self) -> str:
        """Name of what the trees were grown for."""
        return str(self.learner.objective.get("name"))

    @property
    def base_scores(self) -> tuple[float, ...]:
        """What is answered before any tree, for each group, as the objective answers."""
        scores = msgspec.json.decode(self.learner.learner_model_param.base_score, type=list[float])
        return tuple(scores * self.num_groups if len(scores) == 1 else scores)

    @property
    def num_trees(self) -> int:
        """Trees of all groups."""
        return len(self._model.trees)

    @property
    def num_rounds(self) -> int:
        """Boosting rounds that made them."""
        return self.num_trees // self.trees_per_round

    @property
    def trees_per_round(self) -> int:
        """Trees of one boosting round at one site."""
        return self.num_groups * int(self._model.gbtree_model_param.num_parallel_tree)

    @property
    def groups(self) -> list[int]:
        """Group of each tree."""
        return list(self._model.tree_info)

    def trees(self) -> Iterator[Tree]:
        """Each tree.

        Raises:
            ForestInvalid: One is none.
        """
        for text in self._model.trees:
            yield _decoded(text, _tree_decoder)

    def emptied(self) -> Forest:
        """The same without its trees: all that it says beside them."""
        return self._with([])

    def grown_by(self, others: Sequence[Forest]) -> Forest:
        """Its own trees and then those of the others, which are numbered on from its last."""
        texts = list(self._model.trees)
        for tree in (tree for forest in others for tree in forest.trees()):
            texts.append(_text_of(msgspec.structs.replace(tree, id=len(texts))))
        return self._with(texts)

    def write(self) -> bytes:
        """The document."""
        return msgspec.json.encode(self)

    @property
    def _model(self) -> _Model:
        return self.learner.gradient_booster.model

    def _with(self, texts: list[Raw]) -> Forest:
        replace = msgspec.structs.replace
        model = replace(
            self._model,
            gbtree_model_param=replace(self._model.gbtree_model_param, num_trees=str(len(texts))),
            iteration_indptr=list(range(0, len(texts) + 1, self.trees_per_round)),
            tree_info=self._groups(len(texts)),
            trees=texts,
        )
        booster = replace(self.learner.gradient_booster, model=model)
        return replace(self, learner=replace(self.learner, gradient_booster=booster))

    def _groups(self, num_trees: int) -> list[int]:
        """Group of each tree: a round has those of the first group, then those of the next."""
        parallel = self.trees_per_round // self.num_groups
        return [k // parallel % self.num_groups for k in range(num_trees)]


_forest_decoder: Final = msgspec.json.Decoder(Forest)
_tree_decoder: Final = msgspec.json.Decoder(Tree)
_LISTS: Final = tuple(
    name
    for name in Tree.__struct_fields__
    if name not in {"id", "tree_param"} and not name.startswith("categories")
)
_VALUES: Final = ("base_weights", "loss_changes", "split_conditions", "sum_hessian")


def read_forest(content: bytes) -> Forest:
    """The ensemble that ``content`` is; its trees are counted and not looked at.

    Raises:
        ForestInvalid: It is none.
    """
    forest = _decoded(content, _forest_decoder)
    model, num_trees = forest._model, forest.num_trees
    if not 1 <= int(model.gbtree_model_param.num_parallel_tree) <= MOST_PARALLEL:
        raise ForestInvalid(f"num_parallel_tree is not in 1..{MOST_PARALLEL}")
    if num_trees % forest.trees_per_round:
        raise ForestInvalid(f"{num_trees} trees make no whole rounds of {forest.trees_per_round}")
    expected = forest._with(model.trees)._model
    for name in ("gbtree_model_param", "iteration_indptr", "tree_info"):
        if getattr(model, name) != getattr(expected, name):
            raise ForestInvalid(f"{name} does not go with {num_trees} trees")
    try:
        scores = forest.base_scores
    except msgspec.DecodeError as error:
        raise ForestInvalid("base_score is no list of numbers") from error
    if len(scores) != forest.num_groups:
        raise ForestInvalid(f"base_score has {len(scores)} numbers for {forest.num_groups} groups")
    return forest


def read_growth(content: bytes, grown: Forest, most_rounds: int) -> Forest:
    """Trees that somebody adds to ``grown``, written canonically; nothing of them is trusted.

    Args:
        content: Document with these trees alone, and the header of ``grown``.
        grown: What they go on from.
        most_rounds: Most boosting rounds that may have made them.

    Raises:
        ForestInvalid: They are none of this ensemble, or none that may be loaded.
        ValueTooLarge: A number of them is too large.
    """
    forest = read_forest(content)
    if forest.emptied() != grown.emptied():
        raise ForestInvalid("its header (objective, features, classes, version) is another one")
    if not 1 <= forest.num_rounds <= most_rounds:
        raise ForestInvalid(f"{forest.num_rounds} boosting rounds, not 1 to {most_rounds}")
    return forest._with(
        [
            _text_of(_checked(tree, forest.num_features, number))
            for number, tree in enumerate(forest.trees())
        ]
    )


def layer_of(forest: Forest) -> Parameters:
    """An ensemble as the one layer of a model."""
    return {LAYER: cast("Array", np.frombuffer(forest.write(), np.uint8))}


def forest_of(params: Parameters) -> Forest:
    """The ensemble that a model is.

    Raises:
        ForestInvalid: It is none.
    """
    return read_forest(content_of(params))


def content_of(params: Parameters) -> bytes:
    """Document of the ensemble that a model is.

    Raises:
        ForestInvalid: It has other layers.
    """
    if params.keys() != {LAYER}:
        raise ForestInvalid(f"its layers are {', '.join(sorted(params)) or 'none'}, not {LAYER}")
    layer: np.ndarray[Any, Any] = params[LAYER]
    if layer.dtype != np.uint8 or layer.ndim != 1:
        raise ForestInvalid(f"layer {LAYER} is {layer.dtype} shaped {layer.shape}, not bytes")
    return layer.tobytes()


Decoded = TypeVar("Decoded", bound=_Part)


def _decoded(content: bytes | Raw, decoder: msgspec.json.Decoder[Decoded]) -> Decoded:
    try:
        return decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ForestInvalid(f"no ensemble of trees: {error}"[:300]) from error


def _text_of(tree: Tree) -> Raw:
    return Raw(msgspec.json.encode(tree))


def _checked(tree: Tree, num_features: int, number: int) -> Tree:
    """``tree`` under its number, if it is one that can be loaded and walked."""
    size, at = len(tree.parents), f"tree {number}"
    if not size or any(len(getattr(tree, name)) != size for name in _LISTS):
        raise ForestInvalid(f"{at}: its lists are empty, or not of one length")
    if (tree.tree_param.num_nodes, tree.tree_param.num_feature) != (str(size), str(num_features)):
        raise ForestInvalid(f"{at}: tree_param does not go with its {size} nodes")
    parents, left, right, features = (
        np.array(getattr(tree, name), np.int64)
        for name in ("parents", "left_children", "right_children", "split_indices")
    )
    nodes, splits = np.arange(size), left != NO_CHILD
    below, above = np.concatenate([left[splits], right[splits]]), np.tile(nodes[splits], 2)
    if (splits != (right != NO_CHILD)).any() or not np.array_equal(np.sort(below), nodes[1:]):
        raise ForestInvalid(f"{at}: not every node but the root is the child of one other")
    if (below <= above).any() or parents[0] != NO_PARENT or (parents[below] != above).any():
        raise ForestInvalid(f"{at}: parents and children contradict each other")
    if features.min() < 0 or features.max() >= num_features:
        raise ForestInvalid(f"{at}: a split asks for feature {features.max()} of {num_features}")
    depths = [0] * size
    for node, parent in enumerate(tree.parents[1:], 1):
        depths[node] = depths[parent] + 1
    if max(depths) > MOST_DEPTH:
        raise ForestInvalid(f"{at}: {max(depths)} splits deep, more than {MOST_DEPTH}")
    for name in _VALUES:
        if not (np.abs(np.array(getattr(tree, name), np.float64)) <= MOST_VALUE).all():
            raise ValueTooLarge(f"{at}: {name} holds a number beyond {MOST_VALUE:g}")
    return msgspec.structs.replace(tree, id=number)
