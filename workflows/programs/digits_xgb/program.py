"""Boosted trees for the handwritten digits (64 pixels from 0 to 1)."""

from __future__ import annotations


def build(eta: float = 0.1, max_depth: int = 4) -> dict[str, object]:
    """Parameters of XGBoost; ``eta`` is the rate of each site's trees."""
    return {"eta": eta, "max_depth": max_depth}
