"""Commands about who one is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli.connection import client, connect, read_settings
from clients.cli.output import AsJson, moment, say, say_each, say_json, tell

if TYPE_CHECKING:
    from datetime import datetime

    from clients.oidc import DevicePrompt
    from clients.settings import ClientSettings, Login, Session

app = typer.Typer(no_args_is_help=True, help="Bearer tokens: list, make, revoke.")


def login(
    url: Annotated[
        str, typer.Option(help="Of the server; by default FOEDUS_URL, else this machine's.")
    ] = "",
    device: Annotated[
        bool,
        typer.Option("--device", help="In a browser, at the server's identity provider."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Keep a token for later commands. It is asked for, or read from standard input."""
    from clients.settings import DEFAULT_URL, write_login

    settings = read_settings()
    chosen = (url or settings.url or DEFAULT_URL).rstrip("/")
    found = _by_device(settings, chosen) if device else _by_token(chosen)
    with client(settings, chosen, found.token) as foedus:
        user = foedus.whoami()
    write_login(settings.credentials_path, found)
    if as_json:
        say_json({"url": chosen, "user": user, "credentials": str(settings.credentials_path)})
    else:
        say(f"You are {user.name} at {chosen}. Kept in {settings.credentials_path}.")


def logout(as_json: AsJson = False) -> None:
    """Forget the kept login, and end it where it came from."""
    from clients.settings import forget_login, read_login

    settings = read_settings()
    kept = read_login(settings.credentials_path)
    if kept is not None:
        try:
            if kept.session is not None:
                _end(settings, kept.session)
        finally:
            forget_login(settings.credentials_path)
    if as_json:
        say_json({"url": kept.url if kept else None, "ended": bool(kept and kept.session)})
    elif kept is None:
        say("You were not logged in.")
    elif kept.session is None:
        say(f"Forgotten. The token still counts at {kept.url}; `foedus token revoke` ends one.")
    else:
        say(f"You are logged out of {kept.url}.")


def _by_token(url: str) -> Login:
    from clients.settings import Login

    if sys.stdin.isatty():
        token = typer.prompt("Token", hide_input=True, err=True)
    else:
        token = sys.stdin.readline()
    token = token.strip()
    if not token:
        raise typer.BadParameter("no token came on standard input", param_hint="TOKEN")
    return Login(url, token)


def _by_device(settings: ClientSettings, url: str) -> Login:
    import time

    from clients.oidc import OidcClient
    from clients.tokens import ask_login, login_of

    plain = settings.allow_plain_http
    where = ask_login(url, settings.timeout_s, plain)
    with OidcClient(where.issuer, settings.timeout_s, allow_plain_http=plain) as oidc:
        grant = oidc.by_device(where.client_id, _show)
    return login_of(grant, url, where.issuer, where.client_id, time.time())


def _show(prompt: DevicePrompt) -> None:
    if prompt.verification_uri_complete:
        tell(f"Open in a browser: {prompt.verification_uri_complete}")
        tell(f"It shows the code {prompt.user_code}; go on only if it is this one.")
    else:
        tell(f"Open in a browser: {prompt.verification_uri}")
        tell(f"Enter there the code: {prompt.user_code}")
    tell(f"Waiting for it, at most {prompt.expires_in / 60:.0f} minutes.")


def _end(settings: ClientSettings, session: Session) -> None:
    from clients.oidc import OidcClient

    with OidcClient(
        session.issuer, settings.timeout_s, allow_plain_http=settings.allow_plain_http
    ) as oidc:
        oidc.revoke(session.client_id, session.refresh_token)


@app.command("list")
def list_tokens(as_json: AsJson = False) -> None:
    """List your tokens, newest first; their secrets are known to nobody."""
    with connect() as foedus:
        found = tuple(foedus.tokens.list())
    say_each(
        found,
        ("ID", "LABEL", "MADE", "EXPIRES"),
        lambda token: (
            token.id,
            token.label,
            moment(token.created_at),
            moment(token.expires_at) or "never",
        ),
        as_json=as_json,
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
