"""Headers of runtimes: what they declare, and what is wrong with one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from strategies import KINDS
from workflows.capabilities import RuntimeAbilities
from workflows.runtime_headers import RUNTIMES, HeaderInvalid, read_header, read_runtimes

FULL = """\
# /// script
# requires-python = ">=3.11"
# dependencies = ["flwr>=1.41"]
#
# [tool.foedus]
# summary = "Flower"
# modes = ["simulation", "sites"]
# strategies = ["fedavg", "fedadam"]
# mechanisms = ["dp-sgd"]
# codecs = ["none"]
# ///
"""
SHORT = """\
# /// script
# [tool.foedus]
# summary = "x"
# modes = ["simulation"]
# ///
"""


def script(folder: Path, text: str, name: str = "probe.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_header_becomes_abilities(tmp_path: Path) -> None:
    text = f'#!/usr/bin/env python\n"""What it is."""\n\n{FULL}\nimport flwr\n'
    assert read_header(script(tmp_path, text)) == RuntimeAbilities(
        summary="Flower",
        modes=("simulation", "sites"),
        strategies=("fedavg", "fedadam"),
        mechanisms=("dp-sgd",),
        codecs=("none",),
    )


def test_what_a_header_leaves_out_is_modest(tmp_path: Path) -> None:
    abilities = read_header(script(tmp_path, SHORT))
    assert abilities == RuntimeAbilities(summary="x", modes=("simulation",))


def test_a_star_is_every_codec_there_is(tmp_path: Path) -> None:
    abilities = read_header(script(tmp_path, FULL.replace('codecs = ["none"]', 'codecs = ["*"]')))

    assert abilities
    assert abilities.codecs == ("fp16", "int8", "none", "random-mask", "top-k")


def test_a_folder_gives_its_runtimes_sorted_and_skips_other_modules(tmp_path: Path) -> None:
    script(tmp_path, SHORT, "zeta.py")
    script(tmp_path, FULL, "alpha.py")
    script(tmp_path, '"""No header."""\n', "__init__.py")
    script(tmp_path, "# /// other\n# a = 1\n# ///\n", "other.py")
    script(tmp_path, SHORT, "notes.txt")

    assert list(read_runtimes(tmp_path)) == ["alpha", "zeta"]


def test_a_script_is_never_imported(tmp_path: Path) -> None:
    script(tmp_path, SHORT + "raise SystemExit\n", "loud.py")

    assert list(read_runtimes(tmp_path)) == ["loud"]
    assert "loud" not in sys.modules


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (SHORT.replace('"x"', "x"), "not TOML"),
        (SHORT.replace("[tool.foedus]", "[tool.other]"), "no table"),
        ("# /// script\n# tool = 3\n# ///\n", "no table"),
        (SHORT.replace("modes", "moods"), "moods"),
        (SHORT.replace('["simulation"]', '"simulation"'), "Expected `array`"),
        (SHORT.replace("simulation", "dreams"), "modes: there is no dreams"),
        (SHORT.replace("# ///\n", '# strategies = ["fedsgd"]\n# ///\n'), "there is no fedsgd"),
        (FULL.replace('["none"]', '["zip"]'), "codecs: there is no zip"),
        (SHORT + "\n" + SHORT, "2 script headers"),
    ],
    ids=["text", "table", "scalar", "field", "type", "mode", "strategy", "codec", "twice"],
)
def test_a_wrong_header_is_refused_by_name(tmp_path: Path, text: str, problem: str) -> None:
    script(tmp_path, text)

    with pytest.raises(HeaderInvalid, match=r"^probe\.py: ") as refusal:
        read_runtimes(tmp_path)
    assert problem in str(refusal.value)


@pytest.mark.parametrize("path", sorted(RUNTIMES.glob("*.py")), ids=lambda path: path.stem)
def test_every_runtime_here_declares_what_exists(path: Path) -> None:
    abilities = read_header(path)

    if path.stem == "__init__":
        assert abilities is None
    else:
        assert abilities is not None
        assert abilities.summary
        assert set(abilities.strategies) <= {"*", *KINDS}
