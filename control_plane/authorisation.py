"""Who may do what, as one table."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from clients.identity import Principal
from clients.resources import Role


class Action(enum.StrEnum):
    """Everything that a caller can ask for, by what it needs."""

    READ = "read"
    SUBMIT = "submit"
    CANCEL = "cancel"
    DELETE = "delete"
    READ_LOGS = "read-logs"
    UPLOAD = "upload"
    FOUND = "found"
    MANAGE_USERS = "manage-users"
    MANAGE_ORGANISATIONS = "manage-organisations"
    MANAGE_STORAGE = "manage-storage"
    READ_AUDIT = "read-audit"
    READ_PLATFORM = "read-platform"


class Relation(enum.StrEnum):
    """How the caller's organisation stands to the thing."""

    OWNER = "owner"
    PARTNER = "partner"
    STRANGER = "stranger"


_EVERYONE: Final = frozenset(Role)
_WRITERS: Final = frozenset({Role.DEVELOPER, Role.ADMIN})
_RUNNERS: Final = frozenset({Role.DEVELOPER, Role.OPERATOR, Role.ADMIN})
_ADMINS: Final = frozenset({Role.ADMIN})
_AUDITORS: Final = frozenset({Role.ADMIN, Role.AUDITOR})
_KEEPERS: Final = frozenset({Role.ADMIN, Role.OPERATOR})
_NOBODY: Final[frozenset[Role]] = frozenset()

ALLOWED: Final[Mapping[Action, tuple[frozenset[Role], frozenset[Role]]]] = {
    # action: (roles within the owning organisation, roles within a partner of the collaboration)
    Action.READ: (_EVERYONE, _EVERYONE),
    Action.SUBMIT: (_WRITERS, _WRITERS),
    Action.CANCEL: (_RUNNERS, frozenset({Role.OPERATOR})),
    Action.DELETE: (_WRITERS, _NOBODY),
    Action.READ_LOGS: (_RUNNERS, frozenset({Role.OPERATOR})),
    Action.UPLOAD: (_WRITERS, _NOBODY),
    Action.FOUND: (_ADMINS, _NOBODY),
    Action.MANAGE_USERS: (_ADMINS, _NOBODY),
    Action.MANAGE_ORGANISATIONS: (_ADMINS, _NOBODY),
    Action.MANAGE_STORAGE: (_ADMINS, _NOBODY),
    Action.READ_AUDIT: (_AUDITORS, _NOBODY),
    Action.READ_PLATFORM: (_KEEPERS, _NOBODY),
}


def may(roles: frozenset[Role], action: Action, relation: Relation) -> bool:
    """True if a caller with ``roles`` may do ``action`` to a thing it stands to as ``relation``."""
    within, beside = ALLOWED[action]
    match relation:
        case Relation.OWNER:
            return bool(roles & within)
        case Relation.PARTNER:
            return bool(roles & beside)
        case Relation.STRANGER:
            return False


def relation_of(who: Principal, owner: str, *, is_partner: bool) -> Relation:
    """How ``who`` stands to a thing of ``owner``.

    Args:
        who: Asks.
        owner: Organisation that the thing belongs to.
        is_partner: Whether their organisations are in the collaboration that the thing is part of.
    """
    if who.organisation == owner:
        return Relation.OWNER
    return Relation.PARTNER if is_partner else Relation.STRANGER
