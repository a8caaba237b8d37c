"""Following a job to its end: a live panel on a terminal, lines in a pipe, JSON lines if asked."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from clients.cli.output import cause_lines, say, say_json, tell
from clients.cli.progress import advance, begin, line_of, view
from clients.cli.refusals import INTERRUPTED, UNSUCCESSFUL
from workflows.job import Analysis
from workflows.run import Phase

if TYPE_CHECKING:
    from rich.console import Console

    from clients.resources import Job
    from clients.sdk import JobHandle


def watch(job: JobHandle, *, as_json: bool) -> None:
    """Follow ``job`` until it is closed, and say how it ended.

    With JSON, the first and the last line are the job, those between are its events.

    Raises:
        typer.Exit: It failed or was cancelled, or the watching was interrupted; the job then
            goes on.
    """
    try:
        if as_json:
            _write_json(job)
        elif sys.stdout.isatty():
            from rich.console import Console

            show(job, Console())
        else:
            write_lines(job)
    except KeyboardInterrupt:
        tell(f"\n{job.id} goes on. `foedus watch {job.id}` looks again, ")
        tell(f"`foedus cancel {job.id}` ends it.")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        say_json(job.refresh())
    else:
        conclude(job.refresh())
    if job.last.phase is not Phase.SUCCEEDED:
        raise typer.Exit(UNSUCCESSFUL)


def _write_json(job: JobHandle) -> None:
    say_json(job.last)
    for event in job.events():
        say_json(event)


def write_lines(job: JobHandle) -> None:
    """One line per event that tells something."""
    progress = begin(job.last)
    for event in job.events():
        progress = advance(progress, event)
        if line := line_of(progress, event):
            say(line)


def show(job: JobHandle, console: Console) -> None:
    """A panel that changes as the job goes on."""
    from rich.live import Live

    progress = begin(job.last)
    with Live(view(progress), console=console, refresh_per_second=8) as live:
        for event in job.events():
            progress = advance(progress, event)
            live.update(view(progress))


def conclude(job: Job) -> None:
    """Say how ``job`` ended, and what can be done next."""
    if job.cause is not None:
        for line in cause_lines(job.cause):
            tell(line)
        tell(f"  more: foedus logs {job.id}")
    elif job.model is not None:
        say(f"model {job.model}")
        say(f"  fetch it: foedus model pull {job.model}")
    elif job.phase is Phase.SUCCEEDED and isinstance(job.spec.program, Analysis):
        say(f"  what it found: foedus result {job.id}")
