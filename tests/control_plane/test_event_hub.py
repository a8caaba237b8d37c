from __future__ import annotations

import asyncio
import gc
import time
from contextlib import ExitStack
from datetime import UTC, datetime

import msgspec
import pytest

from clients.identity import Principal
from clients.resources import Event
from control_plane.admission import submit_job
from control_plane.event_hub import DEPTH, MAX_RINGS, EventHub
from control_plane.jobs import change_desired, watch
from control_plane.journal import Fact, load, record
from control_plane.platform import Platform
from control_plane.reconciler import Reconciler
from control_plane.refusals import NotFound, TooManyStreams
from control_plane.visibility import FULL, Sight
from tests.control_plane.conftest import People, job_spec
from tests.control_plane.scripted_engine import ScriptedEngine
from workflows.run import Desired

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NO_METRICS = Sight(models=True, metrics=False, site_names=True, evidence=True)


def event(number: int, **fields: object) -> Event:
    return Event(id=number, kind="something.happened", at=NOW, attempt=1, fields=fields)


def ids(hub: EventHub, job: str, after: int) -> list[int] | None:
    told = hub.since(job, after, FULL)
    return None if told is None else [one.id for one in told]


async def test_a_ring_gives_what_came_after() -> None:
    hub = EventHub(2000, 200)
    hub.publish("job-1", [event(1), event(2)])
    hub.publish("job-1", [event(3)])

    assert ids(hub, "job-1", 0) == [1, 2, 3]
    assert ids(hub, "job-1", 2) == [3]
    assert ids(hub, "job-1", 3) == []
    assert ids(hub, "job-1", 9) == []


async def test_a_ring_that_does_not_reach_back_says_so() -> None:
    hub = EventHub(2000, 200)
    hub.publish("job-1", [event(7), event(8)])

    assert ids(hub, "job-1", 5) is None
    assert ids(hub, "job-1", 6) == [7, 8]
    assert ids(hub, "job-2", 0) is None


async def test_a_gap_empties_the_ring_rather_than_show_in_it() -> None:
    hub = EventHub(2000, 200)
    hub.publish("job-1", [event(1), event(2)])

    hub.publish("job-1", [event(4)])

    assert ids(hub, "job-1", 1) is None
    assert ids(hub, "job-1", 3) == [4]


async def test_events_that_come_again_or_late_are_passed_over() -> None:
    hub = EventHub(most_watchers=10, most_per_user=10)
    hub.publish("job-1", [event(1), event(2)])

    hub.publish("job-1", [event(1)])
    hub.publish("job-1", [event(2), event(3)])

    assert ids(hub, "job-1", 0) == [1, 2, 3]


async def test_what_others_told_is_read_where_it_is_watched_and_given_up_where_not() -> None:
    hub = EventHub(most_watchers=10, most_per_user=10)
    hub.publish("job-1", [event(1), event(2)])

    with hub.watching("job-1", "user-1"):
        assert hub.lacks("job-1", 3, 4) == 2
        assert hub.lacks("job-1", 2, 2) is None
    assert hub.lacks("job-2", 3, 4) is None
    assert hub.lacks("job-1", 3, 4) is None

    assert ids(hub, "job-1", 2) is None


async def test_a_hub_that_may_have_missed_something_sends_watchers_to_the_table() -> None:
    hub = EventHub(most_watchers=10, most_per_user=10)
    hub.publish("job-1", [event(1)])
    changed = hub.changed("job-1")

    hub.forget()

    assert changed.is_set()
    assert ids(hub, "job-1", 0) is None


async def test_rings_are_bounded_in_depth_and_number() -> None:
    hub = EventHub(2000, 200)
    hub.publish("deep", [event(i) for i in range(1, 2 * DEPTH)])
    assert ids(hub, "deep", 0) is None
    assert len(ids(hub, "deep", DEPTH - 1) or []) == DEPTH

    with hub.watching("deep", "user"):
        for i in range(2 * MAX_RINGS):
            hub.publish(f"job-{i}", [event(1)])

        assert ids(hub, "job-0", 0) is None
        assert ids(hub, f"job-{2 * MAX_RINGS - 1}", 0) == [1]
        assert ids(hub, "deep", 2 * DEPTH - 2) == [2 * DEPTH - 1]


async def test_an_event_is_encoded_once_per_kind_of_view() -> None:
    hub = EventHub(2000, 200)
    hub.publish("job-1", [event(1, loss=0.5, round=1)])

    full, again = hub.since("job-1", 0, FULL), hub.since("job-1", 0, FULL)
    less = hub.since("job-1", 0, NO_METRICS)

    assert full is not None
    assert again is not None
    assert less is not None
    assert full[0] is again[0]
    assert msgspec.json.decode(full[0].data)["fields"] == {"loss": 0.5, "round": 1}
    assert msgspec.json.decode(less[0].data)["fields"] == {"round": 1}


async def tell(platform: Platform, job: str, count: int = 1) -> None:
    async with platform.database.writing() as transaction:
        row = await load(transaction, job)
        facts = [Fact(kind="something.happened", fields={"sent": time.perf_counter()})] * count
        await record(transaction, platform.hub, row, platform.now(), {}, facts)


