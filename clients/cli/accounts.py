"""Commands about who one is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli.connection import connect, read_settings
from clients.cli.output import AsJson, moment, say, say_json, say_table

if TYPE_CHECKING:
    from datetime import datetime

app = typer.Typer(no_args_is_help=True, help="Bearer tokens: list, make, revoke.")


def login(
    url: Annotated[
        str, typer.Option(help="Of the server; by default FOEDUS_URL, else this machine's.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Keep a token for later commands. It is asked for, or read from standard input."""
    from clients.settings import DEFAULT_URL, Login, write_login

    settings = read_settings()
    chosen = (url or settings.url or DEFAULT_URL).rstrip("/")
    if sys.stdin.isatty():
        token = typer.prompt("Token", hide_input=True, err=True)
    else:
        token = sys.stdin.readline()
    token = token.strip()
    if not token:
        raise typer.BadParameter("no token came on standard input", param_hint="TOKEN")
    with connect(chosen, token) as foedus:
        user = foedus.whoami()
    write_login(settings.credentials_path, Login(chosen, token))
    if as_json:
        say_json({"url": chosen, "user": user, "credentials": str(settings.credentials_path)})
    else:
        say(f"You are {user.name} at {chosen}. Kept in {settings.credentials_path}.")


@app.command("list")
def list_tokens(as_json: AsJson = False) -> None:
    """List your tokens, newest first; their secrets are known to nobody."""
    with connect() as foedus:
        found = tuple(foedus.tokens.list())
    if as_json:
        say_json(found)
        return
    say_table(
        ("ID", "LABEL", "MADE", "EXPIRES"),
        (
            (token.id, token.label, moment(token.created_at), moment(token.expires_at) or "never")
            for token in found
        ),
    )


@app.command("new")
def new_token(
    label: Annotated[str, typer.Argument(help="What it is for.")] = "token",
    days: Annotated[int | None, typer.Option(min=1, help="Expires after so many days.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and write it out, this once."""
    from clients.resources import NewToken

    with connect() as foedus:
        token = foedus.tokens.make(NewToken(label=label, expires_at=_in_days(days)))
    if as_json:
        say_json(token)
    else:
        say(token.secret or "")


@app.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the token.")],
    as_json: AsJson = False,
) -> None:
    """End a token at once."""
    with connect() as foedus:
        foedus.tokens.revoke(token_id)
    if as_json:
        say_json({"revoked": token_id})
    else:
        say(f"{token_id} is revoked")


def _in_days(days: int | None) -> datetime | None:
    from datetime import UTC, datetime, timedelta

    return None if days is None else datetime.now(UTC) + timedelta(days=days)
