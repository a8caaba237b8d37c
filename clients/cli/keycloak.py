"""Commands that set up the realm of Keycloak by which users log in."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from clients.cli.connection import read_settings
from clients.cli.output import AsJson, say, say_json

if TYPE_CHECKING:
    from clients.keycloak_realm import Realm

app = typer.Typer(no_args_is_help=True, help="The realm of Keycloak by which users log in.")
PASSWORD: Final = "FOEDUS_KEYCLOAK_ADMIN_PASSWORD"  # noqa: S105 - the name of a variable

RealmName = Annotated[
    str,
    typer.Option("--realm", envvar=["FOEDUS_KEYCLOAK_REALM", "KEYCLOAK_REALM"], help="Its name."),
]
ServerUrl = Annotated[
    str,
    typer.Option(
        envvar=["FOEDUS_KEYCLOAK_SERVER_URL", "KEYCLOAK_SERVER_URL"],
        help="Of Keycloak, as https://keycloak.example.org.",
    ),
]
AdminUser = Annotated[
    str,
    typer.Option(
        envvar="FOEDUS_KEYCLOAK_ADMIN_USER",
        help=f"Administrator in the realm master; the password is {PASSWORD}, or is asked for.",
    ),
]


@app.command("export")
def export_realm(realm: RealmName = "foedus") -> None:
    """Write the realm as JSON, for Keycloak's own import (`kc.sh start --import-realm`)."""
    import json

    from clients.keycloak_realm import realm_document

    say(json.dumps(realm_document(realm), indent=2))


@app.command("import")
def import_realm(
    server_url: ServerUrl,
    realm: RealmName = "foedus",
    admin_user: AdminUser = "admin",
    as_json: AsJson = False,
) -> None:
    """Bring the realm into a Keycloak server, and say what was changed there."""
    from clients.keycloak_realm import realm_document

    changes = []
    for change in _open(server_url, realm, admin_user).bring_in(realm_document(realm)):
        changes.append(change)
        if not as_json:
            say(change)
    if as_json:
        say_json({"realm": realm, "changes": changes})
    elif not changes:
        say(f"realm {realm}: nothing to change")


@app.command("machine")
def add_machine(
    name: Annotated[str, typer.Argument(help="Of the new client.")],
    server_url: ServerUrl,
    organisation: Annotated[str, typer.Option(help="That it acts for.")],
    role: Annotated[list[str], typer.Option(help="Of the realm; may be given again.")],
    realm: RealmName = "foedus",
    admin_user: AdminUser = "admin",
    as_json: AsJson = False,
) -> None:
    """Add a client for a machine and write out its secret, for FOEDUS_CLIENT_SECRET."""
    secret = _open(server_url, realm, admin_user).add_machine(name, organisation, role)
    if as_json:
        say_json({"client_id": name, "client_secret": secret})
    else:
        say(secret)


def _open(server_url: str, realm: str, admin_user: str) -> Realm:
    from clients.keycloak_realm import Realm

    password = os.environ.get(PASSWORD, "")
    if not password and sys.stdin.isatty():
        password = typer.prompt(f"Password of {admin_user}", hide_input=True, err=True)
    if not password:
        raise typer.BadParameter("is not set", param_hint=PASSWORD)
    allow_plain_http = read_settings().allow_plain_http
    return Realm(server_url, realm, admin_user, password, allow_plain_http=allow_plain_http)
