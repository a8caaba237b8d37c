"""What passes as the same model, and how it is said when one does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from translation import OnnxInvalid, ParityFailed
from translation.parity import Parity, check_parity

W = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.25]], np.float32)
X = np.array([[1.0, 2.0], [3.0, -1.0], [-2.0, 0.5]], np.float32)


def linear(path: Path, shape_after: tuple[int, ...] | None = None, label: bool = False) -> Path:
    """A model that multiplies by ``W``, and reshapes the answer if asked to."""
    nodes = [helper.make_node("MatMul", ["input", "w"], ["product"])]
    initializers = [numpy_helper.from_array(W, "w")]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 3])]
    if shape_after:
        initializers.append(numpy_helper.from_array(np.array(shape_after), "shape"))
        nodes.append(helper.make_node("Reshape", ["product", "shape"], ["output"]))
    else:
        nodes.append(helper.make_node("Identity", ["product"], ["output"]))
    if label:  # the least, where it should be the greatest
        nodes.append(helper.make_node("ArgMin", ["product"], ["label"], axis=1, keepdims=0))
        outputs.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]))
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])]
    graph = helper.make_graph(nodes, "linear", inputs, outputs, initializers)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def test_equal_answers_have_no_difference(tmp_path: Path) -> None:
    parity = check_parity(linear(tmp_path / "m.onnx"), X, X @ W, atol=0, rtol=0)

    assert parity == Parity(samples=3, max_abs_difference=0.0, labels_equal=True)


def test_a_difference_within_what_is_allowed_is_told(tmp_path: Path) -> None:
    reference = (X @ W).astype(np.float64)
    reference[1, 0] += 0.25

    parity = check_parity(linear(tmp_path / "m.onnx"), X, reference, atol=0.3, rtol=0)

    assert parity.max_abs_difference == 0.25


@pytest.mark.parametrize(("atol", "rtol"), [(0.2, 0.0), (0.0, 0.07)], ids=["absolute", "relative"])
def test_a_difference_beyond_it_is_said_with_its_place(
    atol: float, rtol: float, tmp_path: Path
) -> None:
    reference = (X @ W).astype(np.float64)
    reference[1, 0] += 0.25
    told = r"in batches of 3: sample 1 gives 3 instead of 3.25 at \(0,\); 1 of 9 answers"

    with pytest.raises(ParityFailed, match=told):
        check_parity(linear(tmp_path / "m.onnx"), X, reference, atol=atol, rtol=rtol)


def test_what_is_no_number_never_passes(tmp_path: Path) -> None:
    reference = X @ W
    reference[2, 1] = np.nan

    with pytest.raises(ParityFailed, match=r"sample 2 gives 0\.5 instead of nan"):
        check_parity(linear(tmp_path / "m.onnx"), X, reference, atol=1e9, rtol=1e9)


def test_another_shape_never_passes(tmp_path: Path) -> None:
    with pytest.raises(ParityFailed, match=r"shape \(3, 3\), not \(3, 2\)"):
        check_parity(linear(tmp_path / "m.onnx"), X, X, atol=1e9, rtol=0)


def test_another_class_never_passes(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx", label=True)

    with pytest.raises(ParityFailed, match="sample 0 is of class 0 instead of 1"):
        check_parity(path, X, X @ W, atol=0.1, rtol=0)


def test_a_tie_within_what_is_allowed_may_fall_either_way(tmp_path: Path) -> None:
    x = np.array([[1.0, 1.0]], np.float32)
    reference = np.array([[1.0, 1.001, 0.75]])

    parity = check_parity(linear(tmp_path / "m.onnx"), x, reference, atol=0.01, rtol=0)

    assert parity.labels_equal is False


def test_a_batch_axis_that_is_free_on_paper_only_is_found(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx", shape_after=(3, 3))

    with pytest.raises(OnnxInvalid, match="does not run on 1 at once"):
        check_parity(path, X, X @ W, atol=1e-6, rtol=0)


@pytest.mark.parametrize("content", [b"", b"no model"], ids=["nothing", "noise"])
def test_what_is_no_model_does_not_load(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)

    with pytest.raises(OnnxInvalid, match=r"m\.onnx does not load") as caught:
        check_parity(tmp_path / "m.onnx", X, X @ W, atol=0, rtol=0)

    assert str(tmp_path) not in str(caught.value)
