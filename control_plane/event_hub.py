"""From a committed transaction to everybody who watches: in process, encoded once per kind of view.

The newest events of each job are kept in a ring. A watcher reads the ring while it reaches back far
enough, and the table otherwise, so a slow watcher costs nobody else anything. Events of other
replicas come in through ``notices``, read once for all who watch here; so they may come again, and
after later ones of this replica.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import msgspec

from clients.resources import Event
from control_plane.refusals import TooManyStreams
from control_plane.visibility import Sight, redact_event

DEPTH: Final = 512
MAX_RINGS: Final = 512
CLOSED: Final = "run.closed"


@dataclass(frozen=True, slots=True)
class Told:
    """An event as it is sent.

    Attributes:
        id: Of the event within its job.
        kind: Of the event.
        data: JSON of the ``Event``, as its watcher may see it.
    """

    id: int
    kind: str
    data: bytes


@dataclass(slots=True, eq=False)
class _Entry:
    event: Event
    encoded: dict[Sight, Told] = field(default_factory=dict)

    def told(self, sight: Sight) -> Told:
        if sight not in self.encoded:
            self.encoded[sight] = encode(self.event, sight)
        return self.encoded[sight]


@dataclass(slots=True, eq=False)
class _Ring:
    entries: deque[_Entry] = field(default_factory=lambda: deque(maxlen=DEPTH))
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    num_watchers: int = 0


class EventHub:
    """All rings of this replica. Used from the event loop alone."""

    def __init__(self, most_watchers: int, most_per_user: int) -> None:
        """Prepare a hub.

        Args:
            most_watchers: At a time, of all jobs.
            most_per_user: Of them, those of one user.
        """
        self._most = most_watchers
        self._most_per_user = most_per_user
        self._by_user: Counter[str] = Counter()
        self._rings: OrderedDict[str, _Ring] = OrderedDict()
        self.num_watchers = 0
        self.is_closed = False

    def publish(self, job: str, events: Sequence[Event]) -> None:
        """Hand on events that are on record, in the order of their ids; known ones count once."""
        ring = self._ring(job)
        entries = ring.entries
        if entries:
            events = [event for event in events if event.id > entries[-1].event.id]
            if events and events[0].id != entries[-1].event.id + 1:
                entries.clear()
        if not events:
            return
        entries.extend(_Entry(event) for event in events)
        ring.changed.set()
        ring.changed = asyncio.Event()

    def since(self, job: str, after: int, sight: Sight) -> list[Told] | None:
        """Events after the one with id ``after``; None if the ring does not reach back to it."""
        ring = self._rings.get(job)
        if ring is None or not ring.entries or ring.entries[0].event.id > after + 1:
            return None
        # Ids are contiguous, so what is new is a known number of entries at the end.
        num_new = max(0, ring.entries[-1].event.id - after)
        start = len(ring.entries) - num_new
        return [ring.entries[i].told(sight) for i in range(start, len(ring.entries))]

    def lacks(self, job: str, first: int, last: int) -> int | None:
        """The id after which to publish events, now that ``first`` to ``last`` are on record.

        None if there is no need: they are here, or nobody watches the job here.
        """
        ring = self._rings.get(job)
        if ring is None:
            return None
        newest = ring.entries[-1].event.id if ring.entries else first - 1
        if newest >= last:
            return None
        if not ring.num_watchers:
            ring.entries.clear()
            return None
        return newest

    def forget(self) -> None:
        """Let every watcher read the table: events may be on record that nobody published."""
        for ring in self._rings.values():
            ring.entries.clear()
            ring.changed.set()
            ring.changed = asyncio.Event()

    def changed(self, job: str) -> asyncio.Event:
        """Set when the next event of ``job`` comes, or when the hub is closed."""
        return self._ring(job).changed

    @contextmanager
    def watching(self, job: str, user: str) -> Iterator[None]:
        """Keep the ring of ``job`` while ``user`` watches it.

        Raises:
            TooManyStreams: The user, or all together, watch as much as they may.
        """
        if self._by_user[user] >= self._most_per_user:
            raise TooManyStreams(f"you watch {self._most_per_user} already")
        if self.num_watchers >= self._most:
            raise TooManyStreams("this server has no more")
        ring = self._ring(job)
        ring.num_watchers += 1
        self.num_watchers += 1
        self._by_user[user] += 1
        try:
            yield
        finally:
            ring.num_watchers -= 1
            self.num_watchers -= 1
            self._by_user[user] -= 1
            self._by_user += Counter()  # forgets those who watch nothing

    def close(self) -> None:
        """Let every watcher end."""
        self.is_closed = True
        for ring in self._rings.values():
            ring.changed.set()

    def _ring(self, job: str) -> _Ring:
        ring = self._rings.setdefault(job, _Ring())
        self._rings.move_to_end(job)
        if len(self._rings) > MAX_RINGS:
            idle = [j for j, r in self._rings.items() if not r.num_watchers and j != job]
            if idle:
                del self._rings[idle[0]]
        return ring


def encode(event: Event, sight: Sight) -> Told:
    """``event`` as ``sight`` sees it, as it is sent."""
    return Told(event.id, event.kind, msgspec.json.encode(redact_event(event, sight)))
