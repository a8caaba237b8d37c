"""Commands of those who run the platform; but for those of Keycloak over HTTP like everyone's.

Backups are made on the machine itself: a route for them would hand out every model.
"""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli import keycloak, storage
from clients.cli.connection import connect
from clients.cli.output import AsJson, moment, say, say_each, say_json, say_table, size
from clients.cli.platform import server_environment
from clients.cli.refusals import UNSUCCESSFUL

if TYPE_CHECKING:
    from clients.resources import OrganisationUse, PlatformKey

app = typer.Typer(no_args_is_help=True, help="Run the platform: status, quotas, audit log, keys.")
quota = typer.Typer(no_args_is_help=True, help="What organisations may have.")
audit = typer.Typer(invoke_without_command=True, help="Who did what.")
keys = typer.Typer(invoke_without_command=True, help="The platform's own keys.")
app.add_typer(quota, name="quota")
app.add_typer(audit, name="audit")
app.add_typer(keys, name="keys")
app.add_typer(keycloak.app, name="keycloak")
app.add_typer(storage.app, name="storage")

Organisation = Annotated[str, typer.Argument(help="By id or name.")]
DataFolder = Annotated[Path | None, typer.Option(help="Data folder of the server (FOEDUS_DATA).")]
Since = Annotated[
    datetime | None, typer.Option(help="Only what was done then or later; local time.")
]


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show what runs, what waits and why, and who has how much."""
    with connect() as foedus:
        found = foedus.admin.status()
    if as_json:
        say_json(found)
        return
    counts = ", ".join(f"{jobs} {phase}" for phase, jobs in sorted(found.jobs.items())) or "none"
    say(f"jobs: {counts}; slots: {found.slots}")
    say("\nrunning")
    say_table(
        ("JOB", "ATTEMPT", "ORGANISATION", "PHASE", "SINCE", "REPLICA"),
        (
            (
                one.job,
                str(one.number),
                one.organisation,
                one.phase,
                moment(one.started_at),
                one.replica,
            )
            for one in found.attempts
        ),
    )
    say("\nwaiting")
    say_table(
        ("JOB", "ORGANISATION", "SINCE", "WAITS FOR"),
        ((o.job, o.organisation, moment(o.submitted_at), o.waits_for) for o in found.queue),
    )
    if found.stalled or found.clearing:
        say("\nin trouble, or closed and not cleared away")
        troubles = dict.fromkeys(found.clearing, "is being cleared away") | dict(found.stalled)
        say_table(("JOB", "TROUBLE"), sorted(troubles.items()))
    say("\nkept after a job's end")
    say_table(
        ("WHAT", "DAYS", "OF JOBS", "NEXT GOES"),
        (
            (
                one.kind,
                "for ever" if one.days is None else f"{one.days:g}",
                str(one.jobs),
                "" if one.next_at is None else moment(one.next_at),
            )
            for one in found.retention
        ),
    )
    say("\norganisations (used / quota)")
    _say_uses(found.organisations)


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="Made if need be; the next one there is quicker.")],
    data: DataFolder = None,
) -> None:
    """Back a data folder up, on its own machine, while the server runs or does not."""
    _run_on_data("backup", folder, data)


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="Of the backup.")], data: DataFolder = None
) -> None:
    """Restore a backup into a data folder that has no records yet; then start the server."""
    _run_on_data("restore", folder, data)


def _run_on_data(deed: str, folder: Path, data: Path | None) -> None:
    argv = [sys.executable, "-m", "control_plane", deed, str(folder)]
    environment = server_environment(os.environ, {"FOEDUS_DATA": data})
    os.execve(sys.executable, argv, environment)  # noqa: S606


@quota.command("set")
def set_quota(
    organisation: Organisation,
    running: Annotated[int | None, typer.Option(min=0, help="Jobs that run at a time.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Worker processes of these together.")
    ] = None,
    storage_mb: Annotated[
        int | None, typer.Option(min=0, help="Uploads, artifacts and models together, in MiB.")
    ] = None,
    open_jobs: Annotated[int | None, typer.Option(min=0, help="Jobs that have not ended.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change what an organisation may have; what is left out stays as it is."""
    from clients.resources import QuotaChange

    given = {
        "running": running,
        "workers": workers,
        "storage_bytes": None if storage_mb is None else storage_mb << 20,
        "open_jobs": open_jobs,
    }
    changes = {name: bound for name, bound in given.items() if bound is not None}
    if not changes:
        raise typer.BadParameter("say what to set, as --running 4", param_hint="--running")
    with connect() as foedus:
        use = foedus.admin.change_quota(organisation, QuotaChange(**changes))
    _say_use(use, as_json=as_json)


