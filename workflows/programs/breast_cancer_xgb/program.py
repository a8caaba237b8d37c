"""Boosted trees for the Wisconsin breast cancer data (30 measures of cell nuclei)."""

from __future__ import annotations


def build(eta: float = 0.1, max_depth: int = 3) -> dict[str, object]:
    """Parameters of XGBoost; ``eta`` is the rate of each site's trees."""
    return {"eta": eta, "max_depth": max_depth}
