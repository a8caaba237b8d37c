"""A PyTorch model as ONNX, through ``torch.export``. Imported only where torch may be.

The exporter writes into every node where in the source it came from, with the path and the text of
the line. That is stripped: it would tell about the machine and the program, and make the bytes of
the same model differ from one run folder to the next.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from translation import Untranslatable
from translation.signature import BATCH, INPUT, OUTPUT

NATIVE_OPSET: Final = 20
"""What torch's exporter writes without converting between versions."""
MAX_DETAIL: Final = 500


def to_onnx(model: torch.nn.Module, samples: np.ndarray, path: Path, opset: int) -> np.ndarray:
    """Write ``model`` to ``path`` and return what it answers to ``samples``.

    Args:
        model: Left in evaluation mode.
        samples: Inputs shaped (samples, *features), at least one; the first axis becomes dynamic.
        path: One file, with the weights in it.
        opset: Lowest version of the operator set; a higher one may be written.

    Raises:
        Untranslatable: Its ``forward`` raises, gives more than one tensor, or has no ONNX form.
    """
    inputs = torch.from_numpy(np.array(samples))
    answers = _answers(model.eval(), inputs)
    traced = torch.cat([inputs, inputs])[: max(2, len(inputs))]  # one row would be taken as fixed
    try:
        with _quietly():
            program = torch.onnx.export(
                model,
                (traced,),
                dynamo=True,
                verbose=False,
                opset_version=max(opset, NATIVE_OPSET),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
            )
            assert program  # noqa: S101 - the exporter that is chosen gives one, or raises
            content = _stripped(program.model_proto).SerializeToString(deterministic=True)
    except Exception as error:  # the exporter runs the developer's code
        raise Untranslatable(f"the model has no ONNX form: {_innermost(error)}") from error
    path.write_bytes(content)
    return answers


def _answers(model: torch.nn.Module, inputs: torch.Tensor) -> np.ndarray:
    try:
        with torch.no_grad():
            answers = model(inputs)
    except Exception as error:  # border to the developer's code
        raise Untranslatable(f"forward() raised {_innermost(error)}") from error
    if not isinstance(answers, torch.Tensor) or answers.shape[:1] != inputs.shape[:1]:
        raise Untranslatable("forward() must return one tensor with a row per example")
    return np.asarray(answers.numpy())


def _stripped(model: Any) -> Any:  # noqa: ANN401 - onnx has no types
    """``model`` without a word on where its nodes come from."""
    model.ClearField("metadata_props")
    for function in model.functions:
        function.ClearField("metadata_props")
        function.ClearField("doc_string")
        _strip_nodes(function.node)
    _strip_graph(model.graph)
    return model


def _strip_graph(graph: Any) -> None:  # noqa: ANN401 - onnx has no types
    for part in (graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Any) -> None:  # noqa: ANN401 - onnx has no types
    for node in nodes:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip_graph(attribute.g)
            for graph in attribute.graphs:
                _strip_graph(graph)


def _innermost(error: BaseException) -> str:
    """What went wrong at the bottom of it; the exporter wraps it in pages of its own."""
    while error.__cause__:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:MAX_DETAIL]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter's remarks on itself out of the developer's log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
