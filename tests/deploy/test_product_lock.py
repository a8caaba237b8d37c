"""The product's part of the lock: all that it needs, as locked, and none of the tools."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "images" / "product_lock.py"


@pytest.fixture(scope="module")
def product() -> dict[str, str]:
    """Pins by name, as the script writes them."""
    ended = subprocess.run(
        [sys.executable, SCRIPT, ROOT / "requirements.lock", ROOT / "pyproject.toml"],
        capture_output=True,
        text=True,
        check=True,
    )
    pins = re.split(r"\n(?=\S)", ended.stdout.rstrip("\n"))
    return {pin.partition("==")[0]: pin for pin in pins}


def test_each_pin_stands_in_the_lock_as_it_is(product: dict[str, str]) -> None:
    lock = (ROOT / "requirements.lock").read_text()

    assert len(product) > 50
    for pin in product.values():
        assert pin in lock
        assert "--hash=sha256:" in pin
        assert not pin.endswith("\\")


def test_tools_are_left_out(product: dict[str, str]) -> None:
    assert not {"pytest", "ray", "mypy", "ruff", "hypothesis", "pip-audit"} & set(product)


def test_what_an_installed_package_requires_is_there(product: dict[str, str]) -> None:
    for name in ("torch", "flwr", "litestar", "sqlmodel", "typer", "minio", "pydantic-settings"):
        assert name in product
        for requirement in requires(name) or ():
            if ";" not in requirement:
                needed = re.match(r"[A-Za-z0-9._-]+", requirement)
                assert needed is not None
                assert re.sub(r"[-_.]+", "-", needed[0]).lower() in product


def test_a_lock_without_reasons_is_refused() -> None:
    spec = importlib.util.spec_from_file_location("product_lock", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    product_lock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(product_lock)

    with pytest.raises(ValueError, match="needed by nothing: numpy"):
        product_lock.read_lock("numpy==2.4.0 \\\n    --hash=sha256:00\n")
