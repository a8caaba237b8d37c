"""Folds of buckets of sites.

Source: Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
ICLR 2022, Algorithm 1, arXiv:2006.09365. Its permutation is drawn anew for each round; here it
sorts the sites by a hash of seed, round and name, so that a replay draws it again. A site that may
choose its name after it knows the seed can choose its bucket.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta

from strategies.client_momentum import MomentumFold
from strategies.kept import Rows
from strategies.strategy import Partial
from strategies.tiles import Tile
from strategies.update import Array


class BucketedFold(MomentumFold, frozen=True):
    """A fold whose rows may be means of buckets of sites; no kind of its own.

    Attributes:
        bucket_size: Sites whose mean makes a row (s in the paper); 1 for every site by itself.
            It narrows what heterogeneous honest sites differ by, and each wrong site spoils a row,
            so the cohort must be larger by that factor.
        bucket_seed: Of the drawing of buckets.
    """

    is_abstract: ClassVar[bool] = True
    bucket_size: Annotated[int, Meta(ge=1, le=1024)] = 1
    bucket_seed: Annotated[int, Meta(ge=0)] = 0

    @property
    def min_updates(self) -> int:
        return self.bucket_size * (self.min_rows - 1) + 1

    def buckets(self, partial: Partial) -> list[list[str]]:
        """Sites of each row."""

        def drawn(site: str) -> bytes:
            lot = f"foedus-bucket-1/{self.bucket_seed}/{partial.round}/{site}"
            return hashlib.sha256(lot.encode()).digest()

        sites = sorted(partial.kept, key=drawn)
        size = self.bucket_size
        return [sites[i : i + size] for i in range(0, len(sites), size)]

    def num_rows(self, partial: Partial) -> int:
        return -(-len(partial.kept) // self.bucket_size)

    def rows(self, partial: Partial, tile: Tile) -> Rows:
        if self.bucket_size == 1:
            return super().rows(partial, tile)
        return np.stack([self._mean(partial, bucket, tile) for bucket in self.buckets(partial)])

    def _mean(self, partial: Partial, bucket: Sequence[str], tile: Tile) -> Array:
        total = np.zeros(tile.stop - tile.start, np.int64)
        for site in bucket:
            total += partial.kept[site].read(tile.layer, tile.start, tile.stop)
        return np.true_divide(total, len(bucket))
