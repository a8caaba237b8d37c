"""How one data set is divided among simulated sites, each way a value of its own.

``split`` is pure: labels and a generator in, one sorted array of positions per site out; every
example is at exactly one site and no site is empty. Real-valued labels are cut into deciles where
a partitioner goes by label. (``Virtual`` alone divides nothing: its sites draw.)
"""

from __future__ import annotations

import heapq
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from workflows.data.examples import PartitionError
from workflows.data.virtual import Virtual

Positions = NDArray[np.int64]


class Partitioner(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """A way to divide examples."""

    def split(self, labels: np.ndarray, sites: int, rng: np.random.Generator) -> list[Positions]:
        """Positions of each site's examples, sorted.

        Args:
            labels: Of all examples, in their order.
            sites: How many parts, at least 1.
            rng: Source of all randomness.

        Raises:
            PartitionError: There are too few examples for so many sites.
        """
        raise NotImplementedError


class Iid(Partitioner, frozen=True, tag="iid"):
    """Every site draws from the same distribution; sizes differ by at most one."""

    def split(self, labels: np.ndarray, sites: int, rng: np.random.Generator) -> list[Positions]:
        require_room(labels, sites)
        return [np.sort(part) for part in np.array_split(rng.permutation(len(labels)), sites)]


class Dirichlet(Partitioner, frozen=True, tag="dirichlet"):
    """Each class is shared out by proportions drawn from a symmetric Dirichlet distribution.

    Source: Hsu et al., "Measuring the Effects of Non-Identical Data Distribution", 2019, section 3,
    in the form that draws per class (Yurochkin et al., ICML 2019). Where these draw anew until no
    site is too small, here sites below ``minimum`` take examples from the largest, which also ends
    for small ``alpha``.

    Attributes:
        alpha: Concentration; small is skewed, large is even.
        minimum: Fewest examples of one site.
    """

    alpha: Annotated[float, Meta(gt=0)] = 0.5
    minimum: Annotated[int, Meta(ge=1)] = 1

    def split(self, labels: np.ndarray, sites: int, rng: np.random.Generator) -> list[Positions]:
        require_room(labels, sites, self.minimum)
        home = np.empty(len(labels), np.int64)
        strata = strata_of(labels)
        for stratum in np.unique(strata):
            members = rng.permutation(np.flatnonzero(strata == stratum))
            shares = rng.dirichlet(np.full(sites, self.alpha))
            cuts = np.rint(np.cumsum(shares[:-1]) * len(members)).astype(np.int64)
            home[members] = np.searchsorted(cuts, np.arange(len(members)), side="right")
        parts = _gather(home, sites)
        return [np.sort(part) for part in _top_up(parts, self.minimum, rng)]


class ByLabel(Partitioner, frozen=True, tag="label-shards"):
    """Examples sorted by label are cut into equal shards, and each site is dealt some of them.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
    Data", AISTATS 2017, section 3 (there 200 shards, two for each of 100 clients).

    Attributes:
        shards_per_site: Shards of one site, and so about the most labels it sees.
    """

    shards_per_site: Annotated[int, Meta(ge=1)] = 2

    def split(self, labels: np.ndarray, sites: int, rng: np.random.Generator) -> list[Positions]:
        require_room(labels, sites, self.shards_per_site)
        shuffled = rng.permutation(len(labels))
        by_label = shuffled[np.argsort(strata_of(labels)[shuffled], kind="stable")]
        shards = np.array_split(by_label, sites * self.shards_per_site)
        hands = rng.permutation(len(shards)).reshape(sites, self.shards_per_site)
        return [np.sort(np.concatenate([shards[k] for k in hand])) for hand in hands]


class PowerLaw(Partitioner, frozen=True, tag="power-law"):
    """Sizes fall like rank**-exponent from the first site on; what a site holds is random.

    Source: the quantity skew of Li et al., "Federated Learning on Non-IID Data Silos", ICDE 2022,
    section 4.3, with a power law in place of their Dirichlet distribution.

    Attributes:
        exponent: Steepness; 0 gives equal sizes.
    """

    exponent: Annotated[float, Meta(ge=0, le=10)] = 1.5

    def split(self, labels: np.ndarray, sites: int, rng: np.random.Generator) -> list[Positions]:
        require_room(labels, sites)
        shares = np.arange(1, sites + 1, dtype=np.float64) ** -self.exponent
        spare = len(labels) - sites
        bounds = np.rint(np.cumsum(shares)[:-1] / shares.sum() * spare).astype(np.int64)
        cuts = bounds + np.arange(1, sites)  # one example each, the spare ones by share
        return [np.sort(part) for part in np.split(rng.permutation(len(labels)), cuts)]


AnyPartitioner = Iid | Dirichlet | ByLabel | PowerLaw | Virtual


def require_room(labels: np.ndarray, sites: int, each: int = 1) -> None:
    """Raise unless every site can have ``each`` examples.

    Raises:
        PartitionError: It cannot.
    """
    if len(labels) < sites * each:
        raise PartitionError(
            f"{len(labels)} examples are too few for {sites} sites with at least {each} each; "
            f"ask for at most {len(labels) // each} sites"
        )


def strata_of(labels: np.ndarray) -> np.ndarray:
    """``labels`` where they are classes; the decile of each where they are real-valued."""
    if labels.dtype.kind != "f":
        return labels
    return np.searchsorted(np.quantile(labels, np.arange(1, 10) / 10), labels)


def _gather(home: Positions, sites: int) -> list[Positions]:
    """Positions by the site that ``home`` names for each."""
    order = np.argsort(home, kind="stable")
    return np.split(order, np.searchsorted(home[order], np.arange(1, sites)))


def _top_up(parts: list[Positions], minimum: int, rng: np.random.Generator) -> list[Positions]:
    """Parts of which none is below ``minimum``; what is missing comes from the largest."""
    short = [site for site, part in enumerate(parts) if len(part) < minimum]
    if not short:
        return parts
    pools = [list(rng.permutation(part)) for part in parts]
    by_size = [(-len(pool), site) for site, pool in enumerate(pools)]
    heapq.heapify(by_size)
    for site in short:
        while len(pools[site]) < minimum:
            size, largest = by_size[0]
            pools[site].append(pools[largest].pop())
            heapq.heapreplace(by_size, (size + 1, largest))
    return [np.asarray(pool, np.int64) for pool in pools]
