"""The capability matrix as a value that crosses wires."""

from __future__ import annotations

import msgspec

from tests.workflows.jobs import CAPABILITIES
from workflows.capabilities import Capabilities, RuntimeAbilities


def test_the_matrix_survives_the_wire() -> None:
    text = msgspec.json.encode(CAPABILITIES)
    assert msgspec.json.decode(text, type=Capabilities) == CAPABILITIES


def test_a_runtime_promises_no_privacy_unless_it_says_so() -> None:
    modest = RuntimeAbilities(summary="x", modes=("simulation",))
    assert (modest.strategies, modest.mechanisms, modest.codecs) == (("*",), (), ("none",))
