"""A realm of Keycloak as the platform needs it: roles, clients, and the organisation of each user.

``realm.json`` beside this module is that realm, in the form that Keycloak itself imports. Here it
is brought into a server over its admin API, and what is there already is changed only where it
differs. The one place that changes anything at Keycloak.
Source: Keycloak's Admin REST API, 26.
"""

from __future__ import annotations

import contextlib
import importlib.resources
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from keycloak import KeycloakAdmin
from keycloak.exceptions import (
    KeycloakConnectionError,
    KeycloakError,
    KeycloakGetError,
)

from clients.errors import LoginRefused, RealmRefused, Unreachable
from clients.transport import require_secure

TIMEOUT_S: Final = 30
ORGANISATION: Final = "organisation"
_PROFILE: Final = "org.keycloak.userprofile.UserProfileProvider"
_AUDIENCE_MAPPER: Final = "foedus-audience"

Document = dict[str, Any]


def realm_document(realm: str) -> Document:
    """The realm, to be called ``realm``."""
    content = importlib.resources.files("clients").joinpath("realm.json").read_bytes()
    document: Document = msgspec.json.decode(content)
    return {**document, "realm": realm}


class Realm:
    """One realm of a server, in the hands of an administrator of the server.

    Args:
        server_url: Of Keycloak, as https://keycloak.example.org.
        realm: Its name.
        user: Name of the administrator, in the realm ``master``.
        password: Theirs.
        allow_plain_http: Whether the password may travel unencrypted to another machine.

    Raises:
        NotSecure: It would, and may not.
    """

    def __init__(
        self, server_url: str, realm: str, user: str, password: str, *, allow_plain_http: bool
    ) -> None:
        require_secure(server_url, allow_plain_http)
        self._name = realm
        with _translated():
            self._admin = KeycloakAdmin(
                server_url=f"{server_url.rstrip('/')}/",
                username=user,
                password=password,
                realm_name=realm,
                user_realm_name="master",
                timeout=TIMEOUT_S,
            )

    def bring_in(self, document: Document) -> Iterator[str]:
        """Make the realm as in ``document`` where it is not; yields what was changed, in words.

        What the document does not speak of stays as it is.

        Raises:
            LoginRefused: The administrator's name or password is wrong.
            RealmRefused: Keycloak refused.
            Unreachable: It does not answer.
        """
        with _translated():
            if not self._is_there():
                self._admin.create_realm(document)
                yield f"realm {self._name}: added"
            known = {role["name"] for role in self._admin.get_realm_roles()}
            for role in document["roles"]["realm"]:
                if role["name"] not in known:
                    self._admin.create_realm_role(role)
                    yield f"role {role['name']}: added"
            clients = {client["clientId"]: client for client in self._admin.get_clients()}
            for client in document["clients"]:
                yield from self._bring_in_client(client, clients.get(client["clientId"]))
            yield from self._bring_in_profile(document)

    def add_machine(self, name: str, organisation: str, roles: Iterable[str]) -> str:
        """Add a client that logs in by its own secret, which is returned.

        Raises:
            RealmRefused: There is one of this name, or no such role.
        """
        cli = next(c for c in realm_document(self._name)["clients"] if "protocolMappers" in c)
        audience = next(m for m in cli["protocolMappers"] if m["name"] == _AUDIENCE_MAPPER)
        claim = {
            "name": "foedus-organisation",
            "protocol": "openid-connect",
            "protocolMapper": "oidc-hardcoded-claim-mapper",
            "config": {
                "claim.name": ORGANISATION,
                "claim.value": organisation,
                "jsonType.label": "String",
                "access.token.claim": "true",
            },
        }
        with _translated():
            granted = [self._admin.get_realm_role(role) for role in roles]
            added = self._admin.create_client(
                {
                    "clientId": name,
                    "enabled": True,
                    "publicClient": False,
                    "standardFlowEnabled": False,
                    "directAccessGrantsEnabled": False,
                    "serviceAccountsEnabled": True,
                    "fullScopeAllowed": True,
                    "protocolMappers": [audience, claim],
                }
            )
            account = self._admin.get_client_service_account_user(added)
            self._admin.assign_realm_roles(account["id"], granted)
            return str(self._admin.get_client_secrets(added)["value"])

    def _is_there(self) -> bool:
        try:
            self._admin.get_realm(self._name)
        except KeycloakGetError as error:
            if error.response_code == HTTPStatus.NOT_FOUND:
                return False
            raise
        return True

    def _bring_in_client(self, wanted: Document, found: Document | None) -> Iterator[str]:
        name = wanted["clientId"]
        if found is None:
            self._admin.create_client(wanted)
            yield f"client {name}: added"
            return
        mappers = wanted.get("protocolMappers", [])
        plain = {key: value for key, value in wanted.items() if key != "protocolMappers"}
        if changed := differences(found, plain):
            self._admin.update_client(found["id"], merged(found, plain))
            yield f"client {name}: changed {', '.join(changed)}"
        known = {mapper["name"]: mapper for mapper in found.get("protocolMappers", [])}
        for mapper in mappers:
            existing = known.get(mapper["name"])
            if existing is None:
                self._admin.add_mapper_to_client(found["id"], mapper)
                yield f"client {name}: mapper {mapper['name']} added"
            elif differences(existing, mapper):
                self._admin.update_client_mapper(
                    found["id"], existing["id"], merged(existing, mapper)
                )
                yield f"client {name}: mapper {mapper['name']} changed"

    def _bring_in_profile(self, document: Document) -> Iterator[str]:
        """Let administrators, and nobody else, say to which organisation a user belongs."""
        config = document["components"][_PROFILE][0]["config"]["kc.user.profile.config"][0]
        wanted = next(
            attribute
            for attribute in msgspec.json.decode(config)["attributes"]
            if attribute["name"] == ORGANISATION
        )
        profile = self._admin.get_realm_users_profile()
        others = [a for a in profile["attributes"] if a["name"] != ORGANISATION]
        found = next((a for a in profile["attributes"] if a["name"] == ORGANISATION), None)
        if found is None or differences(found, wanted):
            self._admin.update_realm_users_profile({**profile, "attributes": [*others, wanted]})
            yield f"user attribute {ORGANISATION}: {'changed' if found else 'added'}"


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Keys of ``wanted`` under which ``found`` says something else; more in ``found`` is fine."""
    return [key for key, value in wanted.items() if not _covers(found.get(key), value)]


def merged(found: Document, wanted: Document) -> Document:
    """``found`` with what ``wanted`` says instead."""
    return {
        **found,
        **{
            key: {**found[key], **value}
            if isinstance(value, dict) and isinstance(found.get(key), dict)
            else value
            for key, value in wanted.items()
        },
    }


def _covers(found: Any, wanted: Any) -> bool:  # noqa: ANN401 - JSON
    if isinstance(wanted, dict):
        return isinstance(found, dict) and not differences(found, wanted)
    if isinstance(wanted, list):
        return isinstance(found, list) and sorted(found) == sorted(wanted)
    return bool(found == wanted)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except KeycloakConnectionError as error:
        raise Unreachable("Keycloak does not answer; is its address right?") from error
    except KeycloakError as error:
        if error.response_code == HTTPStatus.UNAUTHORIZED or "invalid_grant" in _said(error):
            raise LoginRefused("Keycloak does not know this administrator or password") from error
        raise RealmRefused(f"Keycloak refused: {_said(error)}") from error


def _said(error: KeycloakError) -> str:
    message = error.error_message
    return message.decode(errors="replace") if isinstance(message, bytes) else str(message)
