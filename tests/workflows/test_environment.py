"""The digest of what is installed."""

from __future__ import annotations

import hashlib
from importlib.metadata import distributions
from pathlib import Path

from workflows.canonical import digest_value
from workflows.environment import LOCK, environment_digest


def test_a_checkout_is_named_by_its_lock() -> None:
    content = Path("requirements.lock").read_bytes()

    assert LOCK.samefile("requirements.lock")
    assert environment_digest() == f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_another_lock_is_another_environment(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("numpy==2.4.6\n")
    before = environment_digest(lock)
    lock.write_text("numpy==2.4.7\n")

    assert environment_digest(lock) != before


def test_without_a_lock_what_is_installed_counts(tmp_path: Path) -> None:
    installed = sorted({(found.name.lower(), found.version) for found in distributions()})

    assert ("numpy" in dict(installed)) is True
    assert environment_digest(tmp_path / "absent") == digest_value(installed)
