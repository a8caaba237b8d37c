from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from clients.identity import IdentityProvider, NotAuthentic, Principal
from clients.resources import (
    NewCollaboration,
    NewOrganisation,
    NewToken,
    NewUser,
    Role,
    Visibility,
)
from control_plane.accounts import (
    add_organisation,
    add_token,
    add_user,
    bootstrap,
    list_organisations,
    list_tokens,
    list_users,
    revoke_token,
    whoami,
)
from control_plane.collaborations import (
    found_collaboration,
    get_collaboration,
    list_collaborations,
)
from control_plane.ids import hash_of_token, new_id
from control_plane.local_identity import LocalIdentity
from control_plane.platform import Platform
from control_plane.records.database import Database
from control_plane.refusals import Forbidden, NameTaken, NotFound, Unacceptable
from tests.control_plane.conftest import Clock, People
from tests.control_plane.databases import sqlite_alone

pytestmark = pytest.mark.anyio


class CountingDatabase:
    """The records, and how often they were searched."""

    def __init__(self, inner: Database) -> None:
        self.inner = inner
        self.searches = 0

    async def one_or_none(self, *arguments: object) -> object:
        self.searches += 1
        return await self.inner.one_or_none(*arguments)  # type: ignore[arg-type]


async def test_the_first_start_makes_an_admin_and_later_ones_nothing(platform: Platform) -> None:
    announced: list[str] = []

    token = await bootstrap(platform, announced.append)
    again = await bootstrap(platform, announced.append)

    assert again is None
    assert announced == [token]
    assert token is not None
    assert token.startswith("foedus_")
    admin = await platform.identity.authenticate(token)
    user = await whoami(platform, admin)
    assert (user.name, set(user.roles)) == (
        "admin",
        {Role.ADMIN, Role.DEVELOPER, Role.OPERATOR},
    )
    [collaboration] = (await list_collaborations(platform, admin, 10)).items
    assert (collaboration.name, collaboration.organisations) == ("home", (admin.organisation,))


