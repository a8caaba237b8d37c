"""Updates as they are."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from strategies import Parameters
from workflows.codecs.codec import Codec, Form, Travelled


class NoCodec(Codec, frozen=True, tag="none"):
    """Updates travel as they are; the ring looks at their layers when they are folded."""

    unbiased: ClassVar[bool] = True

    def encode(self, delta: Parameters, seed: int) -> dict[str, np.ndarray[Any, Any]]:
        return dict(delta)

    def decode(self, travelled: Travelled, model: Parameters, seed: int) -> Parameters:
        return travelled

    def form(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Form:
        return Form(dtype, shape)
