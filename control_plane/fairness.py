"""Whose turn it is: slots go round by organisation, within what each one's quota allows.

The next slot is for the organisation that runs the least; of several such, for the one that was
given a slot longest ago, then for the one that has waited longest. So an organisation that runs
nothing is served after every other one was served once at most, however much the others submit.
Within an organisation higher priority goes first, then the older job. The first in its line holds
the others back while its quota has no room for it, or a big job would wait for ever behind small
ones; a job that its quota can never hold is passed over.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from clients.resources import Quota

_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NO_BOUND: Final = Quota()


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """A job that waits for a slot.

    Attributes:
        job: Its id.
        organisation: Whose quota it counts against.
        workers: Processes that it will start.
        priority: Higher goes first within its organisation.
    """

    job: str
    organisation: str
    workers: int = 1
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What an organisation has of the platform now.

    Attributes:
        running: Jobs that hold a slot.
        workers: Processes of these.
        served_at: When it was last given a slot; None for never.
        quota: What it may have.
    """

    running: int = 0
    workers: int = 0
    served_at: datetime | None = None
    quota: Quota = _NO_BOUND

    def has_room(self, job: Queued) -> bool:
        """True if the quota lets ``job`` start now."""
        runs = self.quota.running is None or self.running < self.quota.running
        return runs and (
            self.quota.workers is None or self.workers + job.workers <= self.quota.workers
        )

    def can_ever_hold(self, job: Queued) -> bool:
        """True if the quota would let ``job`` start with nothing else running."""
        return Share(quota=self.quota).has_room(job)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a job stands in the line of all.

    Attributes:
        job: Its id.
        ahead: Jobs before it that do not start now either.
        starts: Whether a slot is free for it now.
        waits_for: What it waits for, for people; empty if it starts.
    """

    job: str
    ahead: int
    starts: bool
    waits_for: str


def fair_order(
    queued: Sequence[Queued], shares: Mapping[str, Share], slots: int
) -> tuple[Place, ...]:
    """All who wait, in the order in which they will start. Pure.

    Args:
        queued: Oldest first.
        shares: By organisation, of each that has a job in the queue.
        slots: Free ones, of the whole platform.
    """
    lines = _lines(queued, shares)
    ready, held = _deal(lines, shares)
    last, _ = _deal(held, dict.fromkeys(held, Share()))
    passed = [job for job in queued if not shares[job.organisation].can_ever_hold(job)]
    started: dict[str, Share] = dict(shares)
    places = []
    num_starting = min(slots, len(ready))
    for turn, job in enumerate([*ready, *last, *passed]):
        starts, ahead = turn < num_starting, max(0, turn - num_starting)
        share = started[job.organisation]
        if starts:
            started[job.organisation] = _with(share, job)
        waits_for = "" if starts else _reason(job, share, ahead)
        places.append(Place(job=job.job, ahead=ahead, starts=starts, waits_for=waits_for))
    return tuple(places)


def waiting_at(ahead: int) -> str:
    """What a job waits for that only lacks a slot, with ``ahead`` others before it."""
    if ahead == 0:
        return "a free slot: it is next"
    return f"a free slot: {ahead} {'job is' if ahead == 1 else 'jobs are'} ahead"


def _lines(
    queued: Sequence[Queued], shares: Mapping[str, Share]
) -> dict[str, list[tuple[int, Queued]]]:
    """Each organisation's line, last one first, with the age of each in the whole queue."""
    lines: dict[str, list[tuple[int, Queued]]] = {}
    for age, job in enumerate(queued):
        if shares[job.organisation].can_ever_hold(job):
            lines.setdefault(job.organisation, []).append((age, job))
    for line in lines.values():
        line.sort(key=lambda entry: (-entry[1].priority, entry[0]), reverse=True)
    return lines


def _deal(
    lines: Mapping[str, list[tuple[int, Queued]]], shares: Mapping[str, Share]
) -> tuple[list[Queued], dict[str, list[tuple[int, Queued]]]]:
    """Give slots out until all are served or held back; who was served, and who was not."""
    shares, left = dict(shares), {name: list(line) for name, line in lines.items()}
    heap: list[tuple[int, int, datetime, int, str]] = []

    def join(name: str, turn: int) -> None:
        if left[name] and shares[name].has_room(left[name][-1][1]):
            share = shares[name]
            age, served_at = left[name][-1][0], share.served_at or _NEVER
            heapq.heappush(heap, (share.running, turn, served_at, age, name))

    for name in left:
        join(name, 0)
    dealt: list[Queued] = []
    while heap:
        *_, name = heapq.heappop(heap)
        _, job = left[name].pop()
        dealt.append(job)
        shares[name] = _with(shares[name], job)
        join(name, len(dealt))  # whoever was served just now comes after all others
    return dealt, {name: line for name, line in left.items() if line}


def _with(share: Share, job: Queued) -> Share:
    return Share(
        running=share.running + 1,
        workers=share.workers + job.workers,
        served_at=share.served_at,
        quota=share.quota,
    )


def _reason(job: Queued, share: Share, ahead: int) -> str:
    quota, place = share.quota, f"place {ahead + 1}; your organisation"
    if not share.can_ever_hold(job):
        if quota.running == 0:
            return f"{place} may run no jobs"
        return f"{place} may use {quota.workers} workers, and this job asks for {job.workers}"
    if share.has_room(job):
        return waiting_at(ahead)
    if quota.running is not None and share.running >= quota.running:
        return f"{place} runs {share.running} of {quota.running} jobs"
    used = f"{share.workers} of {quota.workers} workers"
    return f"{place} uses {used}, and this job asks for {job.workers}"
