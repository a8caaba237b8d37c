"""What handlers work with: the use cases' platform and what only HTTP needs."""

from __future__ import annotations

from dataclasses import dataclass

from control_plane.api.cursors import Cursors
from control_plane.api.metrics import Metrics
from control_plane.keyring import CURSORS
from control_plane.platform import Platform
from control_plane.reconciler import Reconciler
from control_plane.settings import Settings


@dataclass(frozen=True, slots=True)
class Service:
    """One running server."""

    settings: Settings
    platform: Platform
    reconciler: Reconciler
    metrics: Metrics

    @property
    def cursors(self) -> Cursors:
        """With the keys that are good now."""
        return Cursors(self.platform.keys.values(CURSORS))
