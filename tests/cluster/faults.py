"""What each fault did, as it was measured: the table that the suite prints at its end."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from clients.resources import Event, Job
from clients.sdk import JobHandle
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


@dataclass
class Victim:
    """A run that a fault hits.

    Attributes:
        handle: Of the run.
        folder: For what it made.
        heard: Its events, as they were acknowledged before the fault.
        since: When the fault struck, or ended.
        attempt: The one that the fault struck.
    """

    handle: JobHandle
    folder: Path
    heard: list[Event] = field(default_factory=list)
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    attempt: int = 0

    def hear_until(self, has_come: Callable[[Event], bool]) -> None:
        """Take in what is told of it until the fault is due."""
        for event in self.handle.events(after=len(self.heard), timeout_s=WAIT_S):
            self.heard.append(event)
            if has_come(event):
                self.attempt = event.attempt
                self.since = datetime.now(UTC)
                return
        raise AssertionError("it ended before the fault was due")

    def hear_until_round(self, number: int) -> None:
        self.hear_until(lambda e: e.kind == "round.finished" and e.fields["round"] >= number)

    def relieve(self) -> None:
        """From now on the fault is over."""
        self.since = datetime.now(UTC)

    def require_same(self, faults: Faults, fault: str, digest: str, *, within_s: float) -> Job:
        """It ends with the model of this digest, and with all that it was said to have."""
        closed = self.handle.wait(WAIT_S)
        assert closed.phase is Phase.SUCCEEDED, closed
        made = {artifact.name: artifact for artifact in self.handle.artifacts()}
        attempts = "in the same attempt" if closed.attempt == self.attempt else "in another attempt"
        assert made["model.safetensors"].digest == digest
        faults.record(
            fault,
            f"same model, {attempts}",
            self._recovered_s(),
            within_s=within_s,
            runs=1,
            lost=self._num_lost(),
        )
        return closed

    def _recovered_s(self) -> float:
        """To the next round or step; of the next attempt, if the run needed another."""
        events = list(self.handle.events())
        went_on = events[-1].attempt > self.attempt
        for event in events:
            is_sign = event.kind.startswith(("round.finished", "step.", "run.closed"))
            is_late = event.attempt > self.attempt or (not went_on and event.at >= self.since)
            if is_sign and is_late:
                return (event.at - self.since).total_seconds()
        raise AssertionError("nothing happened any more")

    def _num_lost(self) -> int:
        events = list(self.handle.events())
        rounds = sorted({e.fields["round"] for e in events if e.kind == "round.finished"})
        closed = [event for event in events if event.kind == "run.closed"]
        lost = [
            events[: len(self.heard)] != self.heard,
            [event.id for event in events] != list(range(1, len(events) + 1)),
            rounds != list(range(1, self.handle.refresh().rounds + 1)),
            len(closed) != 1,
        ]
        artifacts = self.handle.artifacts()
        for artifact in artifacts:  # raises if it is not the object of this digest
            self.handle.pull_artifact(artifact, self.folder / f"{self.handle.id}-{artifact.name}")
        wanted = {"model.safetensors", "transcripts.jsonl", "spent.json"}
        return sum(lost) + len(wanted - {artifact.name for artifact in artifacts})
