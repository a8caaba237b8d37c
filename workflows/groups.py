"""Which sites are trained together: fixed by the cohort, whoever trains them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from typing import Final

GROUP: Final = 32
"""Most sites that are trained together: with more, a small model gains little."""


def groups_of(
    sites: Iterable[str], num_examples: Callable[[str], int]
) -> Iterator[tuple[str, ...]]:
    """Sites that follow each other and have as many examples, at most ``GROUP`` at a time."""
    for _, alike in groupby(sites, key=num_examples):
        while group := tuple(islice(alike, GROUP)):
            yield group
