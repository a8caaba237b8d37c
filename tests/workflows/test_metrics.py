from __future__ import annotations

import numpy as np

from workflows.metrics import HIGHER_IS_BETTER, LOSS, OF_CLASSES
from workflows.trainers.scores import scores_of


def test_what_a_job_may_name_is_what_is_measured() -> None:
    outputs, y = np.array([0.5, -0.5]), np.array([1, 0])

    assert scores_of(outputs, y, tuple(HIGHER_IS_BETTER)).keys() == HIGHER_IS_BETTER.keys()
    assert HIGHER_IS_BETTER == {"accuracy": True, "auroc": True, "mse": False}


def test_the_loss_is_no_metric_of_a_job() -> None:
    assert LOSS not in HIGHER_IS_BETTER
    assert HIGHER_IS_BETTER.keys() >= OF_CLASSES == {"accuracy", "auroc"}
