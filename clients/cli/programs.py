"""Commands about the developer's own programs and data sets."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from clients.cli.connection import connect
from clients.cli.output import AsJson, moment, say, say_each, say_json, size
from clients.cli.refusals import UNSUCCESSFUL

programs = typer.Typer(no_args_is_help=True, help="Your own code: begin, check, upload.")
datasets = typer.Typer(no_args_is_help=True, help="Files of examples for simulations.")
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the program.")]
Limit = Annotated[int, typer.Option(min=1, help="At most so many.")]


@programs.command("new")
def new_program(folder: Folder, as_json: AsJson = False) -> None:
    """Write a small program that works, to begin from."""
    from clients.errors import FileRefused
    from workflows.program import write_template

    try:
        write_template(folder)
    except OSError as error:
        why = f"{folder}: {error.strerror}" if error.strerror else str(error)
        raise FileRefused(why) from error
    if as_json:
        say_json({"folder": str(folder), "files": sorted(path.name for path in folder.iterdir())})
        return
    say(f"{folder} holds a program that works:")
    for path in sorted(folder.iterdir()):
        say(f"  {path.name}")
    say(f"Change it, then: foedus program check {folder}")


@programs.command("check")
def check_program(folder: Folder, as_json: AsJson = False) -> None:
    """Run a program on two toy sites here, and say in plain words what is wrong."""
    import tempfile

    from workflows.program_check import check_program as check

    with tempfile.TemporaryDirectory(prefix="foedus-check-") as scratch:
        report = check(folder, Path(scratch) / "check")
    if as_json:
        say_json(report)
    else:
        for finding in report.findings:
            say(f"{'ok ' if finding.ok else 'NO '} {finding.about}: {finding.found}")
            for line in finding.evidence.splitlines():
                say(f"    | {line}")
            if finding.mend:
                say(f"    mend: {finding.mend}")
        say("It can be submitted." if report.ok else "It cannot be submitted yet.")
    if not report.ok:
        raise typer.Exit(UNSUCCESSFUL)


@programs.command("push")
def push_program(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Folder or archive.")],
    name: Annotated[str | None, typer.Option(help="For people; else the folder's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a program; the platform tries it out before it takes it."""
    with connect() as foedus:
        program = foedus.programs.push(source, name)
    if as_json:
        say_json(program)
    else:
        say(program.digest)


@programs.command("list")
def list_programs(limit: Limit = 20, as_json: AsJson = False) -> None:
    """List uploaded programs, newest first."""
    with connect() as foedus:
        found = tuple(islice(foedus.programs.list(), limit))
    say_each(
        found,
        ("DIGEST", "NAME", "FRAMEWORK", "SIZE", "UPLOADED"),
        lambda program: (
            program.digest,
            program.name,
            program.facts.framework,
            size(program.size_bytes),
            moment(program.created_at),
        ),
        as_json=as_json,
    )


@datasets.command("push")
def push_dataset(
    source: Annotated[Path, typer.Argument(metavar="FILE", help=".npz, .csv or .parquet")],
    label: Annotated[str, typer.Option(help="Column or array with the labels.")] = "y",
    name: Annotated[str | None, typer.Option(help="For people; else the file's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a data set; the platform reads it through before it takes it."""
    with connect() as foedus:
        dataset = foedus.datasets.push(source, label=label, name=name)
    if as_json:
        say_json(dataset)
    else:
        say(dataset.digest)


@datasets.command("list")
def list_datasets(limit: Limit = 20, as_json: AsJson = False) -> None:
    """List uploaded data sets, newest first."""
    with connect() as foedus:
        found = tuple(islice(foedus.datasets.list(), limit))
    say_each(
        found,
        ("DIGEST", "NAME", "EXAMPLES", "CLASSES", "SIZE", "UPLOADED"),
        lambda dataset: (
            dataset.digest,
            dataset.name,
            str(dataset.facts.num_examples),
            str(dataset.facts.num_classes),
            size(dataset.size_bytes),
            moment(dataset.created_at),
        ),
        as_json=as_json,
    )
