from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from clients.resources import Quota
from control_plane.fairness import Queued, Share, fair_order

AT = datetime(2026, 11, 21, tzinfo=UTC)
NAMES = ("a", "b", "c")

bounds = st.none() | st.integers(0, 6)
shares_of = st.fixed_dictionaries(
    {
        name: st.builds(
            Share,
            running=st.integers(0, 4),
            workers=st.integers(0, 8),
            served_at=st.none() | st.integers(0, 9).map(lambda s: AT + timedelta(seconds=s)),
            quota=st.builds(Quota, running=bounds, workers=bounds),
        )
        for name in NAMES
    }
)
queues = st.lists(
    st.tuples(st.sampled_from(NAMES), st.integers(1, 5), st.integers(0, 2)), max_size=12
).map(
    lambda parts: [
        Queued(job=f"job-{i}", organisation=name, workers=workers, priority=priority)
        for i, (name, workers, priority) in enumerate(parts)
    ]
)


def queue(*organisations: str) -> list[Queued]:
    return [Queued(job=f"{name}{i}", organisation=name) for i, name in enumerate(organisations)]


def order(queued: list[Queued], shares: dict[str, Share], slots: int = 99) -> list[str]:
    return [place.job for place in fair_order(queued, shares, slots)]


def test_slots_go_round_by_organisation_however_much_one_submits() -> None:
    shares = {"a": Share(), "b": Share()}

    assert order(queue("a", "a", "a", "b", "b"), shares) == ["a0", "b3", "a1", "b4", "a2"]


def test_whoever_runs_least_is_next_and_then_whoever_was_served_longest_ago() -> None:
    queued = queue("a", "b", "c")
    later = AT + timedelta(seconds=1)
    shares = {
        "a": Share(running=1),
        "b": Share(served_at=later),
        "c": Share(served_at=AT),
    }

    assert order(queued, shares) == ["c2", "b1", "a0"]


def test_priority_decides_within_an_organisation_and_not_between_them() -> None:
    queued = [
        Queued(job="low", organisation="a", priority=0),
        Queued(job="other", organisation="b", priority=0),
        Queued(job="high", organisation="a", priority=2),
    ]

    assert order(queued, {"a": Share(), "b": Share()}) == ["other", "high", "low"]


def test_everybody_who_waits_is_told_for_what() -> None:
    shares = {
        "a": Share(running=2, workers=4, quota=Quota(running=2)),
        "b": Share(running=1, workers=6, quota=Quota(workers=8)),
        "c": Share(quota=Quota(running=0)),
        "d": Share(running=3),
    }
    queued = [
        Queued(job="a", organisation="a"),
        Queued(job="b", organisation="b", workers=4),
        Queued(job="b-huge", organisation="b", workers=9),
        Queued(job="c", organisation="c"),
        Queued(job="d0", organisation="d"),
        Queued(job="d1", organisation="d"),
        Queued(job="d2", organisation="d"),
        Queued(job="d3", organisation="d"),
    ]

    told = {place.job: place.waits_for for place in fair_order(queued, shares, 1)}

    assert told == {
        "d0": "",
        "d1": "a free slot: it is next",
        "d2": "a free slot: 1 job is ahead",
        "d3": "a free slot: 2 jobs are ahead",
        "a": "place 4; your organisation runs 2 of 2 jobs",
        "b": "place 5; your organisation uses 6 of 8 workers, and this job asks for 4",
        "b-huge": "place 6; your organisation may use 8 workers, and this job asks for 9",
        "c": "place 7; your organisation may run no jobs",
    }


@given(queues, shares_of, st.integers(0, 8))
def test_everyone_has_one_place_and_either_starts_or_is_told_why_not(
    queued: list[Queued], shares: dict[str, Share], slots: int
) -> None:
    places = fair_order(queued, shares, slots)

    assert sorted(place.job for place in places) == sorted(job.job for job in queued)
    waiting = [place.ahead for place in places if not place.starts]
    assert waiting == list(range(len(waiting)))
    assert all(place.starts == (place.waits_for == "") for place in places)


@given(queues, shares_of, st.integers(0, 8))
def test_no_slot_and_no_quota_is_overdrawn(
    queued: list[Queued], shares: dict[str, Share], slots: int
) -> None:
    started = {place.job for place in fair_order(queued, shares, slots) if place.starts}

    assert len(started) <= slots
    for name, share in shares.items():
        own = [job for job in queued if job.organisation == name and job.job in started]
        if own and share.quota.running is not None:
            assert share.running + len(own) <= share.quota.running
        if own and share.quota.workers is not None:
            assert share.workers + sum(job.workers for job in own) <= share.quota.workers


@given(queues, shares_of, st.integers(0, 8))
def test_a_slot_stays_free_only_if_no_quota_has_room_for_the_first_in_line(
    queued: list[Queued], shares: dict[str, Share], slots: int
) -> None:
    places = fair_order(queued, shares, slots)
    started = {place.job for place in places if place.starts}
    if len(started) == slots:
        return

    for name, share in shares.items():
        own = [job for job in queued if job.organisation == name and share.can_ever_hold(job)]
        now = Share(
            running=share.running + sum(job.job in started for job in own),
            workers=share.workers + sum(job.workers for job in own if job.job in started),
            quota=share.quota,
        )
        line = sorted(
            (job for job in own if job.job not in started),
            key=lambda job: -job.priority,
        )
        assert not (line and now.has_room(line[0]))


@given(st.lists(st.sampled_from(NAMES[1:]), max_size=30), st.integers(1, 3))
def test_nobody_starves_whatever_the_others_submit(arrivals: list[str], slots: int) -> None:
    queued = queue(*NAMES[1:], *arrivals)
    late = Queued(job="late", organisation="a")
    shares = {name: Share() for name in NAMES}
    running: list[Queued] = []
    for turn in range(len(NAMES) + slots):
        free = slots - len(running)
        places = fair_order([*queued, late], shares, free)
        started = {place.job for place in places if place.starts}
        if "late" in started:
            return
        running += [job for job in queued if job.job in started]
        ended = running.pop(0)  # one slot falls free in each turn, and the others never stop
        queued = [job for job in queued if job.job not in started]
        queued += queue(*NAMES[1:]) if not queued else []
        shares = {
            name: Share(
                running=sum(job.organisation == name for job in running),
                served_at=AT + timedelta(seconds=turn)
                if any(job.startswith(name) for job in started)
                else shares[name].served_at,
            )
            for name in NAMES
        }
        assert ended is not late
    raise AssertionError("it was never served")


@given(queues, shares_of, st.integers(0, 8))
def test_within_an_organisation_nobody_of_its_own_overtakes(
    queued: list[Queued], shares: dict[str, Share], slots: int
) -> None:
    ages = {job.job: age for age, job in enumerate(queued)}
    by_job = {job.job: job for job in queued}
    places = [by_job[place.job] for place in fair_order(queued, shares, slots)]

    for name, share in shares.items():
        own = [job for job in places if job.organisation == name and share.can_ever_hold(job)]
        assert own == sorted(own, key=lambda job: (-job.priority, ages[job.job]))
