"""What a benchmark says: figures with their spread, peers beside them, targets, and how it was run.

A benchmark exits with 1 when it falls short of a target.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Final, Literal

import msgspec

RESULTS: Final = Path(__file__).parent / "results"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity, measured some times.

    Attributes:
        name: What was measured.
        unit: Of the values.
        values: One per repetition.
        bound: Whether the target is the least or the most that is wanted.
        target: None where the figure only stands beside others.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    bound: Literal["at least", "at most"] = "at most"
    target: float | None = None

    @property
    def median(self) -> float:
        """Middle value."""
        return median(self.values)

    @property
    def is_met(self) -> bool:
        """True if the median reaches the target, or there is none."""
        if self.target is None:
            return True
        met = self.median >= self.target
        return met if self.bound == "at least" else self.median <= self.target

    def row(self) -> str:
        """Line of a Markdown table."""
        spread = f"{min(self.values):.4g} to {max(self.values):.4g}"
        wanted = "" if self.target is None else f"{self.bound} {self.target:g}"
        verdict = "" if self.target is None else ("met" if self.is_met else "SHORT")
        cells = (self.name, f"{self.median:.4g} {self.unit}", spread, wanted, verdict)
        return "| " + " | ".join(cells) + " |"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """What a benchmark found, where figures alone do not show it.

    Attributes:
        figures: Its summary.
        tables: Markdown that stands below them.
        plot: Draws the curves into a file.
        shows: What they are, in words.
    """

    figures: Sequence[Figure]
    tables: str = ""
    plot: Callable[[Path], None] | None = None
    shows: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a reader needs to judge the figures and to run them again."""

    title: str
    about: str
    command: str
    commit: str
    machine: str
    versions: dict[str, str]
    load: float
    figures: tuple[Figure, ...]
    tables: str = ""

    def markdown(self) -> str:
        """As a page."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        lines = [
            f"# {self.title}",
            "",
            self.about,
            "",
            f"`{self.command}` at commit {self.commit}, on {self.machine} (load average "
            f"{self.load:.1f} before); {versions}.",
            "",
            "| what | median | spread | target | |",
            "|---|---|---|---|---|",
            *(figure.row() for figure in self.figures),
            *(("", self.tables.rstrip("\n")) if self.tables else ()),
        ]
        return "\n".join(lines) + "\n"


def run_benchmark(
    name: str,
    title: str,
    about: str,
    packages: Sequence[str],
    measure: Callable[[], Sequence[Figure] | Curves],
) -> int:
    """Measure, print and keep the report; the exit code tells whether every target was met."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--keep", action="store_true", help=f"write results/{name}.md")
    arguments = parser.parse_args()
    load, commit = os.getloadavg()[0], _commit()
    found = measure()
    curves = found if isinstance(found, Curves) else Curves(figures=found)
    report = Report(
        title=title,
        about=about,
        command=f"python -m benchmarks.{name}",
        commit=commit,
        machine=_machine(),
        versions={"Python": platform.python_version()} | {p: version(p) for p in packages},
        load=load,
        figures=tuple(curves.figures),
        tables=curves.tables,
    )
    print(msgspec.json.encode(report).decode() if arguments.json else report.markdown())
    if arguments.keep:
        RESULTS.mkdir(exist_ok=True)
        page = report.markdown()
        if curves.plot:
            curves.plot(RESULTS / f"{name}.png")
            page += f"\n![{curves.shows}]({name}.png)\n"
        (RESULTS / f"{name}.md").write_text(page)
    short = [figure.name for figure in report.figures if not figure.is_met]
    if short:
        print("short of the target: " + ", ".join(short), file=sys.stderr)
    return 1 if short else 0


def _commit() -> str:
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"


def _machine() -> str:
    fields = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line
    )
    model = next((v.strip() for k, v in fields.items() if k.strip() == "model name"), "unknown CPU")
    return f"{model}, {os.cpu_count()} processors, Linux {platform.release()}"
