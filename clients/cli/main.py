"""``foedus``, the command line of the AI developer.

Exit codes: see ``clients.cli.refusals``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from clients.cli import accounts, admin, jobs, models, platform, programs
from clients.cli.refusals import explain

app = typer.Typer(
    name="foedus",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its tracebacks would show the values of variables
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Exit codes: 0 done; 1 the job or program failed; 2 wrong usage; 3 refused; "
        "4 not logged in or not allowed; 5 server unreachable; 130 interrupted."
    ),
)
app.command()(platform.serve)
app.command()(accounts.login)
app.command()(accounts.logout)
app.command()(jobs.submit)
app.command("jobs")(jobs.jobs)
app.command()(jobs.watch)
app.command()(jobs.result)
app.command()(jobs.logs)
app.command()(jobs.cancel)
app.add_typer(models.app, name="model")
app.add_typer(programs.programs, name="program")
app.add_typer(programs.datasets, name="dataset")
app.command()(platform.capabilities)
app.add_typer(accounts.app, name="token")
app.add_typer(admin.app, name="admin")


def _say_version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        typer.echo(f"foedus {importlib.metadata.version('foedus')}")
        raise typer.Exit


@app.callback()
def foedus(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say it and leave."),
    ] = False,
) -> None:
    """Federated learning as a service: submit a job, watch it learn, fetch the model."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(argv)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except Exception as error:
        code = explain(error, as_json="--json" in argv)
        if code is None:
            raise
        raise SystemExit(code) from error
