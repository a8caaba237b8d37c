"""Half precision: two bytes an entry.

Source: IEEE 754-2019, binary16, rounded to nearest, ties to even. An entry between 2**-14 and
65,504 is off by at most 2**-11 of itself, a smaller one by at most 2**-25.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from strategies.update import Array
from workflows.codecs.codec import Codec, Form, Unencodable


class Fp16(Codec, frozen=True, tag="fp16"):
    """Every entry is rounded to half precision; one beyond 65,504 loses the site to the round."""

    def form(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Form:
        return Form(np.dtype(np.float16), shape)

    def encode_layer(self, x: Array, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        with np.errstate(over="ignore"):
            half = x.astype(np.float16)
        if not np.isfinite(half).all():
            raise Unencodable("holds a value beyond 65,504, the largest of half precision")
        return half

    def decode_layer(
        self,
        travelled: np.ndarray[Any, Any],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        rng: np.random.Generator,
    ) -> Array:
        return travelled.astype(dtype)
