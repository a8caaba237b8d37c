"""The translate step: a real worker exports, and only what answers as the original gets out."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from translation.inference import OnnxModel
from translation.signature import TensorSpec
from workflows.causes import CauseCode
from workflows.checkpoint import model_bytes
from workflows.events import AnyStepEvent, StepFailed, StepStarted
from workflows.job import Builtin, Bundle, JobSpec, Output, Partitioned
from workflows.plan import compile_plan
from workflows.program import pack
from workflows.programs import BUILTIN
from workflows.run_folder import StepError, StepFolder
from workflows.steps.card import ModelSignature
from workflows.steps.translate import _checked, _collect

ENVIRONMENT = "sha256:" + "e0" * 32
BUNDLE = "sha256:" + "b0" * 32
SPECIES = ("setosa", "versicolor", "virginica")
MANIFEST = 'name = "linear"\nframework = "sklearn"\n'
PROGRAM = """
from sklearn.linear_model import LogisticRegression

def build():
    return LogisticRegression()
"""
OTHERWISE = """
import translation.from_sklearn as exporter

honest = exporter.to_onnx

def forged(estimator, samples, path, opset):
    return honest(estimator, samples, path, opset)[::-1]

exporter.to_onnx = forged
"""


def lay_run(root: Path, spec: JobSpec, params: dict[str, np.ndarray]) -> Path:
    """A run directory as the federate step leaves it."""
    run = root / "run"
    (run / "inputs").mkdir(parents=True)
    inputs = {"bundle.tar": BUNDLE} if isinstance(spec.program, Bundle) else {}
    plan = compile_plan("job-1", 1, spec, ENVIRONMENT, inputs)
    (run / "job.json").write_bytes(msgspec.json.encode(plan))
    (run / "model.safetensors").write_bytes(model_bytes(params))
    return run


def lay_linear(root: Path, program: str, **fields: Any) -> Path:
    """A run of a linear model for the three species of iris."""
    spec = JobSpec(
        name="iris", program=Bundle(digest=BUNDLE), data=Partitioned(dataset="iris"), **fields
    )
    rng = np.random.default_rng(5)
    run = lay_run(root, spec, {"coef": rng.normal(size=(3, 4)), "intercept": rng.normal(size=3)})
    source = root / "program"
    source.mkdir()
    (source / "program.toml").write_text(MANIFEST)
    (source / "program.py").write_text(program)
    pack(source, run / "inputs" / "bundle.tar")
    return run


def translate(run: Path) -> tuple[int, list[AnyStepEvent]]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "workflows.steps.translate", str(run)],
        env={"PATH": os.environ["PATH"]},
        cwd=run,
        check=False,
        timeout=120,
    )
    return done.returncode, StepFolder(run, "translate").told()


def signature_of(run: Path) -> ModelSignature:
    return msgspec.json.decode((run / "signature.json").read_bytes(), type=ModelSignature)


def test_a_torch_model_becomes_onnx(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    params = {
        parameter.name: rng.normal(size=parameter.shape, scale=0.1).astype(parameter.dtype)
        for parameter in BUILTIN["digits-mlp"].parameters
    }
    spec = JobSpec(
        name="digits",
        program=Builtin(name="digits-mlp"),
        data=Partitioned(dataset="digits", central=0.2),
    )
    run = lay_run(tmp_path, spec, params)

    code, events = translate(run)

    assert (code, [type(event) for event in events]) == (0, [StepStarted])
    signature = signature_of(run)
    assert signature.framework == "torch"
    assert signature.classes == tuple("0123456789")
    assert signature.inputs == (TensorSpec(name="input", shape=("batch", 64), dtype="float32"),)
    assert signature.outputs == (TensorSpec(name="output", shape=("batch", 10), dtype="float32"),)
    assert signature.parity is not None
    assert signature.parity.samples == 64
    assert signature.parity.labels_equal is True
    answers = OnnxModel(run / "model.onnx").answers(np.zeros((5, 64), np.float32), 5)
    assert answers["output"].shape == (5, 10)


def test_a_linear_model_becomes_onnx(tmp_path: Path) -> None:
    run = lay_linear(tmp_path, PROGRAM)

    code, _ = translate(run)

    assert code == 0
    signature = signature_of(run)
    assert signature.framework == "sklearn"
    assert signature.classes == SPECIES
    assert [output.name for output in signature.outputs] == ["label", "output"]
    assert (run / "model.onnx").exists()


def test_without_a_wish_for_onnx_the_signature_is_still_told(tmp_path: Path) -> None:
    run = lay_linear(tmp_path, PROGRAM, output=Output(onnx=()))

    code, _ = translate(run)

    assert code == 0
    assert signature_of(run) == ModelSignature(
        framework="sklearn",
        inputs=(TensorSpec(name="input", shape=("batch", 4), dtype="float32"),),
        classes=SPECIES,
    )
    assert not (run / "model.onnx").exists()


def test_a_model_that_answers_otherwise_does_not_get_out(tmp_path: Path) -> None:
    run = lay_linear(tmp_path, PROGRAM + OTHERWISE)

    code, events = translate(run)

    failed = events[-1]
    assert code == 1
    assert isinstance(failed, StepFailed)
    assert failed.cause.code == CauseCode.PARITY_FAILED
    assert "sample" in failed.cause.detail
    assert not (run / "model.onnx").exists()
    assert not (run / "signature.json").exists()


def test_an_exporter_that_gives_up_is_told(tmp_path: Path) -> None:
    refusing = """
