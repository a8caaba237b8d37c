"""What is read of an ONNX file, and which files are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from translation import OnnxInvalid
from translation.signature import Signature, TensorSpec, read_signature

W = np.eye(2, dtype=np.float32)


def model(batch: int | str = "batch", opset: int = 17, operator: str = "MatMul") -> onnx.ModelProto:
    axes = [batch, 2]
    graph = helper.make_graph(
        [helper.make_node(operator, ["input", "w"], ["output"])],
        "model",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, axes)],
        [numpy_helper.from_array(W, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_a_file_says_how_it_is_called(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.onnx")

    assert read_signature(tmp_path / "m.onnx") == Signature(
        inputs=(TensorSpec(name="input", shape=("batch", 2), dtype="float32"),),
        outputs=(TensorSpec(name="output", shape=("batch", 2), dtype="float32"),),
        opset=17,
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not one whole ONNX model"),
        (b"noise", "not one whole ONNX model"),
        (model().SerializeToString()[:-5], "not one whole ONNX model"),
        (model(operator="NoSuchThing").SerializeToString(), "NoSuchThing"),
        (model(batch=4).SerializeToString(), "first axis of input is not free"),
        (model(opset=13).SerializeToString(), "opset 13, under 17"),
    ],
    ids=["nothing", "noise", "cut off", "an unknown operator", "a fixed batch", "an old opset"],
)
def test_what_cannot_be_handed_out_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)

    with pytest.raises(OnnxInvalid, match=reason) as caught:
        read_signature(tmp_path / "m.onnx")

    assert str(tmp_path) not in str(caught.value)


def test_weights_in_another_file_are_refused_though_it_lies_there(tmp_path: Path) -> None:
    onnx.save(
        model(), tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    assert (tmp_path / "w").exists()

    with pytest.raises(OnnxInvalid, match="stored in w"):
        read_signature(tmp_path / "m.onnx")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OnnxInvalid):
        read_signature(tmp_path / "m.onnx")


def test_importing_translation_imports_no_framework() -> None:
    script = (
        "import sys, translation, translation.signature, translation.inference, translation.parity;"
        "print(sorted({'torch', 'sklearn', 'onnx', 'onnxruntime', 'skl2onnx'} & set(sys.modules)))"
    )

    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)

    assert run.stdout.strip() == "[]"
