"""Port to whoever says who is calling."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec

from clients.resources import Role


class NotAuthentic(Exception):
    """The credential proves nothing: forged, expired, revoked, or for someone else."""


class NotEntitled(Exception):
    """The credential is good, and whoever it speaks for has no place on this platform."""


class IdentityUnavailable(Exception):
    """Whether the credential is good cannot be told just now; it may be later."""


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated caller.

    Attributes:
        user: Stable id.
        name: For people.
        organisation: Id of the organisation the caller acts for.
        roles: What the caller may do there.
    """

    user: str
    name: str
    organisation: str
    roles: frozenset[Role]


@runtime_checkable
class IdentityProvider(Protocol):
    """Port.

    Adapters: ``control_plane.local_identity`` (users and hashed tokens of our own),
    ``control_plane.keycloak_identity`` (OIDC tokens of a Keycloak realm, beside tokens of our own).
    """

    async def authenticate(self, credential: str) -> Principal:
        """Whom ``credential`` speaks for.

        Raises:
            NotAuthentic: Nobody.
            NotEntitled: Someone who belongs to no organisation here, or has no role.
            IdentityUnavailable: It is signed by someone whose keys cannot be had just now.
        """
        ...

    def forget(self) -> None:
        """Look at every credential anew: one was revoked, or roles changed."""
        ...

    def remember(self, does: bool) -> None:
        """Whether to: not while a revocation by another replica would not be heard of."""
        ...
