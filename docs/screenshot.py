"""The picture of the terminal in the README, from a real run: ``python -m docs.screenshot``."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from rich.console import Console

from clients.cli.progress import advance, begin, view
from clients.sdk import JobHandle
from examples.demo import JOB, run

DOCS = Path(__file__).parent


def follow(job: JobHandle, console: Console) -> None:
    """The panel as it looks at the end; on a terminal it grows round by round."""
    progress = begin(job.last)
    for event in job.events():
        progress = advance(progress, event)
    console.print(view(progress))


def main() -> int:
    """Run the demo, and keep what it shows."""
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True)
    console.print("$ make demo", style="bold")
    folder = Path("demo").absolute()
    code = run(folder, JOB, console, follow)
    console.save_svg(str(DOCS / "demo.svg"), title="Foedus")
    for name in ("learning-curve.png", "predictions.png"):
        shutil.copyfile(folder / name, DOCS / name)
    return code


if __name__ == "__main__":
    sys.exit(main())
