from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select

from clients.identity import Principal
from clients.resources import KeyState, Role
from control_plane.audit import list_audit
from control_plane.keyring import CURSORS, Key, KeyRing, lacking
from control_plane.platform import Platform, open_platform
from control_plane.records.tables import SECRET
from control_plane.refusals import Forbidden, NotFound
from control_plane.retention import sweep
from control_plane.rotation import OVERLAP, list_keys, rotate
from sharing.directory_store import DirectoryStore
from tests.control_plane.conftest import Clock, People
from tests.control_plane.test_reconciler_faults import Died, FailPoints, MortalDatabase

pytestmark = pytest.mark.anyio


@pytest.fixture
async def platform(
    data_folder: Path, database_url: str | None, clock: Clock
) -> AsyncIterator[Platform]:
    store = DirectoryStore(data_folder / "objects")
    async with open_platform(
        folder=data_folder, store=store, now=clock, database_url=database_url
    ) as platform:
        yield platform


async def test_a_new_key_seals_and_the_one_before_opens_for_a_day(
    platform: Platform, admin: Principal, clock: Clock
) -> None:
    [first] = platform.keys.values(CURSORS)

    made = await rotate(platform, admin, CURSORS, is_at_once=False)

    sealing, opening = platform.keys.values(CURSORS)
    assert (opening, sealing != first) == (first, True)
    listed = await list_keys(platform, admin)
    assert {(key.id, key.state) for key in listed} == {
        (CURSORS, KeyState.OPENS),
        (made.id, KeyState.SEALS),
    }
    clock.now += OVERLAP - timedelta(seconds=1)
    assert platform.keys.values(CURSORS) == (sealing, first)
    clock.now += timedelta(seconds=1)
    assert platform.keys.values(CURSORS) == (sealing,)


async def test_a_key_that_ended_is_wiped_and_never_comes_again(
    platform: Platform, admin: Principal, clock: Clock, data_folder: Path
) -> None:
    [first] = platform.keys.values(CURSORS)
    await rotate(platform, admin, CURSORS, is_at_once=False)
    clock.now += OVERLAP

    await sweep(platform)
    await sweep(platform)

    rows = await platform.database.rows(select(SECRET.c.value))
    assert [bytes(row.value) for row in rows] == list(platform.keys.values(CURSORS))
    again = KeyRing(platform.database, clock)
    await again.load()
    assert again.values(CURSORS) == platform.keys.values(CURSORS) != (first,)
    entries = (await list_audit(platform, admin, 10)).items
    assert [e.action for e in entries[:2]] == ["key.wipe", "key.rotate"]
    assert not [e for e in entries if first.hex() in str(e)]


async def test_after_a_theft_the_key_before_is_gone_at_once(
    platform: Platform, admin: Principal
) -> None:
    await rotate(platform, admin, CURSORS, is_at_once=False)
    before = platform.keys.values(CURSORS)

    await rotate(platform, admin, CURSORS, is_at_once=True)

    [sealing] = platform.keys.values(CURSORS)
    assert sealing not in before
    assert len(await platform.database.rows(select(SECRET.c.name))) == 1


async def test_rotating_often_keeps_each_for_its_own_day(
    platform: Platform, admin: Principal, clock: Clock
) -> None:
    for _ in range(3):
        await rotate(platform, admin, CURSORS, is_at_once=False)
        clock.now += OVERLAP / 2

    assert len(platform.keys.values(CURSORS)) == 2


async def test_a_kill_at_any_point_leaves_a_key_that_seals(
    platform: Platform, admin: Principal, clock: Clock
) -> None:
    for at in range(1, 20):
        [*_, before] = platform.keys.values(CURSORS)
        database: Any = MortalDatabase(platform.database, FailPoints(at=at))
        try:
            await rotate(replace(platform, database=database), admin, CURSORS, is_at_once=False)
        except Died:
            after = KeyRing(platform.database, clock)
            await after.load()
            assert before in after.values(CURSORS)
            rows = await platform.database.rows(
                select(SECRET.c.name).where(SECRET.c.ends_at.is_(None))
            )
            assert len(rows) == 1
        else:
            break
    assert at > 1


async def test_only_who_runs_the_platform_may(platform: Platform, people: People) -> None:
    operator = await people.add("home", "op", Role.OPERATOR)
    other = await people.add("clinic", "boss", Role.ADMIN)

    assert await list_keys(platform, operator)
    for who in (operator, other):
        with pytest.raises(Forbidden):
            await rotate(platform, who, CURSORS, is_at_once=True)
    with pytest.raises(Forbidden):
        await list_keys(platform, other)
    with pytest.raises(NotFound):
        await rotate(platform, people.admin, "cursors.key", is_at_once=False)


async def test_a_key_of_before_keys_had_dates_is_good(platform: Platform, clock: Clock) -> None:
    value = b"o" * 32
    async with platform.database.writing() as transaction:
        await transaction.execute(delete(SECRET))
        await transaction.execute(SECRET.insert(), {"name": CURSORS, "value": value})

    await platform.keys.load()

    assert platform.keys.values(CURSORS) == (value,)
    assert "ooo" not in repr(platform.keys) + repr(await platform.keys._read())


def test_a_purpose_without_a_key_that_seals_lacks_one() -> None:
    ended = Key(id=CURSORS, value=b"", created_at=None, ends_at=datetime(2026, 1, 1, tzinfo=UTC))

    assert lacking((ended,)) == (CURSORS,)
    assert lacking((ended, replace(ended, id=f"{CURSORS}.key_1", ends_at=None))) == ()
