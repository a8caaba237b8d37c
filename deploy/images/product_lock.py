"""The part of ``requirements.lock`` that the product runs on, with the same versions and hashes.

The one lock also holds what work on the project needs. Who needs a package is told beneath it
(``# via``), so no index is asked: what the project's own dependencies lead to is kept.

    python deploy/images/product_lock.py requirements.lock pyproject.toml >product.lock
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

_PIN: Final = re.compile(r"([A-Za-z0-9._-]+)(\[[^]]*\])?==")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_VIA: Final = re.compile(r"    #(?: via|  )?\s+(\S.*)")


class Pin(NamedTuple):
    """One package of a lock.

    Attributes:
        text: Its version and hashes, as they stand there.
        via: Who needs it.
    """

    text: str
    via: frozenset[str]


def read_lock(text: str) -> Mapping[str, Pin]:
    """Pins by normalised name.

    Raises:
        ValueError: A package is not said to be needed by anything.
    """
    lines: dict[str, list[str]] = {}
    via: dict[str, set[str]] = {}
    name = ""
    for line in text.splitlines():
        if found := _PIN.match(line):
            name = normalised(found[1])
            lines[name], via[name] = [line], set()
        elif line.startswith("    --hash"):
            lines[name].append(line)
        elif found := _VIA.fullmatch(line):
            via[name].add(found[1])
    if lost := [name for name in lines if not via[name]]:
        raise ValueError(f"needed by nothing: {', '.join(lost)}")
    return {name: Pin("\n".join(lines[name]), frozenset(via[name])) for name in lines}


def product_of(pins: Mapping[str, Pin], dependencies: list[str], project: str) -> list[str]:
    """Names of the pins that the project's dependencies lead to, sorted.

    Raises:
        ValueError: A dependency is not in the lock.
    """
    kept = {normalised(_NAME.match(one)[0]) for one in dependencies}  # type: ignore[index]
    if missing := kept - set(pins):
        raise ValueError(f"not in the lock: {', '.join(sorted(missing))}")
    while more := {
        name
        for name, pin in pins.items()
        if name not in kept and {normalised(by) for by in pin.via if project not in by} & kept
    }:
        kept |= more
    return sorted(kept)


def normalised(name: str) -> str:
    """A name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Write it to standard output."""
    lock, about = (Path(one).read_text() for one in sys.argv[1:3])
    project = tomllib.loads(about)["project"]
    pins = read_lock(lock)
    for name in product_of(pins, project["dependencies"], f"{project['name']} ("):
        sys.stdout.write(pins[name].text.rstrip(" \\") + "\n")


if __name__ == "__main__":
    main()
