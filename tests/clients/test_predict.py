"""Trying a fetched model on one's own examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clients.errors import FileRefused
from clients.predict import InputsRefused, predict, read_examples

W = np.array([[1, 0, 2], [0, 1, 0], [0, 0, 0], [0, 0, 0]], np.float32)


def model(path: Path, weights: np.ndarray = W, label: bool = False) -> Path:
    """Takes 2 x 2 and multiplies it, flattened, by ``weights``."""
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["output"]),
    ]
    axes = ["batch", weights.shape[1]]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, axes)]
    if label:  # the least, so that it is told from the highest score
        nodes.append(helper.make_node("ArgMin", ["output"], ["label"], axis=1, keepdims=0))
        outputs.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]))
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2, 2])],
        outputs,
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


X = np.array([[[1, 3], [0, 0]], [[2, 1], [5, 5]]], np.float64)


@pytest.mark.parametrize(
    "inputs", [X, X.reshape(2, 4), X.astype(int)], ids=["2 x 2", "flat", "int"]
)
def test_scores_and_the_class_with_the_highest(inputs: np.ndarray, tmp_path: Path) -> None:
    found = predict(model(tmp_path / "m.onnx"), inputs)

    assert found.labels is not None
    assert found.labels.tolist() == [1, 2]
    assert found.scores.tolist() == [[1, 3, 2], [2, 1, 4]]


def test_more_examples_than_a_batch_come_back_in_order(tmp_path: Path) -> None:
    inputs = np.zeros((1000, 4), np.float32)
    inputs[:, 0] = np.arange(1000)

    found = predict(model(tmp_path / "m.onnx"), inputs)

    assert found.scores[:, 0].tolist() == list(range(1000))


def test_a_class_that_the_model_gives_itself_is_taken(tmp_path: Path) -> None:
    found = predict(model(tmp_path / "m.onnx", label=True), X)

    assert found.labels is not None
    assert found.labels.tolist() == [0, 1]


def test_a_model_of_values_gives_no_classes(tmp_path: Path) -> None:
    found = predict(model(tmp_path / "m.onnx", W[:, :1]), X)

    assert found.labels is None
    assert found.scores.tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (np.zeros((2, 3)), r"shape \(3\), the model takes \(2, 2\)"),
        (np.zeros((2, 2, 3)), r"shape \(2, 3\), the model takes \(2, 2\)"),
        (np.zeros(4), r"shape \(\), the model takes \(2, 2\)"),
        (np.zeros((0, 4)), r"no example; the model takes rows of \(2, 2\)"),
        (np.array(1.0), "no example"),
        (np.array([["a", "b", "c", "d"]]), "not numbers"),
    ],
    ids=["columns", "axes", "one row", "no row", "one number", "text"],
)
def test_other_examples_are_refused(inputs: np.ndarray, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputsRefused, match=reason):
        predict(model(tmp_path / "m.onnx"), inputs)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"noise")

    with pytest.raises(FileRefused, match=r"m\.onnx does not load"):
        predict(tmp_path / "m.onnx", X)
    with pytest.raises(FileRefused, match="exist"):
        predict(tmp_path / "absent.onnx", X)


def test_examples_are_read_from_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", anything=X)
    np.savez(tmp_path / "two.npz", x=X, y=np.arange(2))

    assert np.array_equal(read_examples(tmp_path / "one.npz"), X)
    assert np.array_equal(read_examples(tmp_path / "two.npz"), X)


@pytest.mark.parametrize("head", ["", "a,b\n", "\ufeffa,b\n"], ids=["none", "names", "with a mark"])
def test_examples_are_read_from_csv(head: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(head + "1,2\n3,4.5\n\n", encoding="utf-8")

    assert read_examples(tmp_path / "x.csv").tolist() == [[1, 2], [3, 4.5]]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.csv", b"1,2\n3\n", "row 2 of the examples is not 2 numbers: 3"),
        ("x.csv", b"a,b\n1,2\n3,four\n", "row 2 of the examples is not 2 numbers: 3,four"),
        ("x.csv", b"a,b\n", "no line with numbers"),
        ("x.csv", b"\xff\xfe\x00", "decode"),
        ("x.npz", b"noise", r"no \.npz archive"),
        ("x.npy", b"", r"only \.npz and \.csv"),
    ],
    ids=["short row", "text", "names alone", "bytes", "no archive", "another kind"],
)
def test_files_that_cannot_be_read_are_refused(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(FileRefused, match=reason):
        read_examples(tmp_path / name)


def test_arrays_without_a_known_name_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=X, b=X)

    with pytest.raises(FileRefused, match="it holds a, b; call the examples `x`"):
        read_examples(tmp_path / "two.npz")
    with pytest.raises(FileRefused, match="No such file"):
        read_examples(tmp_path / "absent.npz")
