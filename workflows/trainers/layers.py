"""Which layers of a model travel: those that patterns of a program name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from workflows.trainers.border import refusal

NUM_NEAREST = 3


def layers_named(patterns: Sequence[str], layers: Collection[str]) -> frozenset[str]:
    """Those of ``layers`` whose whole name fits one of ``patterns``; ``*`` also stands for dots.

    Raises:
        ProgramError: A pattern names none.
    """
    named: set[str] = set()
    for pattern in patterns:
        found = {name for name in layers if fnmatchcase(name, pattern)}
        if not found:
            nearest = get_close_matches(pattern, layers, NUM_NEAREST, 0.4) or sorted(layers)
            raise refusal(
                f"`trainable` in program.toml names {pattern}, and no layer is called so; there "
                f"are {', '.join(nearest[:NUM_NEAREST])} and others (`*` stands for any text)"
            )
        named |= found
    return frozenset(named)
