"""Answers of a fetched ONNX model to one's own examples; onnxruntime is imported at first use."""

from __future__ import annotations

import csv
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from clients.errors import FileRefused, FoedusError
from translation import OnnxInvalid
from translation.inference import OnnxModel
from translation.signature import LABEL

BATCH: Final = 256
EXAMPLES: Final = "x"
"""Array of an .npz file that holds the examples, where there are several."""


class InputsRefused(FoedusError):
    """The examples are not what the model takes; the message says what it does take."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Answers, one row per example.

    Attributes:
        labels: Index of each example's class; None if the model gives values and no classes.
        scores: What the model gives for each class, or the values; float32, (examples, columns).
    """

    labels: np.ndarray | None
    scores: np.ndarray


def predict(onnx_path: Path, inputs: np.ndarray) -> Prediction:
    """Let the model at ``onnx_path`` answer.

    Args:
        onnx_path: The model.
        inputs: Examples shaped (examples, *features), or as a table if that has as many columns
            as the model has features.

    Raises:
        FileRefused: The file holds no model that can be run.
        InputsRefused: The examples do not have the model's shape, or are no numbers.
    """
    try:
        model = OnnxModel(onnx_path)
        answers = model.answers(_fitted(inputs, model.input_shape), BATCH)
    except OnnxInvalid as error:
        raise FileRefused(f"{onnx_path}: {error}") from error
    scores = answers[model.output_names[-1]]
    if scores.ndim != 2 or scores.shape[1] < 2:
        return Prediction(None, scores)
    return Prediction(answers.get(LABEL, scores.argmax(axis=1)), scores)


def read_examples(path: Path) -> np.ndarray:
    """Examples in a file: an .npz with one array, or one called ``x``; or a .csv of numbers.

    The first line of a .csv may name its columns.

    Raises:
        FileRefused: The file is not there, of another kind, or holds what is no number.
    """
    try:
        if path.suffix == ".npz":
            return _read_npz(path)
        if path.suffix == ".csv":
            return _read_csv(path)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise FileRefused(f"{path}: {error}") from error
    raise FileRefused(f"{path}: only .npz and .csv files can be read")


def _fitted(inputs: np.ndarray, features: tuple[int | None, ...]) -> np.ndarray:
    """``inputs`` as float32 in the shape the model takes."""
    wanted = ", ".join("any" if length is None else str(length) for length in features)
    if inputs.dtype.kind not in "biuf":
        raise InputsRefused(f"the examples are {inputs.dtype}, not numbers")
    if not inputs.ndim or not len(inputs):
        raise InputsRefused(f"there is no example; the model takes rows of ({wanted})")
    rows = inputs.astype(np.float32)
    given = rows.shape[1:]
    fixed = [length for length in features if length is not None]
    if len(fixed) == len(features) and given == (math.prod(fixed),):
        return rows.reshape(len(rows), *fixed)
    fits = len(given) == len(features) and all(
        length in (None, found) for length, found in zip(features, given, strict=True)
    )
    if not fits:
        found = ", ".join(map(str, given))
        raise InputsRefused(f"an example has shape ({found}), the model takes ({wanted})")
    return rows


def _read_npz(path: Path) -> np.ndarray:
    if path.exists() and not zipfile.is_zipfile(path):
        raise FileRefused(f"{path}: it is no .npz archive; write one with numpy.savez")
    with np.load(path, allow_pickle=False) as arrays:
        names = list(arrays)
        name = names[0] if len(names) == 1 else EXAMPLES
        if name not in names:
            raise FileRefused(f"{path}: it holds {', '.join(names)}; call the examples `x`")
        return np.asarray(arrays[name])


def _read_csv(path: Path) -> np.ndarray:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and not _is_numbers(rows[0]):
        del rows[0]
    if not rows:
        raise FileRefused(f"{path}: it has no line with numbers")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]) or not _is_numbers(row):
            raise FileRefused(
                f"{path}: row {number} of the examples is not {len(rows[0])} numbers: "
                f"{','.join(row)[:80]}"
            )
    return np.array(rows, dtype=np.float32)


def _is_numbers(row: list[str]) -> bool:
    try:
        [float(cell) for cell in row]
    except ValueError:
        return False
    return True
