"""What the command line writes: tables for people, tab-separated lines in a pipe, JSON if asked.

Text that others wrote (names, logs, messages) is shown without control characters, so that it
cannot drive the terminal.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

if TYPE_CHECKING:
    from datetime import datetime

    from clients.resources import CauseView

T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")]
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """``text`` with control characters made visible; lines and tabs stay."""
    text = text.replace("\r\n", "\n")
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def say(text: str) -> None:
    """One line for people, or for whoever reads the pipe."""
    print(printable(text), flush=True)  # noqa: T201 - the product of a command line


def tell(text: str) -> None:
    """One line beside the result, on standard error."""
    print(printable(text), file=sys.stderr, flush=True)  # noqa: T201 - as above


def say_json(value: Any, *, is_error: bool = False) -> None:  # noqa: ANN401 - msgspec's
    """One JSON document on one line; an error's goes to standard error."""
    import msgspec

    stream = sys.stderr if is_error else sys.stdout
    print(msgspec.json.encode(value).decode(), file=stream, flush=True)


def say_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows with headers on a terminal; in a pipe tab-separated rows without."""
    if not sys.stdout.isatty():
        for row in rows:
            say("\t".join(re.sub(r"[\t\n]", " ", cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)


def say_each(
    values: Sequence[T], headers: Sequence[str], row: Callable[[T], Sequence[str]], *, as_json: bool
) -> None:
    """Values as JSON, or each as a row of a table."""
    if as_json:
        say_json(values)
    else:
        say_table(headers, map(row, values))


def number(value: float | None) -> str:
    """A measurement, short."""
    return "-" if value is None else f"{value:.4f}"


def size(num_bytes: int) -> str:
    """A size in the unit that suits it."""
    if num_bytes < 1024:
        return f"{num_bytes} B"
    power = min((num_bytes.bit_length() - 1) // 10, 4)
    return f"{num_bytes / 1024**power:.1f} {'KMGT'[power - 1]}iB"


def moment(at: datetime | None) -> str:
    """A time of day where the reader is."""
    return "" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def cause_lines(cause: CauseView) -> Iterable[str]:
    """A failure in plain words: what, where, who can act and how, and the evidence."""
    places = [cause.site or "", f"round {cause.round}" if cause.round is not None else ""]
    where = ", ".join(filter(None, places))
    yield f"failed: {cause.code}" + (f" ({where})" if where else "")
    if cause.detail:
        yield f"  {cause.detail}"
    if cause.evidence:
        yield from (f"  | {line}" for line in cause.evidence.splitlines())
    yield f"  hint: {cause.hint}"
