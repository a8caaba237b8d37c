"""Request bodies: strict JSON into frozen values, and what to say when it is not that.

What msgspec says of a body becomes the path of the field and a mend (``workflows.misfit``).
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from workflows.misfit import explain

T = TypeVar("T")


class Undecodable(Exception):
    """The request is not what the API reads.

    Attributes:
        fields: Paths of the fields at fault; empty if the whole is.
        mend: What would be read.
    """

    def __init__(self, problem: str, fields: tuple[str, ...] = (), mend: str = "") -> None:
        super().__init__(f"{' and '.join(fields)}: {problem}" if fields else problem)
        self.fields = fields
        self.mend = mend


def decode(content: bytes, type_: type[T]) -> T:
    """``content`` as a value of ``type_``; text is never taken for a number.

    Raises:
        Undecodable: It is not JSON, or not of that type.
    """
    try:
        return msgspec.json.decode(content, type=type_, strict=True)
    except msgspec.ValidationError as error:
        misfit = explain(str(error), _any_json(content), type_)
        fields = (misfit.path,) if misfit.path else ()
        mend = misfit.mend or "See the request's schema in /schema."
        raise Undecodable(misfit.problem, fields, mend) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(error) from error


def _any_json(content: bytes) -> object:
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(error) from error


def _not_json(error: Exception) -> Undecodable:
    return Undecodable(f"the body is not JSON: {error}", mend="Send one JSON document in UTF-8.")
