"""Work on long layers tile by tile, on as many threads as the process may have processors.

numpy and the cipher let other threads run while they work, so threads are enough. What a tile
computes depends on the tile alone and results come back in order, so the number of threads does
not show in any of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Final, TypeVar

SMALL: Final = 1 << 20  # entries below which a thread costs more than it saves
MOST_THREADS: Final = 8
_allowed: Final = ContextVar("allowed", default=MOST_THREADS)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Tile:
    """A run of entries of a flat layer, in row order."""

    layer: str
    start: int
    stop: int

    @property
    def run(self) -> slice:
        """To index the flat layer with."""
        return slice(self.start, self.stop)

    def cut(self, length: int) -> Iterator[slice]:
        """The same in shorter runs."""
        for start in range(self.start, self.stop, length):
            yield slice(start, min(start + length, self.stop))


def tiles_of(shapes: Mapping[str, tuple[int, ...]], length: int) -> Iterator[Tile]:
    """All tiles of a model, layer by layer in sorted order; an empty layer has none."""
    for layer in sorted(shapes):
        size = prod(shapes[layer])
        for start in range(0, size, length):
            yield Tile(layer, start, min(start + length, size))


def set_num_threads(most: int) -> None:
    """Take at most ``most`` threads from now on, as in a process that is one of several."""
    _allowed.set(most)


def each(
    shapes: Mapping[str, tuple[int, ...]], length: int, work: Callable[[Tile], Result]
) -> Iterator[Result]:
    """Results of ``work`` on every tile, in order; four for each thread are under way at a time.

    When a result is handed out, the tiles of its wave are done and those after are not begun.
    """
    tiles = tiles_of(shapes, length)
    is_small = sum(prod(shape) for shape in shapes.values()) < SMALL
    threads = 1 if is_small else min(_allowed.get(), len(os.sched_getaffinity(0)))
    if threads == 1:
        yield from map(work, tiles)
        return
    with ThreadPoolExecutor(threads) as pool:
        while wave := list(islice(tiles, 4 * threads)):
            yield from list(pool.map(work, wave))
