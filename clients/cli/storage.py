"""Commands about the buckets of organisations."""

from __future__ import annotations

from typing import Annotated

import typer

from clients.cli.connection import connect
from clients.cli.output import AsJson, moment, say, say_each, say_json, tell

app = typer.Typer(no_args_is_help=True, help="Credentials for organisations' own buckets.")

Organisation = Annotated[str, typer.Argument(help="By id or name.")]


@app.command("list")
def list_credentials(organisation: Organisation, as_json: AsJson = False) -> None:
    """List an organisation's credentials, newest first; their secrets are not known here."""
    with connect() as foedus:
        found = tuple(foedus.storage.list(organisation))
    say_each(
        found,
        ("ID", "LABEL", "ACCESS KEY", "MADE", "EXPIRES"),
        lambda one: (
            one.id,
            one.label,
            one.access_key,
            moment(one.created_at),
            moment(one.expires_at),
        ),
        as_json=as_json,
    )


@app.command("new")
def new_credential(
    organisation: Organisation,
    label: Annotated[str, typer.Option(help="What they are for.")] = "storage",
    days: Annotated[int, typer.Option(min=1, max=365, help="End after so many days.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Make credentials and write them out, this once, as S3 clients read them."""
    from clients.resources import NewStorageCredential

    new = NewStorageCredential(label=label, lifetime_s=days * 86_400)
    with connect() as foedus:
        made = foedus.storage.make(organisation, new)
    if as_json or made.access is None:
        say_json(made)
        return
    say(f"AWS_ENDPOINT_URL={made.access.url}")
    say(f"AWS_REGION={made.access.region}")
    say(f"AWS_ACCESS_KEY_ID={made.access.access_key}")
    say(f"AWS_SECRET_ACCESS_KEY={made.access.secret_key}")
    tell(f"They read and write {made.access.datasets}, and read {made.access.models},")
    tell(f"until {moment(made.expires_at)}; `foedus admin storage revoke` ends them before.")


@app.command("revoke")
def revoke_credential(
    organisation: Organisation,
    credential_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the credentials.")],
    as_json: AsJson = False,
) -> None:
    """End credentials at once."""
    with connect() as foedus:
        foedus.storage.revoke(organisation, credential_id)
    if as_json:
        say_json({"revoked": credential_id})
    else:
        say(f"{credential_id} is revoked")
