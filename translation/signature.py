"""What goes into an ONNX model and what comes out, read from the file.

Importing this imports no framework; reading a file imports ``onnx``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec

from translation import OnnxInvalid

BATCH: Final = "batch"
FREE: Final = "?"
INPUT: Final = "input"
OUTPUT: Final = "output"
LABEL: Final = "label"
"""Output that some exporters add: the class itself, beside the scores."""

OPSET_FLOOR: Final = 17


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tensor.

    Attributes:
        name: What to feed or fetch it by.
        shape: Lengths of the axes; a name where the length is free.
        dtype: As numpy calls it.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model is called.

    Attributes:
        inputs: What it takes.
        outputs: What it gives; the scores or values come last.
        opset: Version of the operator set.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int


def read_signature(path: Path) -> Signature:
    """Check the model at ``path`` and say how it is called.

    Raises:
        OnnxInvalid: It is no well-formed model, leaves a part of itself elsewhere, has no free
            batch axis, or is older than the platform hands out.
    """
    import onnx

    with tempfile.TemporaryDirectory() as empty:
        try:
            onnx.checker.check_model(path, full_check=True)
            model = onnx.load(path, load_external_data=False)
            onnx.load_external_data_for_model(model, empty)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            reason = str(error).replace(f"{path.parent}/", "").replace(f"{empty}/", "")[:500]
            raise OnnxInvalid(f"{path.name} is not one whole ONNX model: {reason}") from error
    signature = Signature(
        inputs=tuple(_spec(value) for value in model.graph.input),
        outputs=tuple(_spec(value) for value in model.graph.output),
        opset=max((entry.version for entry in model.opset_import if not entry.domain), default=0),
    )
    if signature.opset < OPSET_FLOOR:
        raise OnnxInvalid(f"{path.name} has opset {signature.opset}, under {OPSET_FLOOR}")
    for tensor in (*signature.inputs, *signature.outputs):
        if not tensor.shape or isinstance(tensor.shape[0], int):
            raise OnnxInvalid(f"{path.name}: the first axis of {tensor.name} is not free")
    return signature


def _spec(value: Any) -> TensorSpec:  # noqa: ANN401 - onnx has no types
    import onnx

    tensor = value.type.tensor_type
    return TensorSpec(
        name=value.name,
        shape=tuple(axis.dim_param or axis.dim_value or FREE for axis in tensor.shape.dim),
        dtype=onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
    )
