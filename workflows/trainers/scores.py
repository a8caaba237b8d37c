"""The built-in metrics, from what a model answers and what is true."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workflows.trainers.border import require_number


def scores_of(outputs: np.ndarray, y: np.ndarray, metrics: Sequence[str]) -> dict[str, float]:
    """Metrics by name, without those that are not defined on these examples.

    Args:
        outputs: A row per example: a score per class, or one score (of class 1, or the target).
        y: What is true.
        metrics: Of accuracy, auroc and mse.

    Raises:
        ProgramError: A metric is not a finite number.
    """
    known = {"accuracy": accuracy, "auroc": auroc, "mse": mse}
    values = {name: known[name](outputs, y) for name in metrics}
    return {name: require_number(v, name) for name, v in values.items() if v is not None}


def accuracy(outputs: np.ndarray, y: np.ndarray) -> float:
    """Share of examples whose highest score, or whose one score's sign, is right."""
    rows = outputs.reshape(len(y), -1)
    guesses = rows.argmax(axis=1) if rows.shape[1] > 1 else rows[:, 0] > 0
    return float(np.mean(guesses == y))


def auroc(outputs: np.ndarray, y: np.ndarray) -> float | None:
    """Probability that an example of class 1 scores above one of class 0; ties count half.

    None where there is no example of one of the two. Source: Mann and Whitney, 1947.
    """
    rows = outputs.reshape(len(y), -1)
    score = rows[:, 1] - rows[:, 0] if rows.shape[1] > 1 else rows[:, 0]
    positives = int(np.sum(y == 1))
    negatives = len(y) - positives
    if not positives or not negatives:
        return None
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # ties share the mean of their ranks
    rank_sum = float(ranks[place][y == 1].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def mse(outputs: np.ndarray, y: np.ndarray) -> float:
    """Mean squared difference."""
    return float(np.mean((outputs.reshape(len(y), -1)[:, 0] - y) ** 2))
