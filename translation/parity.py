"""Whether an ONNX model answers as the original did, found out where the original is not.

The samples go through all at once and one by one, so that a batch axis that is free on paper only
is found too. A model that answers at random has no parity with itself.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from translation import ParityFailed
from translation.inference import OnnxModel
from translation.signature import LABEL


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How near an ONNX model is to its original.

    Attributes:
        samples: Inputs that were tried.
        max_abs_difference: Largest difference between any two answers.
        labels_equal: Whether the class is the same for every sample; None if there are no classes.
    """

    samples: int
    max_abs_difference: float
    labels_equal: bool | None


def check_parity(
    onnx_path: Path, inputs: np.ndarray, reference: np.ndarray, *, atol: float, rtol: float
) -> Parity:
    """Compare the model at ``onnx_path`` with answers of the original.

    Args:
        onnx_path: The model.
        inputs: Samples, shaped (samples, *features), at least one.
        reference: What the original answers to them; (samples, classes) if it scores classes.
        atol: Absolute difference that is forgiven.
        rtol: Difference that is forgiven relative to the reference.

    Raises:
        ParityFailed: Some answer differs by more, is no number, or has another shape or class.
        OnnxInvalid: The model does not load or does not run.
    """
    model = OnnxModel(onnx_path)
    allowed = atol + rtol * np.abs(reference.astype(np.float64))
    worst, labels_equal = 0.0, []
    for size in (len(inputs), 1):
        answers = model.answers(inputs, size)
        scores = answers[model.output_names[-1]]
        worst = max(worst, _difference(scores, reference, allowed, f"in batches of {size}"))
        if reference.ndim == 2 and reference.shape[1] > 1:
            labels = answers.get(LABEL, scores.argmax(axis=1))
            labels_equal.append(_agree(labels, reference, allowed))
    return Parity(
        samples=len(inputs),
        max_abs_difference=worst,
        labels_equal=all(labels_equal) if labels_equal else None,
    )


def _difference(scores: np.ndarray, reference: np.ndarray, allowed: np.ndarray, how: str) -> float:
    """Largest difference.

    Raises:
        ParityFailed: It is too large somewhere.
    """
    if scores.shape != reference.shape:
        raise ParityFailed(f"{how}: answers have shape {scores.shape}, not {reference.shape}")
    difference = np.abs(scores.astype(np.float64) - reference)
    too_far = ~(difference <= allowed)  # true for what is no number
    if too_far.any():
        place = np.unravel_index(np.argmax(np.where(too_far, difference, -1)), difference.shape)
        raise ParityFailed(
            f"{how}: sample {place[0]} gives {scores[place]:.6g} instead of "
            f"{reference[place]:.6g} at {tuple(map(int, place[1:]))}; "
            f"{int(too_far.sum())} of {too_far.size} answers differ by more than is allowed"
        )
    return float(difference.max())


def _agree(labels: np.ndarray, reference: np.ndarray, allowed: np.ndarray) -> bool:
    """Whether all classes are equal.

    Raises:
        ParityFailed: One differs, though its score leads by more than two allowed differences.
    """
    expected = reference.argmax(axis=1)
    second, first = np.partition(reference, -2, axis=1)[:, -2:].T
    wrong = (labels != expected) & (first - second > 2 * allowed.max(axis=1))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ParityFailed(f"sample {row} is of class {labels[row]} instead of {expected[row]}")
    return bool((labels == expected).all())
