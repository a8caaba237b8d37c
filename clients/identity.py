"""Port to whoever says who is calling."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec

from clients.resources import Role


class NotAuthentic(Exception):
    """The credential proves nothing: forged, expired, revoked, or for someone else."""


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
    """Port. Adapters: ``control_plane.local_identity`` (users and hashed tokens of our own)."""

    async def authenticate(self, credential: str) -> Principal:
        """Whom ``credential`` speaks for.

        Raises:
            NotAuthentic: Nobody.
        """
        ...
