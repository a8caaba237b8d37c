"""Why a document is not a value of a type, and what would fit: for whoever wrote it.

msgspec says what is wrong and where (``Expected `int`, got `str` - at `$.rounds```). Here that
becomes the path of the field, the problem in words, and a mend: the nearest field, kind or value
there is.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import inspect

_PLACE: Final = re.compile(r"^(?P<problem>.*?)(?: - at `(?:key in )?(?P<path>[^`]*)`)?$", re.DOTALL)
_QUOTED: Final = re.compile(r"`(?P<name>[^`]*)`")
_INVALID_VALUE: Final = re.compile(r"Invalid (?:enum )?value '?(?P<value>[^']*)'?$")
_PART: Final = re.compile(r"\.?(?P<key>[^.\[\]]+)|\[(?P<index>\d+|\.\.\.)\]")


class Misfit(msgspec.Struct, frozen=True):
    """What does not fit.

    Attributes:
        path: Of the field at fault, as ``strategy.eta``; empty if it is the whole.
        problem: What is wrong with it.
        mend: What would fit; empty where the problem says it.
    """

    path: str
    problem: str
    mend: str = ""


def explain(message: str, document: object, type_: type[Any]) -> Misfit:
    """The message of msgspec for ``document``, which is no ``type_``, in words for its writer."""
    match = _PLACE.fullmatch(message)
    problem, path = (match["problem"], match["path"] or "$") if match else (message, "$")
    at = path.removeprefix("$").removeprefix(".")
    quoted = _QUOTED.search(problem)
    if problem.startswith("Object contains unknown field") and quoted:
        known = tuple(_fields_at(type_, document, at))
        mend = _nearest(quoted["name"], known, type_)
        return Misfit(_join(at, quoted["name"]), "no such field", mend)
    if problem.startswith("Object missing required field") and quoted:
        return Misfit(_join(at, quoted["name"]), "is missing", "Give this field a value.")
    value = _INVALID_VALUE.search(problem)
    allowed = tuple(_values_at(type_, document, at))
    if value and allowed:
        mend = _suggest(value["value"], allowed)
        return Misfit(at, f"no such value '{value['value']}'", mend)
    problem, _, mend = problem.replace("`", "").partition("; ")  # our own checks name a mend
    return Misfit(at, problem[:1].lower() + problem[1:], mend[:1].upper() + mend[1:])


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _nearest(name: str, known: tuple[str, ...], root: type[Any]) -> str:
    if difflib.get_close_matches(name, known, n=1):
        return _suggest(name, known)
    elsewhere = next(
        (path for path in _paths(inspect.type_info(root)) if path.split(".")[-1] == name), None
    )
    return f"Did you mean `{elsewhere}`?" if elsewhere else _suggest(name, known)


def _suggest(word: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    listed = ", ".join(known)
    return f"Did you mean `{close[0]}`? Known: {listed}." if close else f"Known: {listed}."


def _structs(type_: inspect.Type) -> tuple[inspect.StructType, ...]:
    match type_:
        case inspect.Metadata(type=inner):
            return _structs(inner)
        case inspect.UnionType(types=types):
            return tuple(struct for inner in types for struct in _structs(inner))
        case inspect.StructType():
            return (type_,)
        case _:
            return ()


def _chosen(type_: inspect.Type, document: object) -> tuple[inspect.StructType, ...]:
    """The structs that ``document`` can mean: the one its tag names, or all if it names none."""
    structs = _structs(type_)
    if not isinstance(document, dict):
        return structs
    tagged = [s for s in structs if s.tag_field and document.get(s.tag_field) == s.tag]
    return tuple(tagged) or structs


def _walk(root: type[Any], document: object, at: str) -> tuple[tuple[inspect.Type, ...], object]:
    """Types that stand at the path ``at``, and what the document has there."""
    types: tuple[inspect.Type, ...] = (inspect.type_info(root),)
    for part in _PART.finditer(at):
        if part["key"] is not None:
            structs = [s for t in types for s in _chosen(t, document)]
            types = tuple(f.type for s in structs for f in s.fields if f.encode_name == part["key"])
            document = document.get(part["key"]) if isinstance(document, dict) else None
        else:
            index = int(part["index"]) if part["index"].isdigit() else None
            types = tuple(item for t in types for item in _items(t))
            inside = isinstance(document, list) and index is not None and index < len(document)
            document = document[index] if inside else None  # type: ignore[index]
    return types, document


def _items(type_: inspect.Type) -> tuple[inspect.Type, ...]:
    match type_:
        case inspect.Metadata(type=inner):
            return _items(inner)
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return (item,)
        case inspect.DictType(value_type=item):
            return (item,)
        case inspect.UnionType(types=types):
            return tuple(item for inner in types for item in _items(inner))
        case _:
            return ()


def _fields_at(root: type[Any], document: object, at: str) -> Iterator[str]:
    """Names of the fields that may stand at the path ``at`` of ``document``."""
    types, inner = _walk(root, document, at)
    structs = [s for t in types for s in _chosen(t, inner)]
    yield from dict.fromkeys(
        name
        for s in structs
        for name in ((s.tag_field,) if s.tag_field else ()) + tuple(f.encode_name for f in s.fields)
    )


def _values_at(root: type[Any], document: object, at: str) -> Iterator[str]:
    """Values that may stand at the path ``at``: of an enumeration, a literal or a tag."""
    head, _, last = at.rpartition(".")
    for struct in (s for t in _walk(root, document, head)[0] for s in _structs(t)):
        if struct.tag_field == last:
            yield str(struct.tag)
    for type_ in _walk(root, document, at)[0]:
        yield from _closed(type_)


def _closed(type_: inspect.Type) -> Iterator[str]:
    match type_:
        case inspect.Metadata(type=inner):
            yield from _closed(inner)
        case inspect.EnumType(cls=cls):
            yield from (str(member.value) for member in cls)
        case inspect.LiteralType(values=values):
            yield from map(str, values)
        case inspect.UnionType(types=types):
            for inner in types:
                yield from _closed(inner)
        case _:
            pass


def _paths(type_: inspect.Type, at: str = "", depth: int = 4) -> Iterator[str]:
    """Paths of all fields below ``type_``, the nearer ones first."""
    fields = [f for s in _structs(type_) for f in s.fields] if depth else []
    yield from (_join(at, f.encode_name) for f in fields)
    for field in fields:
        yield from _paths(field.type, _join(at, field.encode_name), depth - 1)
