"""Samples that every exporter is tried with."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def samples() -> np.ndarray:
    """Twelve examples of eight rows of eight numbers."""
    return np.random.default_rng(1).normal(size=(12, 8, 8)).astype(np.float32)
