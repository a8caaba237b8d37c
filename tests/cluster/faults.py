"""What each fault did, as it was measured: the table that the suite prints at its end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clients.resources import Event, Job
from clients.sdk import JobHandle
from tests.e2e.real_server import until
from workflows.run import Phase

WAIT_S = 180.0
HEAD = (
    "| Fault | Runs | Lost | Outcome | Seconds to recover |",
    "| --- | ---: | ---: | --- | ---: |",
)
KEPT = Path(__file__).parents[2] / "benchmarks" / "results" / "chaos.md"


@dataclass(frozen=True, kw_only=True)
class Suffered:
    """One fault that was played.

    Attributes:
        fault: What was done.
        runs: Jobs that it hit; submissions or answers where it strikes below jobs.
        lost: Acknowledged things that were not there, or not the same, in the end.
        outcome: How they ended.
        recovered_s: From the fault, or from its end if it lasted, to the next thing that went well.
    """

    fault: str
    runs: int
    lost: int
    outcome: str
    recovered_s: float

    def row(self) -> str:
        figures = (str(self.runs), str(self.lost), self.outcome, f"{self.recovered_s:.1f}")
        return "| " + " | ".join((self.fault, *figures)) + " |"


class Faults:
    """All that were played in this session."""

    def __init__(self) -> None:
        self.suffered: list[Suffered] = []

    def record(
        self, fault: str, outcome: str, recovered_s: float, *, within_s: float, runs: int, lost: int
    ) -> None:
        """Put a fault in the table, and only then hold it to its bounds: a red one shows, too."""
        self.suffered.append(
            Suffered(fault=fault, runs=runs, lost=lost, outcome=outcome, recovered_s=recovered_s)
        )
        assert lost == 0, f"{fault}: {lost} lost"
        assert recovered_s <= within_s, f"{fault}: {recovered_s:.1f} s, {within_s:g} at most"

    def table(self) -> list[str]:
        return [*HEAD, *(one.row() for one in self.suffered)]

    def keep(self) -> None:
        """Write the table where the project's measurements are."""
        load = os.getloadavg()[0]
        about = (
            "What `make test-cluster` did to the platform, and what came of it: the same model as"
            " on one machine, or the end that is named. Lost: jobs, events, rounds and artifacts"
            " (charges and transcripts, too) that were acknowledged and were not there in the end."
            " Seconds: from the fault, or from its end if it lasted, to the next round, step or"
            f" answer. Written by `CHAOS_KEEP=1 make test-cluster`; {os.cpu_count()} processors,"
            f" load average {load:.1f} at the end."
        )
        KEPT.write_text("\n".join(["# Faults", "", about, "", *self.table()]) + "\n")


class Victim:
    """A run that a fault hits, and all that is told of it, with the hour at which it was heard."""

    def __init__(self, handle: JobHandle, folder: Path) -> None:
        """Listen to it.

        Args:
            handle: Of the run.
            folder: For what it makes.
        """
        self.handle = handle
        self._folder = folder
        self._heard: list[tuple[Event, float]] = []
        self._ended: Exception | None = None
        self._since = 0.0
        self._attempt = 0
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()

    def hear_until(self, has_come: Callable[[Event], bool]) -> None:
        """Return when the fault is due."""
        until(lambda: self._is_told(has_come), "the moment of the fault", WAIT_S)
        self._since = time.monotonic()
        self._attempt = self._heard[-1][0].attempt

    def hear_until_round(self, number: int) -> None:
        self.hear_until(lambda e: e.kind == "round.finished" and e.fields["round"] >= number)

    def relieve(self) -> None:
        """From now on the fault is over."""
        self._since = time.monotonic()

    def log(self) -> str:
        """What its steps said."""
        return "".join(str(line) for line in self.handle.logs())

    def require_same(self, faults: Faults, fault: str, digest: str, *, within_s: float) -> Job:
        """It ends with the model of this digest, and with all that it was said to have."""
        closed = self.handle.wait(WAIT_S)
        self._listening.join(WAIT_S)
        assert closed.phase is Phase.SUCCEEDED, closed
        made = {artifact.name: artifact for artifact in self.handle.artifacts()}
        assert made["model.safetensors"].digest == digest
        same = closed.attempt == self._attempt
        faults.record(
            fault,
            f"same model, in {'the same' if same else 'another'} attempt",
            self._recovered_s(closed.attempt),
            within_s=within_s,
            runs=1,
            lost=self._num_lost(),
        )
        return closed

    def _listen(self) -> None:
        try:
            for event in self.handle.events(timeout_s=2 * WAIT_S):
                self._heard.append((event, time.monotonic()))
        except Exception as error:  # noqa: BLE001 - of another thread, and shown by who waits
            self._ended = error

    def _is_told(self, has_come: Callable[[Event], bool]) -> bool:
        assert self._ended is None, self._ended
        return any(has_come(event) for event, _ in self._heard)

    def _recovered_s(self, last_attempt: int) -> float:
        """To the next round or step on record; of the last attempt, if the fault cost one."""
        assert self._ended is None, self._ended
        for event, at in self._heard:
            is_sign = event.kind.startswith(("round.finished", "step.", "run.closed"))
            if is_sign and at >= self._since and event.attempt == last_attempt:
                return at - self._since
        raise AssertionError("nothing was told any more")

    def _num_lost(self) -> int:
        events = list(self.handle.events())
        rounds = sorted({e.fields["round"] for e in events if e.kind == "round.finished"})
        lost = [
            events != [event for event, _ in self._heard],
            [event.id for event in events] != list(range(1, len(events) + 1)),
            rounds != list(range(1, self.handle.refresh().rounds + 1)),
            sum(event.kind == "run.closed" for event in events) != 1,
        ]
        artifacts = self.handle.artifacts()
        for artifact in artifacts:  # raises if it is not the object of this digest
            self.handle.pull_artifact(artifact, self._folder / f"{self.handle.id}-{artifact.name}")
        wanted = {"model.safetensors", "transcripts.jsonl", "spent.json"}
        return sum(lost) + len(wanted - {artifact.name for artifact in artifacts})
