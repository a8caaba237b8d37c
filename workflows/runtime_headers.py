"""What each runtime can do, read from the header of its script; the scripts are never imported.

A runtime is one script in ``workflows/runtimes``. Its header declares the environment it needs and,
in the table ``[tool.foedus]``, its abilities:

    # /// script
    # requires-python = ">=3.11,<3.12"
    # dependencies = ["flwr>=1.41,<1.42"]
    # [tool.foedus]
    # summary = "Flower, with its rounds over the Grid"
    # modes = ["simulation"]
    # codecs = ["*"]
    # ///

Source: PEP 723, inline script metadata; the expression that finds a block is its own.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from strategies import KINDS
from workflows.capabilities import RuntimeAbilities
from workflows.codecs import KINDS as CODECS

RUNTIMES: Final = Path(__file__).parent / "runtimes"
BLOCK: Final = re.compile(
    r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
)
MODES: Final = frozenset({"simulation", "sites"})


class HeaderInvalid(Exception):
    """The header of a runtime's script cannot be understood; the message names the script."""


def read_runtimes(folder: Path = RUNTIMES) -> Mapping[str, RuntimeAbilities]:
    """Abilities of every runtime in ``folder`` by its name, sorted.

    A module without a header is part of a runtime, not one itself.

    Raises:
        HeaderInvalid: A header is not TOML, lacks our table, or declares what does not exist.
    """
    scripts = ((path.stem, read_header(path)) for path in sorted(folder.glob("*.py")))
    return {name: abilities for name, abilities in scripts if abilities is not None}


def read_header(script: Path) -> RuntimeAbilities | None:
    """Abilities that ``script`` declares; None if it has no header.

    Raises:
        HeaderInvalid: The header is not TOML, lacks our table, or declares what does not exist.
    """
    blocks = [
        block["content"]
        for block in BLOCK.finditer(script.read_text(encoding="utf-8"))
        if block["type"] == "script"
    ]
    if not blocks:
        return None
    if len(blocks) > 1:
        raise HeaderInvalid(f"{script.name}: there are {len(blocks)} script headers, not one")
    text = "".join(line.removeprefix("#").removeprefix(" ") for line in blocks[0].splitlines(True))
    try:
        table = tomllib.loads(text)["tool"]["foedus"]
        abilities = msgspec.convert(table, RuntimeAbilities)
    except tomllib.TOMLDecodeError as error:
        raise HeaderInvalid(f"{script.name}: the header is not TOML: {error}") from error
    except (KeyError, TypeError) as error:
        raise HeaderInvalid(f"{script.name}: the header has no table [tool.foedus]") from error
    except msgspec.ValidationError as error:
        raise HeaderInvalid(f"{script.name}: [tool.foedus]: {error}") from error
    _require_known(script, "modes", abilities.modes, MODES)
    _require_known(script, "strategies", abilities.strategies, {"*", *KINDS})
    _require_known(script, "codecs", abilities.codecs, {"*", *CODECS})
    if "*" in abilities.codecs:
        abilities = msgspec.structs.replace(abilities, codecs=tuple(CODECS))
    return abilities


def _require_known(
    script: Path, field: str, names: tuple[str, ...], known: set[str] | frozenset[str]
) -> None:
    if unknown := sorted(set(names) - known):
        raise HeaderInvalid(
            f"{script.name}: [tool.foedus] {field}: there is no {', '.join(unknown)}, only "
            f"{', '.join(sorted(known))}"
        )
