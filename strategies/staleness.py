"""What an answer still counts for when the server has stepped since its site was asked.

Source: Xie, Koyejo and Gupta, "Asynchronous Federated Optimization", 2019, section 5.2,
arXiv:1903.03934: functions s of the staleness with s(0) = 1 that never rise. Staleness here is the
number of server steps between the model that the site was given and the one in force when its
answer comes, so that an answer to the model in force has staleness 0.
"""

from __future__ import annotations

import math
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta


class Staleness(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """A weight by staleness."""

    def weight(self, staleness: int) -> float:
        """From 0 to 1, and 1 at staleness 0."""
        raise NotImplementedError


class Constant(Staleness, frozen=True, tag="constant"):
    """s(n) = 1: however old, an answer counts in full."""

    def weight(self, staleness: int) -> float:
        return 1.0


class Polynomial(Staleness, frozen=True, tag="polynomial"):
    """s(n) = (n + 1)**-a.

    Attributes:
        a: How fast it falls; 1/2 is the choice of both FedAsync and FedBuff.
    """

    a: Annotated[float, Meta(ge=0, le=100)] = 0.5

    def weight(self, staleness: int) -> float:
        return math.pow(staleness + 1, -self.a)


class Hinge(Staleness, frozen=True, tag="hinge"):
    """s(n) = 1 up to n = b, and 1 / (a * (n - b) + 1) beyond.

    Attributes:
        a: How fast it falls.
        b: Staleness up to which an answer counts in full.
    """

    a: Annotated[float, Meta(ge=0, le=1e6)] = 10.0
    b: Annotated[int, Meta(ge=0, le=1_000_000)] = 4

    def weight(self, staleness: int) -> float:
        return 1.0 if staleness <= self.b else 1 / (self.a * (staleness - self.b) + 1)


AnyStaleness: TypeAlias = Constant | Hinge | Polynomial
