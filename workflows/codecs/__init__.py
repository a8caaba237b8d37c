"""Ways for updates to travel, each a value of its own.

A codec is added by adding a module here; it then appears in ``codec`` of a job, and every runtime
whose header lists ``*`` speaks it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Union

from strategies.kinds import kinds_of
from workflows.codecs.codec import Codec, CodecError, Form, Undecodable, Unencodable
from workflows.codecs.none import NoCodec

__all__ = (
    "KINDS",
    "AnyCodec",
    "Codec",
    "CodecError",
    "Form",
    "NoCodec",
    "Undecodable",
    "Unencodable",
)

KINDS = kinds_of(Codec, __name__, __path__)

if TYPE_CHECKING:
    AnyCodec = Codec
else:
    AnyCodec = Union[tuple(KINDS.values())]  # noqa: UP007 - built at run time
