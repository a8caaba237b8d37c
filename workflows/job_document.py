"""A job document: the YAML 1.2 or JSON text in which a person writes a job.

YAML is read by the rules of version 1.2, so ``1e-6`` is a number and ``no`` is text. Only what JSON
can say is taken: no anchors, no tags, no dates. JSON is a part of YAML 1.2, so one reader finds the
lines of both; but what is JSON is decoded as such, for ruamel folds U+0085 in text to a blank.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

import msgspec

from workflows.job import JobSpec
from workflows.misfit import Misfit, explain

if TYPE_CHECKING:
    from ruamel.yaml import YAML
    from ruamel.yaml.nodes import Node

PREFIX: Final = "tag:yaml.org,2002:"
SCALARS: Final = frozenset(PREFIX + kind for kind in ("str", "int", "float", "bool", "null"))

Path = tuple[str | int, ...]


class DocumentInvalid(Exception):
    """The text is not a job.

    Attributes:
        source: Name of the document.
        line: Where, from 1.
        path: Of the field, as ``strategy.eta``; empty where the text cannot be read at all.
        problem: What is wrong there.
    """

    def __init__(self, source: str, line: int, path: str, problem: str) -> None:
        where = f"{source}:{line}: {path}: " if path else f"{source}:{line}: "
        super().__init__(where + problem)
        self.source = source
        self.line = line
        self.path = path
        self.problem = problem


def read_job(
    text: str, source: str = "job", rewrite: Callable[[Any], Any] | None = None
) -> JobSpec:
    """The job that ``text`` describes; ``workflows.rules.check_job`` says whether it can be run.

    Args:
        text: YAML 1.2 or JSON.
        source: Name of the document, for errors.
        rewrite: Makes the plain value that becomes the job from the one that was written; a client
            puts digests there in the place of paths that mean something on its machine alone.

    Raises:
        DocumentInvalid: It is not YAML, or not a job.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
        if root is None:
            raise DocumentInvalid(source, 1, "", "the document is empty")
        reading = _Reading(yaml, source)
        written = _decoded(text, reading.value(root, ()))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise DocumentInvalid(source, line, "", problem) from error
    except YAMLError as error:
        raise DocumentInvalid(source, 1, "", " ".join(str(error).split())) from error
    except RecursionError as error:
        raise DocumentInvalid(source, 1, "", "it is nested too deeply") from error
    meant = rewrite(written) if rewrite else written
    try:
        return msgspec.convert(meant, JobSpec)
    except msgspec.ValidationError as error:
        raise reading.place(explain(str(error), meant, JobSpec)) from error


class _Reading:
    """Turns nodes into plain values, and remembers the line of each path."""

    def __init__(self, yaml: YAML, source: str) -> None:
        self._yaml = yaml
        self._source = source
        self._lines: dict[Path, int] = {}
        self._seen: set[int] = set()

    def value(self, node: Node, path: Path) -> Any:  # noqa: ANN401 - what JSON can say
        """Plain value of ``node``.

        Raises:
            DocumentInvalid: JSON cannot say it.
        """
        from ruamel.yaml.nodes import MappingNode, SequenceNode

        self._lines.setdefault(path, node.start_mark.line + 1)
        if id(node) in self._seen:
            raise self._invalid(path, "anchors and aliases are not read; write the value again")
        self._seen.add(id(node))
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        if node.tag not in SCALARS:
            kind = str(node.tag).removeprefix(PREFIX)
            raise self._invalid(path, f"a {kind} is not read; put text between quotes")
        try:
            value = self._yaml.constructor.construct_object(node)
            if isinstance(value, str):
                value = _joined(value)
        except ValueError as error:
            raise self._invalid(path, f"{node.value!r} cannot be read: {error}") from error
        if isinstance(value, float) and not isfinite(value):
            raise self._invalid(path, f"{node.value} is no number that a job can hold")
        return value

    def _mapping(self, node: Node, path: Path) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key, str) or key_node.tag != PREFIX + "str":
                raise self._invalid(path, f"the name {key} is no text; put it between quotes")
            inner = (*path, key)
            self._lines[inner] = key_node.start_mark.line + 1
            if key in mapping:
                raise self._invalid(inner, "is written twice")
            mapping[key] = self.value(value_node, inner)
        return mapping

    def place(self, misfit: Misfit) -> DocumentInvalid:
        """What does not fit, at its line."""
        problem = f"{misfit.problem}. {misfit.mend}" if misfit.mend else misfit.problem
        return self._invalid(self._path(misfit.path), problem)

    def _path(self, text: str) -> Path:
        """``cohort.size`` as a path; a key that msgspec shows as ``[...]`` ends it."""
        parts: list[str | int] = []
        for name, index in re.findall(r"\.?([^.\[\]]+)|\[([^\]]*)\]", text):
            if index and not index.isdecimal():
                break
            parts.append(int(index) if index else name)
        return tuple(parts)

    def _invalid(self, path: Path, problem: str) -> DocumentInvalid:
        known = next(path[:n] for n in range(len(path), -1, -1) if path[:n] in self._lines)
        return DocumentInvalid(self._source, self._lines[known], _text(path), problem)


def _text(path: Path) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def _decoded(text: str, otherwise: object) -> object:
    """What ``text`` is as JSON; ``otherwise`` if it is none."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return otherwise


def _joined(text: str) -> str:
    """``text`` with the halves of a character that JSON escapes in two put together.

    Raises:
        UnicodeError: It holds one half only.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16")