import translation.from_sklearn as exporter
from translation import Untranslatable

def refused(estimator, samples, path, opset):
    raise Untranslatable("no such operator")

exporter.to_onnx = refused
"""
    run = lay_linear(tmp_path, PROGRAM + refusing)

    code, events = translate(run)

    failed = events[-1]
    assert code == 1
    assert isinstance(failed, StepFailed)
    assert failed.cause.code == CauseCode.TRANSLATION_FAILED
    assert "no such operator" in failed.cause.detail


def reference(inputs: np.ndarray, outputs: np.ndarray | None = None) -> bytes:
    file = io.BytesIO()
    if outputs is None:
        np.savez_compressed(file, inputs=inputs)
    else:
        np.savez_compressed(file, inputs=inputs, outputs=outputs)
    return file.getvalue()


ROWS = np.ones((2, 4), np.float32)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"noise", "not a zip file"),
        (reference(inputs=ROWS), "outputs"),
        (reference(inputs=ROWS, outputs=np.array(["a", "b"])), "no rows of real numbers"),
        (reference(inputs=ROWS, outputs=np.array([{}, {}])), "allow_pickle=False"),
        (reference(inputs=ROWS[:0], outputs=ROWS[:0]), "no rows of real numbers"),
        (reference(inputs=ROWS, outputs=np.array(3.0)), "no rows of real numbers"),
        (reference(inputs=ROWS, outputs=np.zeros((2, 1 << 20))), "unpacks to more"),
    ],
    ids=["none", "noise", "half", "text", "pickled", "empty", "one number", "a bomb"],
)
def test_answers_that_cannot_be_read_are_no_proof(
    content: bytes | None, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"model")
    if content is not None:
        (tmp_path / "reference.npz").write_bytes(content)

    with pytest.raises(StepError, match=reason) as caught:
        _collect(tmp_path, 1 << 20)

    assert caught.value.cause.code == CauseCode.TRANSLATION_FAILED


def test_only_plain_files_of_bounded_size_are_taken_from_a_worker(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"of another run")
    written = tmp_path / "written"
    written.mkdir()
    (written / "reference.npz").write_bytes(reference(inputs=ROWS, outputs=ROWS))
    model = written / "model.onnx"

    model.symlink_to(secret)
    with pytest.raises(StepError, match="Too many levels of symbolic links"):
        _collect(written, 1 << 20)
    model.unlink()
    os.mkfifo(model)
    with pytest.raises(StepError, match="no plain file"):
        _collect(written, 1 << 20)
    model.unlink()
    model.write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(StepError, match=r"limits\.output_mb") as caught:
        _collect(written, 1 << 20)

    assert caught.value.cause.code == CauseCode.PROGRAM_OUTPUT_TOO_LARGE


def test_what_is_no_onnx_model_fails_the_translation(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"noise")
    (tmp_path / "reference.npz").write_bytes(reference(inputs=ROWS, outputs=ROWS))
    exported = _collect(tmp_path, 1 << 20)

    with pytest.raises(StepError) as caught:
        _checked(tmp_path / "model.onnx", exported, ModelSignature(framework="torch", inputs=()))

    assert caught.value.cause.code == CauseCode.TRANSLATION_FAILED
