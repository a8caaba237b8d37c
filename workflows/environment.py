"""What is installed, as one digest: the part of a plan that says in which environment it runs."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path
from typing import Final

from sharing.object_store import Digest, digest_of_file
from workflows.canonical import digest_value

LOCK: Final = Path(__file__).parent.parent / "requirements.lock"


def environment_digest(lock: Path = LOCK) -> Digest:
    """Digest of the hashed lock; where none is shipped, of what is installed, by name and version.

    Args:
        lock: Beside the packages in a checkout.
    """
    if lock.is_file():
        return digest_of_file(lock)
    installed = {(found.name.lower(), found.version) for found in distributions()}
    return digest_value(sorted(installed))
