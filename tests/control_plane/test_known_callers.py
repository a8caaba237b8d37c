from __future__ import annotations

from datetime import UTC, datetime, timedelta

from clients.identity import Principal
from clients.resources import Role
from control_plane.known_callers import KnownCallers

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=30)


def caller(name: str) -> Principal:
    return Principal(user=name, name=name, organisation="home", roles=frozenset({Role.DEVELOPER}))


def test_a_caller_is_known_until_the_moment_named() -> None:
    known = KnownCallers(2)
    known.add("a", caller("ann"), LATER)

    assert known.find("a", LATER - timedelta(microseconds=1)) == caller("ann")
    assert known.find("a", LATER) is None
    assert known.find("b", NOW) is None


def test_who_was_asked_for_longest_ago_makes_room() -> None:
    known = KnownCallers(2)
    known.add("a", caller("ann"), LATER)
    known.add("b", caller("bob"), LATER)
    known.find("a", NOW)

    known.add("c", caller("cy"), LATER)

    assert [known.find(hashed, NOW) is not None for hashed in "abc"] == [True, False, True]
    assert len(known) == 2


def test_nobody_is_known_after_clearing() -> None:
    known = KnownCallers(2)
    known.add("a", caller("ann"), LATER)

    known.clear()

    assert known.find("a", NOW) is None
