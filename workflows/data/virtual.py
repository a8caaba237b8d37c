"""A population of virtual sites that is never laid out: what a site has is drawn when it is asked.

Each site draws its examples with replacement from one pool, under a seed of its own, so a million
sites take no more memory than ten, and whoever draws a site's examples draws the same.

Source of the skew: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for
Federated Visual Classification", 2019, section 3.1, arXiv:1909.06335: a site's shares of the
classes are q ~ Dir(alpha p), where p are those of the pool. There examples are drawn without
replacement until a class is used up; here with it, so that there may be more sites than examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, overload

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray


class Virtual(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="virtual",
):
    """Sites that draw their examples with replacement from the data.

    Attributes:
        examples: Of each site, those that it holds out included.
        alpha: Concentration of a site's shares of the classes around those of the data; small is
            skewed. None for no skew.
    """

    examples: Annotated[int, Meta(ge=1, le=100_000)] = 20
    alpha: Annotated[float, Meta(gt=0)] | None = None

    def draw(self, starts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Positions of one site's examples in a pool that is sorted by class.

        Args:
            starts: Where each class of the pool starts, and where the pool ends.
            rng: Of this site.
        """
        if self.alpha is None:
            return rng.integers(starts[0], starts[-1], self.examples)
        sizes = np.diff(starts)
        shares = rng.dirichlet(self.alpha * sizes / sizes.sum())
        classes = np.searchsorted(np.cumsum(shares[:-1]), rng.random(self.examples), side="right")
        return rng.integers(starts[classes], starts[classes + 1])


class SiteNames(Sequence[str]):
    """Names of simulated sites, made when they are looked at; they sort as they count.

    Args:
        sites: How many.
    """

    def __init__(self, sites: int) -> None:
        self._sites = sites
        self._width = max(4, len(str(sites)))

    def __len__(self) -> int:
        return self._sites

    @overload
    def __getitem__(self, k: int) -> str: ...

    @overload
    def __getitem__(self, k: slice) -> tuple[str, ...]: ...

    def __getitem__(self, k: int | slice) -> str | tuple[str, ...]:
        if isinstance(k, slice):
            return tuple(self._name(i) for i in range(*k.indices(self._sites)))
        return self._name(range(self._sites)[k])

    def __iter__(self) -> Iterator[str]:
        return map(self._name, range(self._sites))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._place(name) is not None

    def index(self, name: str, start: int = 0, stop: int | None = None) -> int:
        """Place of ``name``.

        Raises:
            ValueError: It is no name of these.
        """
        place = self._place(name)
        if place is None or place not in range(self._sites)[start:stop]:
            raise ValueError(f"there is no {name}")
        return place

    def _name(self, k: int) -> str:
        return f"site-{k + 1:0{self._width}}"

    def _place(self, name: str) -> int | None:
        digits = name.removeprefix("site-")
        place = int(digits) - 1 if digits.isascii() and digits.isdigit() else -1
        return place if 0 <= place < self._sites and self._name(place) == name else None


class Alike(Mapping[str, int]):
    """The same number for every site.

    Args:
        sites: Their names.
        number: Of each.
    """

    def __init__(self, sites: SiteNames, number: int) -> None:
        self._sites = sites
        self._number = number

    def __getitem__(self, site: str) -> int:
        if site not in self._sites:
            raise KeyError(site)
        return self._number

    def __len__(self) -> int:
        return len(self._sites)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)
