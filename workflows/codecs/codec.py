"""The shape of an update codec: a frozen value with a site's half and the server's.

A site encodes its update layer by layer, and what comes of it travels and is committed to; the
server decodes it before the fold. Both halves are pure, and whatever is random in them follows from
one seed that both know, so nothing but values travels and a resumed run sends the same bytes. A
codec may have a site keep something from one update to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar, NamedTuple

import msgspec
import numpy as np

from strategies import Parameters, SiteShare
from strategies.update import Array
from workflows.seeds import derive

Travelled = Mapping[str, np.ndarray[Any, Any]]


class CodecError(Exception):
    """An update does not go through its codec."""


class Unencodable(CodecError):
    """A value cannot be said in the codec's form."""


class Undecodable(CodecError):
    """What came is nothing that the codec makes of this model."""


class Form(NamedTuple):
    """What an encoded layer must be."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of it."""
        return prod(self.shape) * self.dtype.itemsize


class Codec(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """A way for updates to travel.

    Attributes:
        unbiased: Whether the decoded update is, over all seeds, on average the one encoded.
        has_memory: Whether a site keeps something from one update to the next, shaped like them.
    """

    unbiased: ClassVar[bool] = False
    has_memory: ClassVar[bool] = False

    def conclude(self, delta: Parameters, memory: Parameters, seed: int) -> SiteShare:
        """What a site sends and keeps of ``delta``, given what it kept of the one before.

        Args:
            delta: As trained.
            memory: What the site kept when its last update was folded; empty before.
            seed: Of whatever is random.

        Raises:
            Unencodable: A value has no form.
        """
        return SiteShare(self.encode(delta, seed))

    def encode(self, delta: Parameters, seed: int) -> dict[str, np.ndarray[Any, Any]]:
        """``delta`` as it travels, under the same names.

        Raises:
            Unencodable: A value has no such form.
        """
        encoded = {}
        for name, x in delta.items():
            try:
                encoded[name] = self.encode_layer(x, _rng(seed, name))
            except Unencodable as error:
                raise Unencodable(f"layer {name} {error}") from error
        return encoded

    def decode(self, travelled: Travelled, model: Parameters, seed: int) -> Parameters:
        """The update that ``travelled`` stands for.

        Args:
            travelled: As it came; nothing of it is trusted.
            model: Whose names, shapes and dtypes the update has.
            seed: Under which it was encoded.

        Raises:
            Undecodable: It is none of this codec and model.
        """
        if travelled.keys() != model.keys():
            differing = sorted(travelled.keys() ^ model.keys())
            raise Undecodable(f"layers missing or unknown: {', '.join(differing)}")
        decoded = {}
        for name, x in model.items():
            came, form = travelled[name], self.form(x.shape, x.dtype)
            if (came.dtype, came.shape) != form:
                found = f"{came.dtype} shaped {came.shape}, not {form.dtype} shaped {form.shape}"
                raise Undecodable(f"layer {name} came as {found}")
            try:
                decoded[name] = self.decode_layer(came, x.shape, x.dtype, _rng(seed, name))
            except Undecodable as error:
                raise Undecodable(f"layer {name} {error}") from error
        return decoded

    def form(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Form:
        """What a layer of this shape and dtype becomes; its bytes follow, whatever its values."""
        raise NotImplementedError

    def encode_layer(self, x: Array, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        """One layer in its form.

        Raises:
            Unencodable: A value has no such form.
        """
        raise NotImplementedError

    def decode_layer(
        self,
        travelled: np.ndarray[Any, Any],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        rng: np.random.Generator,
    ) -> Array:
        """The layer that ``travelled``, which has its form, stands for.

        Raises:
            Undecodable: No layer is encoded so.
        """
        raise NotImplementedError


def _rng(seed: int, layer: str) -> np.random.Generator:
    """A generator for each layer, so that their order does not show."""
    return np.random.default_rng(derive(seed, layer))
