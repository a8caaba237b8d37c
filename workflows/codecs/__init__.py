"""Ways for updates to travel, each a value of its own.

A codec is added by adding a module here; it then appears in ``codec`` of a job, and every runtime
whose header lists ``*`` speaks it.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Union

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

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

KINDS: dict[str, type[Codec]] = {
    str(cls.__struct_config__.tag): cls
    for cls in sorted(Codec.__subclasses__(), key=lambda cls: str(cls.__struct_config__.tag))
}

if TYPE_CHECKING:
    AnyCodec = Codec
else:
    AnyCodec = Union[tuple(KINDS.values())]  # noqa: UP007 - built at run time
