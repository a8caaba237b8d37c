"""How far a job is, folded from its events: one value for the terminal, the pipe and the demo."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from clients.cli.output import number, printable
from clients.resources import Event, Job

if TYPE_CHECKING:
    from rich.console import RenderableType

ROWS = 12
BARS = "▁▂▃▄▅▆▇█"


class Lap(msgspec.Struct, frozen=True, kw_only=True):
    """One round that is over."""

    number: int
    sites: int
    dropped: int
    loss: float | None
    metrics: Mapping[str, float]
    seconds: float


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A job as its events tell of it.

    Attributes:
        laps: The rounds that are over, in order.
        note: What happened last that is out of the ordinary.
    """

    job: str
    name: str
    rounds: int
    phase: str
    waits_for: str
    attempt: int = 0
    laps: tuple[Lap, ...] = ()
    note: str = ""


def begin(job: Job) -> Progress:
    """Before the first event."""
    return Progress(
        job=job.id, name=job.name, rounds=job.rounds, phase=str(job.phase), waits_for=job.waits_for
    )


def advance(progress: Progress, event: Event) -> Progress:
    """After ``event``; kinds of events that are not known change nothing."""
    fields = event.fields
    change: dict[str, Any] = {}
    match event.kind:
        case "run.transitioned":
            change = {"phase": str(fields["after"]), "waits_for": fields.get("waits_for", "")}
        case "waiting":
            change = {"waits_for": fields["reason"]}
        case "attempt.started":
            change = {"attempt": fields["attempt"]}
        case "round.started":
            change = {"waits_for": f"round {fields['round']} of {progress.rounds}"}
        case "round.finished":
            lap = msgspec.convert({**fields, "number": fields["round"]}, Lap)
            earlier = tuple(known for known in progress.laps if known.number < lap.number)
            last = lap.number >= progress.rounds
            waits_for = "the result" if last else f"round {lap.number + 1} of {progress.rounds}"
            change = {"laps": (*earlier, lap), "waits_for": waits_for}
        case "run.closed":
            change = {"phase": str(fields["phase"]), "waits_for": ""}
    note = _note(event)
    if note:
        change["note"] = note
    return msgspec.structs.replace(progress, **change)


def line_of(progress: Progress, event: Event) -> str:
    """``event`` as one plain line, empty for one that says nothing new to people.

    Args:
        progress: After the event.
        event: What happened.
    """
    match event.kind:
        case "run.transitioned" if progress.waits_for:
            return f"{progress.phase}, waits for {progress.waits_for}"
        case "waiting":
            return f"waits for {progress.waits_for}"
        case "round.finished":
            lap = progress.laps[-1]
            measured = "".join(f"  {key} {number(lap.metrics[key])}" for key in lap.metrics)
            dropped = f"  dropped {lap.dropped}" if lap.dropped else ""
            return (
                f"round {lap.number}/{progress.rounds}  sites {lap.sites}{dropped}"
                f"  loss {number(lap.loss)}{measured}  {lap.seconds:.2f} s"
            )
        case "run.closed":
            return progress.phase
        case _:
            return _note(event)


def _note(event: Event) -> str:
    fields = event.fields
    match event.kind:
        case "attempt.started" if fields["attempt"] > 1:
            return f"attempt {fields['attempt']} goes on from the last round on record"
        case "attempt.lost":
            return f"attempt {event.attempt} was lost ({_code(fields)})"
        case "site.dropped":
            site, round_number = fields["site"], fields["round"]
            return f"{site} dropped out of round {round_number} ({_code(fields)})"
        case "cancel.requested":
            return "cancelling was asked for"
        case "model.published":
            return f"model {fields['model']} is published"
        case _:
            return ""


def _code(fields: Mapping[str, Any]) -> str:
    cause = fields.get("cause")
    if not isinstance(cause, Mapping):
        return str(cause or "cause unknown")
    return ": ".join(filter(None, (cause.get("code", ""), cause.get("detail", ""))))


def spark(values: list[float], width: int = 40) -> str:
    """Values as a line of bars, the latest ones if there are too many."""
    shown = values[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    step = (high - low) / (len(BARS) - 1) or 1.0
    return "".join(BARS[round((value - low) / step)] for value in shown)


def view(progress: Progress) -> RenderableType:
    """The progress as a panel for a terminal."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    colour = {"succeeded": "green", "failed": "red", "cancelled": "yellow"}.get(
        progress.phase, "cyan"
    )
    done = progress.laps[-1].number if progress.laps else 0
    state = Text.assemble((progress.phase, f"bold {colour}"))
    if progress.waits_for:
        state.append(f"   waits for {printable(progress.waits_for)}")
    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        ProgressBar(total=progress.rounds, completed=done, width=46, complete_style=colour),
        f"round {done} of {progress.rounds}",
    )
    parts: list[RenderableType] = [state, bar]
    if progress.laps:
        parts += [Text(), _table(progress), *_curves(progress)]
    if progress.note:
        parts += [Text(printable(progress.note), style="dim")]
    title = Text(printable(f"{progress.name}  {progress.job}"), style="bold")
    return Panel(Group(*parts), title=title, title_align="left", border_style=colour, width=78)


def _table(progress: Progress) -> RenderableType:
    from rich.table import Table

    metrics = tuple(dict.fromkeys(key for lap in progress.laps for key in lap.metrics))
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for header in ("round", "sites", "loss", *map(printable, metrics), "seconds"):
        table.add_column(header, justify="right")
    for lap in progress.laps[-ROWS:]:
        table.add_row(
            str(lap.number),
            f"{lap.sites}" + (f" -{lap.dropped}" if lap.dropped else ""),
            number(lap.loss),
            *(number(lap.metrics.get(key)) for key in metrics),
            f"{lap.seconds:.2f}",
        )
    return table


def _curves(progress: Progress) -> Iterator[RenderableType]:
    from rich.text import Text

    losses = [lap.loss for lap in progress.laps if lap.loss is not None]
    if len(losses) > 1:
        yield Text.assemble(("\nloss      ", "dim"), (spark(losses), "magenta"))
    first = next((key for lap in progress.laps for key in lap.metrics), None)
    if first is not None:
        values = [lap.metrics[first] for lap in progress.laps if first in lap.metrics]
        if len(values) > 1:
            label = printable(first)[:9]
            yield Text.assemble((f"{label:<10}", "dim"), (spark(values), "green"))