@quota.command("reset")
def reset_quota(organisation: Organisation, as_json: AsJson = False) -> None:
    """Leave all of an organisation's quota to the platform's settings."""
    from clients.resources import QuotaChange

    change = QuotaChange(running=None, workers=None, storage_bytes=None, open_jobs=None)
    with connect() as foedus:
        use = foedus.admin.change_quota(organisation, change)
    _say_use(use, as_json=as_json)


@quota.command("show")
def show_quota(as_json: AsJson = False) -> None:
    """Show what your own organisation has and may have."""
    with connect() as foedus:
        use = foedus.quota()
    _say_use(use, as_json=as_json)


@audit.callback()
def list_audit(
    context: typer.Context,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, help="Newest entries to show.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show who did what, newest first."""
    if context.invoked_subcommand is not None:
        return
    import itertools

    with connect() as foedus:
        entries = tuple(itertools.islice(foedus.admin.audit(since and since.astimezone()), limit))
    say_each(
        entries,
        ("NUMBER", "AT", "ACTOR", "ACTION", "OBJECT", "OUTCOME"),
        lambda entry: (
            str(entry.number),
            moment(entry.at),
            entry.actor or "the platform",
            entry.action,
            entry.object,
            entry.outcome,
        ),
        as_json=as_json,
    )


@audit.command("verify")
def verify_audit(
    known: Annotated[
        str, typer.Option(metavar="NUMBER=DIGEST", help="Of an entry, as you kept them elsewhere.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Compute every digest of the log anew; leaves with 1 if the log was tampered with."""
    entry = None
    if known:
        number, _, digest = known.partition("=")
        if not (number.isascii() and number.isdigit() and digest):
            raise typer.BadParameter("is not NUMBER=DIGEST", param_hint="--known")
        entry = (int(number), digest)
    with connect() as foedus:
        found = foedus.admin.verify_audit(entry)
    if as_json:
        say_json(found)
    elif found.is_whole:
        say(f"{found.rows} entries, whole; keep this elsewhere: {found.rows}={found.head}")
    else:
        say(f"tampered with: entry {found.broken_at} is not what was written")
    if not found.is_whole:
        raise typer.Exit(UNSUCCESSFUL)


@keys.callback()
def list_keys(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the platform's own keys: what for, since when and until when."""
    if context.invoked_subcommand is not None:
        return
    with connect() as foedus:
        found = foedus.admin.keys()
    _say_keys(found, as_json=as_json)


@keys.command("rotate")
def rotate_key(
    purpose: Annotated[str, typer.Argument(help="As `foedus admin keys` shows it.")],
    at_once: Annotated[
        bool, typer.Option("--at-once", help="The one before is good no more, as after a theft.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Have a new key take the place of one, which is good for another day and wiped then."""
    with connect() as foedus:
        made = foedus.admin.rotate_key(purpose, at_once=at_once)
    _say_keys((made,), as_json=as_json)


def _say_keys(found: tuple[PlatformKey, ...], *, as_json: bool) -> None:
    say_each(
        found,
        ("PURPOSE", "KEY", "STATE", "CREATED", "ENDS"),
        lambda one: (
            one.purpose,
            one.id,
            one.state,
            "" if one.created_at is None else moment(one.created_at),
            "" if one.ends_at is None else moment(one.ends_at),
        ),
        as_json=as_json,
    )


def _say_use(use: OrganisationUse, *, as_json: bool) -> None:
    if as_json:
        say_json(use)
    else:
        _say_uses((use,))


def _say_uses(uses: tuple[OrganisationUse, ...]) -> None:
    def of(used: int, most: int | None) -> str:
        return str(used) if most is None else f"{used} / {most}"

    def bytes_of(used: int, most: int | None) -> str:
        return size(used) if most is None else f"{size(used)} / {size(most)}"

    say_table(
        ("ID", "ORGANISATION", "RUNNING", "WORKERS", "STORAGE", "OPEN JOBS"),
        (
            (
                one.id,
                one.name,
                of(one.use.running, one.quota.running),
                of(one.use.workers, one.quota.workers),
                bytes_of(one.use.storage_bytes, one.quota.storage_bytes),
                of(one.use.open_jobs, one.quota.open_jobs),
            )
            for one in uses
        ),
    )
