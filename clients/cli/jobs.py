"""Commands about jobs."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from clients.cli.connection import connect
from clients.cli.output import (
    AsJson,
    moment,
    number,
    printable,
    say,
    say_each,
    say_json,
    say_table,
    size,
)

JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of the job.")]


def submit(
    document: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job, YAML or JSON.")],
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would be; start nothing.")
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(help="Idempotency key: submitting twice under one key submits once."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job. Programs and data that it names by a local path are pushed first."""
    with connect() as foedus:
        if dry_run:
            _say_dry_run(foedus.dry_run(document), as_json)
            return
        job = foedus.submit(document, idempotency_key=key)
        if watch:
            from clients.cli.watching import watch as follow

            follow(job, as_json=as_json)
        elif as_json:
            say_json(job.last)
        else:
            say(f"{job.id} is submitted. `foedus watch {job.id}` follows it.")


def _say_dry_run(found: object, as_json: bool) -> None:
    from clients.resources import DryRun

    if not isinstance(found, DryRun):
        raise TypeError(found)
    if as_json:
        say_json(found)
        return
    say("Nothing was started. The job fits together; it would be:")
    say(f"  plan        {found.plan_digest}")
    say(f"  steps       {', '.join(found.steps)}")
    say(f"  parameters  {found.parameters:,}")
    for way, num_bytes in found.bytes_per_site_and_round.items():
        say(f"  {way:<10}  {size(num_bytes)} per site and round")
    say(f"  in all      {size(found.bytes_total)}")
    for part, megabytes in found.memory_mb.items():
        say(f"  memory      {megabytes} MiB ({part})")
    if found.epsilon is not None:
        say(f"  epsilon     {found.epsilon:g}")


def jobs(
    phase: Annotated[str | None, typer.Option(help="Only those in this phase.")] = None,
    name: Annotated[str | None, typer.Option(help="Only those of this name.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    from workflows.run import Phase

    try:
        wanted = None if phase is None else Phase(phase)
    except ValueError:
        known = ", ".join(Phase)
        raise typer.BadParameter(f"use one of {known}", param_hint="--phase") from None
    with connect() as foedus:
        found = tuple(islice(foedus.jobs(phase=wanted, name=name), limit))
    say_each(
        found,
        ("ID", "NAME", "PHASE", "ROUND", "LOSS", "METRICS", "SUBMITTED"),
        lambda job: (
            job.id,
            job.name,
            str(job.phase),
            f"{job.round}/{job.rounds}",
            number(job.loss),
            " ".join(f"{key}={number(value)}" for key, value in job.metrics.items()),
            moment(job.created_at),
        ),
        as_json=as_json,
    )


def watch(job_id: JobId, as_json: AsJson = False) -> None:
    """Follow a job to its end. Ctrl-C ends the watching alone; the job goes on."""
    from clients.cli.watching import watch as follow

    with connect() as foedus:
        follow(foedus.job(job_id), as_json=as_json)


def logs(
    job_id: JobId,
    step: Annotated[
        str | None, typer.Option(help="federate, translate or publish; all if left out.")
    ] = None,
    tail: Annotated[
        int | None, typer.Option(min=1, metavar="BYTES", help="Only the end of each.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a job's steps printed."""
    with connect() as foedus:
        text = foedus.job(job_id).logs(step, tail)
    if as_json:
        say_json({"job": job_id, "text": text})
    else:
        typer.echo(printable(text), nl=not text.endswith("\n"))


def result(job_id: JobId, as_json: AsJson = False) -> None:
    """Show what the query of an analysis found."""
    with connect() as foedus:
        found = foedus.job(job_id).result()
    if as_json:
        say_json(found)
        return
    say_table(found.headers, found.rows())
    if sys.stdout.isatty():
        say(f"{found.examples} examples at {found.sites[-1]} sites")


def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """Cancel a job; finished rounds stay on record."""
    with connect() as foedus:
        job = foedus.job(job_id).cancel()
    if as_json:
        say_json(job)
    else:
        say(f"{job.id} is {job.phase}" if job.ended_at else f"{job.id} is being cancelled")
