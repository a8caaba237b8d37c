"""From the trained model to its ONNX form: ``python -m workflows.steps.translate RUN_DIR``.

The developer's code exports in a worker, where the framework is. Whether the file answers as the
original did is found out here, where neither is; only then does it become an output.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from translation import ParityFailed, TranslationError
from translation.parity import check_parity
from translation.signature import BATCH, INPUT, TensorSpec, read_signature
from workflows.causes import Cause, CauseCode
from workflows.checkpoint import CheckpointUnreadable, read_model
from workflows.data.preparation import open_prepared
from workflows.run_directory import write_whole
from workflows.run_folder import StepError, StepFolder, run_step
from workflows.simulation import WORK, Simulation, simulate
from workflows.steps.card import ModelSignature
from workflows.tasks import Export

MAX_SAMPLES: Final = 64
ATOL: Final = 1e-4
RTOL: Final = 1e-3
"""Differences of float32 sums in another order are about 1e-7; a wrong model is off by far more."""


@dataclass(frozen=True, slots=True, eq=False)
class Exported:
    """What a worker wrote, as it was when no worker was left to change it."""

    onnx: bytes
    inputs: np.ndarray
    outputs: np.ndarray


def translate(folder: StepFolder) -> None:
    """The step."""
    wants_onnx = bool(folder.plan.spec.output.onnx)
    with simulate(folder, num_workers=1) as simulation:
        signature = _described(folder, simulation)
        written = _export(folder, simulation) if wants_onnx else None
    if written:
        exported = _collect(written, folder.plan.spec.limits.output_mb << 20)
        checked = folder.scratch("checked") / "model.onnx"
        write_whole(checked, exported.onnx)
        signature = _checked(checked, exported, signature)
        checked.replace(folder.files.root / "model.onnx")
    folder.put("signature.json", msgspec.json.encode(signature))


def _described(folder: StepFolder, simulation: Simulation) -> ModelSignature:
    """What is known of the model without an ONNX form of it."""
    data = open_prepared(folder.scratch(WORK) / "data")
    features = TensorSpec(name=INPUT, shape=(BATCH, *data.features), dtype="float32")
    return ModelSignature(
        framework=simulation.facts.framework,
        frozen_bytes=simulation.facts.frozen_bytes,
        inputs=(features,),
        classes=tuple(str(name) for name in data.classes),
    )


def _export(folder: StepFolder, simulation: Simulation) -> Path:
    """Folder in which a worker left the ONNX model and answers of the original."""
    try:
        params = read_model((folder.files.root / "model.safetensors").read_bytes())
    except FileNotFoundError as error:
        raise _missing("it is not there") from error
    except CheckpointUnreadable as error:
        raise _missing(str(error)) from error
    written = folder.scratch(WORK).resolve() / "export"
    model = simulation.pool.broadcast(params)
    task = Export(model=model, num_samples=MAX_SAMPLES, folder=str(written))
    simulation.pool.call(task).result()
    return written


def _collect(written: Path, max_bytes: int) -> Exported:
    """Read what the worker wrote, and trust nothing of it.

    Raises:
        StepError: It is not there, too large, or not what it should be.
    """
    onnx = _read_plain(written / "model.onnx", max_bytes)
    reference = io.BytesIO(_read_plain(written / "reference.npz", max_bytes))
    try:
        if sum(member.file_size for member in zipfile.ZipFile(reference).infolist()) > max_bytes:
            raise _failure("reference.npz unpacks to more than limits.output_mb")
        with np.load(reference, allow_pickle=False) as arrays:
            exported = Exported(onnx, arrays["inputs"], arrays["outputs"])
    except (zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
        raise _failure(f"reference.npz: {error}") from error
    for array in (exported.inputs, exported.outputs):
        if array.dtype.kind != "f" or not array.shape[:1] or not len(array):
            raise _failure("reference.npz holds no rows of real numbers")
    return exported


def _read_plain(path: Path, max_bytes: int) -> bytes:
    """Content of a plain file; a link could lead to what the worker itself may not read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _failure(f"{path.name}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _failure(f"{path.name} is no plain file")
        if status.st_size > max_bytes:
            detail = (
                f"{path.name} has {status.st_size:,} bytes, limits.output_mb allow {max_bytes:,}"
            )
            raise StepError(Cause(code=CauseCode.PROGRAM_OUTPUT_TOO_LARGE, detail=detail))
        return file.read()


def _checked(path: Path, exported: Exported, described: ModelSignature) -> ModelSignature:
    """Signature of the ONNX model at ``path``, if it answers as the original.

    Raises:
        StepError: It does not.
    """
    try:
        read = read_signature(path)
        parity = check_parity(path, exported.inputs, exported.outputs, atol=ATOL, rtol=RTOL)
    except ParityFailed as error:
        raise StepError(Cause(code=CauseCode.PARITY_FAILED, detail=str(error))) from error
    except TranslationError as error:
        raise _failure(str(error)) from error
    return msgspec.structs.replace(
        described, inputs=read.inputs, outputs=read.outputs, opset=read.opset, parity=parity
    )


def _failure(detail: str) -> StepError:
    return StepError(Cause(code=CauseCode.TRANSLATION_FAILED, detail=detail))


def _missing(detail: str) -> StepError:
    return StepError(Cause(code=CauseCode.INPUT_MISSING, detail=f"model.safetensors: {detail}"))


if __name__ == "__main__":
    sys.exit(run_step("translate", Path(sys.argv[1]), translate))
