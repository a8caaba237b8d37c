"""What the other fields of a job must be where it asks a query instead of training a model.

A short job leaves them out, and gets them here: the rounds that the query takes, the tally, a ring
in which its sums are exact, every site in every round, and nothing of what only a model has. What
says anything else contradicts the query, and is refused rather than ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any, Final, TypeVar

import msgspec

from strategies import Ring
from strategies.ring import ENTRY_BITS, WIDTH_BITS
from strategies.tally import Tally
from workflows.analyses import Query
from workflows.selection import Misfit

S = TypeVar("S", bound=msgspec.Struct)
FINEST_BITS: Final = 40


def terms(query: Query, num_examples: int, num_sites: int) -> Mapping[str, Any]:
    """What fields have in the job of a query, by path; a whole part where all of it is meant.

    Args:
        query: What is asked.
        num_examples: Of all sites together; one site may have most of them.
        num_sites: That answer in a round.
    """
    return {
        "strategy": Tally(),
        "rounds": query.num_rounds,
        "ring": ring_of(num_examples, num_sites),
        "data.holdout": 0.0,
        "evaluate.metrics": (),
        "output.onnx": (),
        "output.publish": False,
    }


MEANINGLESS: Final = (
    "init",
    "local",
    "codec",
    "cohort.size",
    "cohort.selection",
    "data.central",
    "evaluate.every",
    "evaluate.where",
    "evaluate.select",
)
"""Fields that stay as they are when they are left out."""


def ring_of(num_examples: int, num_sites: int) -> Ring:
    """The finest ring that holds any site's sums: entries up to ``num_examples``, weights of one.

    Integers are exact in it whatever its scale.
    """
    entry_bits = (max(1, num_examples) - 1).bit_length()
    room = min(ENTRY_BITS, WIDTH_BITS - 1 - num_sites.bit_length()) - entry_bits
    return Ring(
        fraction_bits=max(1, min(FINEST_BITS, room)),
        magnitude=float(max(1, num_examples)),
        max_weight=1,
    )


def contradiction(spec: S, found: Mapping[str, Any]) -> Misfit | None:
    """The first field of a job that says something else than ``found``, its terms.

    What a field has by default counts as left out.
    """
    for path in (*found, *MEANINGLESS):
        said, usual = _at(spec, path), _usual(spec, path)
        meant = found.get(path, usual)
        if said not in (usual, meant):
            plain = msgspec.json.encode(meant).decode()
            problem = "it has no meaning for this query" if path in MEANINGLESS else "not so here"
            return Misfit((path, "program.query"), problem, f"leave {path} out ({plain})")
    return None


def settled(spec: S, found: Mapping[str, Any]) -> S:
    """``spec`` with its terms filled in."""
    return reduce(lambda job, item: _with(job, item[0].split("."), item[1]), found.items(), spec)


def _with(value: S, path: list[str], leaf: object) -> S:
    first, *rest = path
    inner = _with(getattr(value, first), rest, leaf) if rest else leaf
    return msgspec.structs.replace(value, **{first: inner})


def _at(value: object, path: str) -> object:
    return reduce(getattr, path.split("."), value)


def _usual(spec: msgspec.Struct, path: str) -> object:
    """Default of the field at ``path``."""
    *parts, last = path.split(".")
    owner: msgspec.Struct = reduce(getattr, parts, spec)
    return next(
        field.default for field in msgspec.structs.fields(type(owner)) if field.name == last
    )
