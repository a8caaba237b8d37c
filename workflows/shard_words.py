"""What a server step and its shards say to each other.

A shard opens one connection on which it is told what to simulate, fetches that by digest, and
is later dismissed; and a *line* for each of its workers, on which tasks and answers alternate.
Nobody speaks but when it is their turn, for one end of a TLS connection is used by one thread.
"""

from __future__ import annotations

from typing import Final

import msgspec

from workflows.capabilities import ProgramFacts
from workflows.frames import ArraySpec
from workflows.job import Limits
from workflows.plan import Plan
from workflows.tasks import Failed, Initial, Measure, Prepared, Train, TrainMany

PIECE_BYTES: Final = 4 << 20
SHARD: Final = "shard"
UNSERVED: Final = 69
"""Exit code of a shard whose server did not come, or did not come back."""


class Word(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Something said."""


class Arrival(Word, frozen=True, tag="arrival"):
    """A shard's first word.

    Attributes:
        shard: Its number, from 1.
        session: Random, and the same on all its connections, until it has to connect anew.
    """

    shard: int
    session: str


class Line(Word, frozen=True, tag="line"):
    """First word on a connection for tasks.

    Attributes:
        session: Of the shard.
    """

    session: str


class Prints(Word, frozen=True, tag="prints"):
    """First word on a connection for what programs print in a shard; the server says nothing.

    Attributes:
        shard: Its number, from 1.
    """

    shard: int


class Said(Word, frozen=True, tag="said"):
    """A line that was printed, without its end."""

    line: str


class Brief(Word, frozen=True, tag="brief"):
    """What the shard is part of; it holds no secret."""

    plan: Plan


class Wanted(Word, frozen=True, tag="wanted"):
    """The shard asks for an input of the plan, by its file name."""

    name: str


class Piece(Word, frozen=True, tag="piece"):
    """The blob is the next part of that input."""

    is_last: bool


class Ready(Word, frozen=True, tag="ready"):
    """The shard can take tasks.

    Attributes:
        facts: Of the program.
        prepared: How its data is divided.
        num_workers: Lines that it is about to open.
    """

    facts: ProgramFacts
    prepared: Prepared
    num_workers: int


class Lay(Word, frozen=True, tag="lay"):
    """The blobs are the arrays of the model that tasks refer to from now on."""

    version: int
    arrays: tuple[ArraySpec, ...]


class Dismissed(Word, frozen=True, tag="dismissed"):
    """The shard is needed no more."""


FirstWord = Arrival | Line | Prints
WordOfShard = Wanted | Ready | Failed
WordOfServer = Brief | Piece | Dismissed
Dealt = Lay | Initial | Train | TrainMany | Measure


def most_dealt_bytes(limits: Limits) -> int:
    """Largest frame that is dealt: a model, with what strategies have travel beside it."""
    return 16 * limits.output_mb << 20