async def watched_by(platform: Platform, count: int) -> None:
    async with asyncio.timeout(10):
        while platform.hub.num_watchers < count:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.001)


async def collect(platform: Platform, who: Principal, job: str, after: int = 0) -> list[int]:
    return [told.id async for told in await watch(platform, who, job, after)]


async def test_watchers_hear_everything_from_where_they_were_and_end_with_the_job(
    platform: Platform, admin: Principal
) -> None:
    job = (await submit_job(platform, admin, job_spec(), None)).id
    early = asyncio.create_task(collect(platform, admin, job))
    later = asyncio.create_task(collect(platform, admin, job, 1))
    ahead = asyncio.create_task(collect(platform, admin, job, 10_000))
    await watched_by(platform, 3)

    await tell(platform, job, 600)
    await change_desired(platform, admin, job, Desired.CANCELLED)
    await Reconciler(platform, ScriptedEngine(), lambda: "here").look()

    async with asyncio.timeout(10):
        everything = await early
        assert everything == list(range(1, everything[-1] + 1))
        assert await later == await ahead == everything[1:]
        assert await collect(platform, admin, job) == everything
        assert await collect(platform, admin, job, everything[-1]) == []
        assert await collect(platform, admin, job, 10_000) == []
    assert platform.hub.num_watchers == 0


async def test_a_watcher_after_a_restart_reads_what_is_on_record(
    platform: Platform, admin: Principal
) -> None:
    job = (await submit_job(platform, admin, job_spec(), None)).id
    await tell(platform, job, 700)
    platform.hub._rings.clear()  # as a new process finds them

    stream = await watch(platform, admin, job, 0)
    heard = [(await anext(stream)).id for _ in range(701)]
    await tell(platform, job)
    heard.append((await anext(stream)).id)

    assert heard == list(range(1, 703))
    await stream.aclose()  # type: ignore[attr-defined]


async def test_closing_the_hub_ends_every_watcher(platform: Platform, admin: Principal) -> None:
    job = (await submit_job(platform, admin, job_spec(), None)).id
    watchers = [asyncio.create_task(collect(platform, admin, job)) for _ in range(5)]
    await watched_by(platform, 5)

    platform.hub.close()

    async with asyncio.timeout(5):
        assert await asyncio.gather(*watchers) == [[1]] * 5


async def test_a_stranger_may_not_watch(platform: Platform, people: People) -> None:
    job = (await submit_job(platform, people.admin, job_spec(), None)).id
    stranger = await people.add("elsewhere", "eve")

    with pytest.raises(NotFound):
        await watch(platform, stranger, job, 0)


async def test_a_hundred_watchers_hear_within_a_tenth_of_a_second(
    platform: Platform, admin: Principal
) -> None:
    job = (await submit_job(platform, admin, job_spec(), None)).id
    delays: dict[int, list[float]] = {}

    async def listen() -> None:
        async for told in await watch(platform, admin, job, 1):
            sent = msgspec.json.decode(told.data)["fields"]["sent"]
            delays.setdefault(told.id, []).append(time.perf_counter() - sent)
            if told.id == 41:
                return

    watchers = [asyncio.create_task(listen()) for _ in range(100)]
    await watched_by(platform, 100)
    for _ in range(40):
        await tell(platform, job)
    await asyncio.gather(*watchers)

    assert [len(heard) for heard in delays.values()] == [100] * 40
    # The median event, so that a pause of the whole machine is not taken for ours.
    assert sorted(max(heard) for heard in delays.values())[20] < 0.1


@pytest.mark.parametrize(
    ("most", "per_user", "users", "is_let_in"),
    [
        (3, 2, ["a", "a"], False),
        (3, 2, ["a", "b"], True),
        (3, 2, ["a", "b", "b"], False),
        (4, 2, ["b", "b", "c"], True),
    ],
    ids=["who has all of theirs", "who has one", "the server is full", "others have all of theirs"],
)
async def test_watchers_are_counted_by_user_and_together(
    most: int, per_user: int, users: list[str], is_let_in: bool
) -> None:
    hub = EventHub(most, per_user)
    with ExitStack() as watching:
        for user in users:
            watching.enter_context(hub.watching("job-1", user))

        if is_let_in:
            watching.enter_context(hub.watching("job-2", "a"))
        else:
            with pytest.raises(TooManyStreams):
                watching.enter_context(hub.watching("job-2", "a"))
        assert hub.num_watchers == len(users) + is_let_in

    assert hub.num_watchers == 0
    with hub.watching("job-2", "a"):
        assert hub.num_watchers == 1


async def test_a_stream_that_nobody_reads_gives_its_place_back(
    platform: Platform, admin: Principal
) -> None:
    job = (await submit_job(platform, admin, job_spec(), None)).id
    stream = await watch(platform, admin, job)
    assert platform.hub.num_watchers == 1

    del stream
    gc.collect()

    async with asyncio.timeout(5):
        while platform.hub.num_watchers:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.001)
