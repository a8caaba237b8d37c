"""The metrics that the platform measures itself; a program may declare more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

HIGHER_IS_BETTER: Final[Mapping[str, bool]] = {"accuracy": True, "auroc": True, "mse": False}
"""Those that a job may name. ``workflows.trainers.scores`` says what they are."""
OF_CLASSES: Final = frozenset({"accuracy", "auroc"})
"""Those that need classes; the others need real targets."""
LOSS: Final = "loss"
"""Of the program's own ``loss``; the platform asks for it, a job does not."""
