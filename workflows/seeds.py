"""Every seed of a run, from the job's own.

A seed depends on what it is for and on nothing else, so that order, workers, runtime and a resumed
run draw the same numbers.
"""

from __future__ import annotations

import hashlib

import msgspec


def derive(seed: int, *parts: str | int) -> int:
    """Seed below 2**63 for the purpose that ``parts`` name, as ``derive(7, "train", 3, "site-1")``.

    It is the first 63 bits of the SHA-256 of ``[seed, *parts]`` as compact JSON.
    """
    digest = hashlib.sha256(msgspec.json.encode((seed, *parts))).digest()
    return int.from_bytes(digest[:8], "big") >> 1
