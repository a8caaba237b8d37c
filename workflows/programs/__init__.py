"""Programs that ship with the platform: ordinary bundles, one folder each.

Their facts are a checked-in file, so that admission needs no torch; a test builds each program and
compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from workflows.capabilities import ProgramFacts

_HERE: Final = Path(__file__).parent

BUILTIN: Final[Mapping[str, ProgramFacts]] = MappingProxyType(
    msgspec.json.decode((_HERE / "facts.json").read_bytes(), type=dict[str, ProgramFacts])
)


def builtin_folder(name: str) -> Path:
    """The bundle of the builtin program ``name``.

    Raises:
        KeyError: There is none of this name.
    """
    if name not in BUILTIN:
        raise KeyError(name)
    return _HERE / name.replace("-", "_")