async def test_a_start_that_dies_while_it_shows_the_token_is_made_up_for(
    platform: Platform,
) -> None:
    def die(token: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await bootstrap(platform, die)

    assert await bootstrap(platform) is not None


@sqlite_alone
async def test_no_token_is_stored(platform: Platform, people: People) -> None:
    secret = people.token.removeprefix("foedus_").encode()

    assert hash_of_token(people.token).encode() in (
        (platform.folder / "foedus.db").read_bytes()
        + (platform.folder / "foedus.db-wal").read_bytes()
    )
    assert [p for p in platform.folder.rglob("*") if p.is_file() and secret in p.read_bytes()] == []


@pytest.mark.parametrize("credential", ["", "foedus_", "foedus_unknown", "Bearer x", "x" * 5000])
async def test_what_proves_nothing_is_nobody(platform: Platform, credential: str) -> None:
    with pytest.raises(NotAuthentic):
        await platform.identity.authenticate(credential)


async def test_local_identity_is_an_identity_provider(platform: Platform) -> None:
    assert isinstance(platform.identity, IdentityProvider)


async def test_a_token_is_searched_for_once_a_minute(platform: Platform, people: People) -> None:
    clock, database = Clock(), CountingDatabase(platform.database)
    identity = LocalIdentity(database, clock)  # type: ignore[arg-type]

    for _ in range(5):
        await identity.authenticate(people.token)
    assert database.searches == 1
    clock.now += timedelta(seconds=61)
    await identity.authenticate(people.token)

    assert database.searches == 2


async def test_an_expired_token_is_nobodys_from_that_moment(platform: Platform) -> None:
    token = await bootstrap(platform)
    assert token is not None
    clock = Clock()
    clock.now = platform.now()
    identity = LocalIdentity(platform.database, clock)
    admin = await identity.authenticate(token)
    ends = clock.now + timedelta(seconds=30)
    made = await add_token(platform, admin, NewToken(expires_at=ends))
    assert made.secret is not None

    assert (await identity.authenticate(made.secret)).user == admin.user
    clock.now = ends
    with pytest.raises(NotAuthentic):
        await identity.authenticate(made.secret)


async def test_a_revoked_token_is_nobodys_at_once(platform: Platform, people: People) -> None:
    made = await add_token(platform, people.admin, NewToken(label="laptop"))
    assert made.secret is not None
    await platform.identity.authenticate(made.secret)

    await revoke_token(platform, people.admin, made.id)

    with pytest.raises(NotAuthentic):
        await platform.identity.authenticate(made.secret)
    with pytest.raises(NotFound):
        await revoke_token(platform, people.admin, made.id)
    assert (await platform.identity.authenticate(people.token)).user == people.admin.user


async def test_a_search_that_began_before_a_revocation_is_not_remembered(
    platform: Platform, people: People
) -> None:
    database = CountingDatabase(platform.database)
    identity = LocalIdentity(database, platform.now)  # type: ignore[arg-type]

    async def overtaken(*arguments: object) -> object:
        row = await platform.database.one_or_none(*arguments)  # type: ignore[arg-type]
        identity.forget()
        return row

    searching = database.one_or_none
    database.one_or_none = overtaken  # type: ignore[method-assign]
    await identity.authenticate(people.token)
    database.one_or_none = searching  # type: ignore[method-assign]
    await identity.authenticate(people.token)

    assert database.searches == 1


async def test_tokens_are_listed_without_their_secrets(platform: Platform, people: People) -> None:
    made = await add_token(platform, people.admin, NewToken(label="laptop"))

    first = await list_tokens(platform, people.admin, 1)
    second = await list_tokens(platform, people.admin, 1, first.next)

    assert [token.label for token in (*first.items, *second.items)] == ["laptop", "first"]
    assert [token.secret for token in (*first.items, *second.items)] == [None, None]
    assert first.items[0].id == made.id


async def test_a_token_in_the_past_is_refused(platform: Platform, people: People) -> None:
    past = datetime(2020, 1, 1, tzinfo=UTC)
    naive = datetime(2999, 1, 1)  # noqa: DTZ001 - that is the point

    for moment in (past, naive):
        with pytest.raises(Unacceptable, match="expires_at"):
            await add_token(platform, people.admin, NewToken(expires_at=moment))


async def test_only_an_admin_makes_or_ends_tokens_of_others(
    platform: Platform, people: People
) -> None:
    bob = await people.add("home", "bob", Role.DEVELOPER)
    eve = await people.add("elsewhere", "eve", Role.ADMIN)
    admins = (await list_tokens(platform, people.admin, 10)).items[0].id

    assert (await add_token(platform, people.admin, NewToken(user=eve.user))).user == eve.user
    for caller in (bob, eve):
        with pytest.raises(NotFound):
            await add_token(platform, caller, NewToken(user=people.admin.user))
        for token in (admins, "token-unknown"):
            with pytest.raises(NotFound, match=r"^no such token$"):
                await revoke_token(platform, caller, token)
    with pytest.raises(NotFound):
        await add_token(platform, people.admin, NewToken(user="user-unknown"))


async def test_organisations_are_the_hosts_to_add(platform: Platform, people: People) -> None:
    eve = await people.add("elsewhere", "eve", Role.ADMIN)
    bob = await people.add("home", "bob", Role.DEVELOPER)

    for caller in (eve, bob):
        with pytest.raises(Forbidden):
            await add_organisation(platform, caller, NewOrganisation(name="third"))
    with pytest.raises(NameTaken):
        await add_organisation(platform, people.admin, NewOrganisation(name="elsewhere"))

    everyone = (await list_organisations(platform, people.admin, 10)).items
    assert [organisation.name for organisation in everyone] == ["elsewhere", "home"]
    own = (await list_organisations(platform, eve, 10)).items
    assert [organisation.name for organisation in own] == ["elsewhere"]
    [theirs] = (await list_collaborations(platform, eve, 10)).items
    assert theirs.name == "elsewhere"


async def test_users_are_their_organisations_admins_to_add(
    platform: Platform, people: People
) -> None:
    eve = await people.add("elsewhere", "eve", Role.ADMIN)
    bob = await people.add("home", "bob", Role.DEVELOPER)

    added = await add_user(platform, eve, NewUser(name="dora", organisation="elsewhere"))

    assert (added.organisation, added.roles) == (eve.organisation, (Role.DEVELOPER,))
    with pytest.raises(NameTaken):
        await add_user(platform, eve, NewUser(name="dora", organisation="elsewhere"))
    for organisation in ("home", "nowhere"):
        with pytest.raises(Unacceptable, match=f"no organisation is called '{organisation}'"):
            await add_user(platform, eve, NewUser(name="mole", organisation=organisation))
    with pytest.raises(Forbidden):
        await add_user(platform, bob, NewUser(name="mole", organisation="home"))
    with pytest.raises(Forbidden):
        await list_users(platform, bob, 10)
    assert {u.name for u in (await list_users(platform, eve, 10)).items} == {"eve", "dora"}
    everyone = (await list_users(platform, people.admin, 10)).items
    assert [user.name for user in everyone] == ["dora", "bob", "eve", "admin"]


async def test_a_collaboration_names_organisations_by_name_or_id(
    platform: Platform, people: People
) -> None:
    eve = await people.add("elsewhere", "eve", Role.ADMIN)
    new = NewCollaboration(
        name="north",
        purpose="x-rays",
        organisations=("elsewhere",),
        visibility=Visibility(models=(eve.organisation,), metrics=("elsewhere",)),
        ends_at=datetime(2999, 1, 1, tzinfo=UTC),
    )

    made = await found_collaboration(platform, people.admin, new)

    assert set(made.organisations) == {people.admin.organisation, eve.organisation}
    assert made.visibility == Visibility(models=(eve.organisation,), metrics=(eve.organisation,))
    assert await get_collaboration(platform, eve, made.id) == made
    assert await get_collaboration(platform, eve, "north") == made
    with pytest.raises(NameTaken):
        await found_collaboration(platform, people.admin, new)


async def test_a_collaboration_is_founded_by_admins_of_what_is_there(
    platform: Platform, people: People
) -> None:
    await people.add("elsewhere", "eve", Role.ADMIN)
    bob = await people.add("home", "bob", Role.DEVELOPER)

    async def found(who: Principal, **fields: object) -> None:
        await found_collaboration(platform, who, NewCollaboration(name="x", **fields))  # type: ignore[arg-type]

    with pytest.raises(Forbidden):
        await found(bob)
    with pytest.raises(Unacceptable, match="organisations: no organisation is called 'nobody'"):
        await found(people.admin, organisations=("nobody",))
    with pytest.raises(Unacceptable, match=r"visibility\.models: no member is called 'elsewhere'"):
        await found(people.admin, visibility=Visibility(models=("elsewhere",)))
    with pytest.raises(Unacceptable, match="ends_at"):
        await found(people.admin, ends_at=datetime(2020, 1, 1, tzinfo=UTC))


async def test_a_collaboration_one_is_not_in_is_not_there(
    platform: Platform, people: People
) -> None:
    eve = await people.add("elsewhere", "eve", Role.ADMIN)
    home = (await list_collaborations(platform, people.admin, 10)).items[0]

    for name in (home.id, "home", "collaboration-unknown"):
        with pytest.raises(NotFound, match=r"^no such collaboration$"):
            await get_collaboration(platform, eve, name)


def test_ids_sort_by_time_and_say_what_they_name() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    moments = [start + timedelta(microseconds=7**i) for i in range(16)]

    ids = [new_id("job", moment) for moment in moments]

    assert ids == sorted(ids)
    assert len({len(id_) for id_ in ids}) == 1
    assert len({new_id("job", start) for _ in range(1000)}) == 1000
