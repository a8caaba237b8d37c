"""Answers of an ONNX model, through onnxruntime, which is imported when a model is opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from translation import OnnxInvalid


class OnnxModel:
    """A model that is ready to answer. It is fed float32, as all data of the platform is.

    Attributes:
        input_shape: Lengths of the axes of its one input after the batch axis; None where free.
        output_names: Of its outputs, the scores or values last.
    """

    def __init__(self, path: Path) -> None:
        """Load the model at ``path``.

        Raises:
            OnnxInvalid: It does not load, or takes more than one input.
        """
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        self._errors = (
            *(state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf),
            *(state.NoSuchFile, state.NotImplemented, state.RuntimeException, state.EngineError),
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong comes as an exception
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except self._errors as error:
            reason = _first_line(error).replace(str(path), path.name)
            raise OnnxInvalid(f"{path.name} does not load: {reason}") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise OnnxInvalid(f"{path.name} takes {len(inputs)} inputs; only one can be fed")
        self._input = inputs[0].name
        self.input_shape = tuple(
            axis if isinstance(axis, int) else None for axis in inputs[0].shape[1:]
        )
        self.output_names = tuple(output.name for output in self._session.get_outputs())

    def answers(self, inputs: np.ndarray, batch_size: int) -> dict[str, np.ndarray]:
        """Outputs by name for ``inputs`` shaped (samples, *input_shape), at least one.

        Raises:
            OnnxInvalid: It does not run on them.
        """
        batches = []
        for start in range(0, len(inputs), batch_size):
            batch = inputs[start : start + batch_size].astype(np.float32, copy=False)
            try:
                batches.append(self._session.run(None, {self._input: batch}))
            except self._errors as error:
                raise OnnxInvalid(
                    f"the ONNX model does not run on {len(batch)} at once: {_first_line(error)}"
                ) from error
        joined = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return dict(zip(self.output_names, joined, strict=True))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:500]
