"""How the events of a step come on record, and the objects that they name."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec
import pytest

from sharing.object_store import Digest, digest_of
from workflows.courier import EVENT_PACE_S, Courier, EventFeed, Refused
from workflows.events import RoundFinished
from workflows.plan import StepKind

pytestmark = pytest.mark.anyio
SLOW_S = 0.01


class Recorder(Courier):
    """A control plane that notes what comes, and when."""

    def __init__(self) -> None:
        self.told: list[tuple[float, int]] = []
        self.stored: set[Digest] = set()
        self.most_at_once = self.at_once = 0
        self.refused: Digest | None = None

    async def store(self, digest: Digest, path: Path) -> None:
        if digest == self.refused:
            raise Refused("no")
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await anyio.sleep(SLOW_S)
        self.at_once -= 1
        assert digest not in self.stored
        self.stored.add(digest)

    async def post_events(self, step: StepKind, lines: list[bytes]) -> int:
        events = [msgspec.json.decode(line) for line in lines]
        named = {event[what] for event in events for what in ("checkpoint", "transcript")}
        assert named <= self.stored
        self.told.append((anyio.current_time(), len(lines)))
        return int(events[-1]["number"])


def finished(number: int) -> bytes:
    digest = digest_of(b"model")
    event = RoundFinished(
        number=number,
        at=float(number),
        round=number,
        rounds=99,
        sites=1,
        dropped=0,
        loss=None,
        metrics={},
        bytes_up=0,
        bytes_down=0,
        seconds=0.01,
        model=digest,
        checkpoint=digest_of(b"checkpoint %d" % number),
        transcript=digest_of(b"transcript %d" % number),
    )
    return msgspec.json.encode(event) + b"\n"


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


async def follow(recorder: Recorder, path: Path, rounds: int, every_s: float) -> None:
    """Forward what a step tells at an even pace until it ends."""
    ended = anyio.Event()
    feed = EventFeed(recorder, "federate", path, lambda digest: path, lambda number: None)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(feed.forward, ended)
        for number in range(1, rounds + 1):
            with path.open("ab") as file:
                file.write(finished(number))
            await anyio.sleep(every_s)
        ended.set()


async def test_quick_rounds_go_together(recorder: Recorder, tmp_path: Path) -> None:
    began = anyio.current_time()
    await follow(recorder, tmp_path / "events", rounds=50, every_s=0.02)
    took_s = anyio.current_time() - began

    assert sum(count for _, count in recorder.told) == 50
    assert len(recorder.told) <= took_s / EVENT_PACE_S + 2
    assert recorder.most_at_once == 4


async def test_a_slow_round_is_told_at_once(recorder: Recorder, tmp_path: Path) -> None:
    began = anyio.current_time()
    await follow(recorder, tmp_path / "events", rounds=3, every_s=0.5)

    assert [count for _, count in recorder.told] == [1, 1, 1]
    for number, (at, _) in enumerate(recorder.told):
        assert at - began - 0.5 * number < SLOW_S + EVENT_PACE_S


async def test_no_event_is_told_before_all_that_it_names_is_stored(
    recorder: Recorder, tmp_path: Path
) -> None:
    recorder.refused = digest_of(b"transcript 3")
    with pytest.raises(BaseExceptionGroup) as refused:
        await follow(recorder, tmp_path / "events", rounds=5, every_s=0)

    assert refused.group_contains(Refused)
    assert sum(count for _, count in recorder.told) < 3
