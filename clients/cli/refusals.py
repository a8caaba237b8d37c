"""Errors that are expected, as lines for people and as exit codes for scripts.

Exit codes: 0 done; 1 the job failed or was cancelled, or the program has faults; 2 wrong usage;
3 refused (a job, a file, an id: change what was asked); 4 no token, or not allowed; 5 the server
cannot be reached or cannot do it now (try again); 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from clients.cli.connection import NotLoggedIn, SettingsInvalid
from clients.cli.output import say_json, tell

if TYPE_CHECKING:
    from clients.errors import ApiError

UNSUCCESSFUL: Final = 1
USAGE: Final = 2
REFUSED: Final = 3
NOT_ALLOWED: Final = 4
UNREACHABLE: Final = 5
INTERRUPTED: Final = 130


def explain(error: Exception, as_json: bool) -> int | None:
    """Tell an expected error on standard error.

    Returns:
        The exit code; None if the error is not an expected one.
    """
    from clients.errors import (
        ApiError,
        FoedusError,
        LoginRefused,
        NotAuthenticated,
        Unavailable,
        Unreachable,
    )
    from workflows.job_document import DocumentInvalid

    lines: tuple[str, ...]
    match error:
        case NotLoggedIn():
            code, lines = NOT_ALLOWED, (f"not logged in: {error}",)
        case LoginRefused():
            code, lines = NOT_ALLOWED, (f"not logged in: {error}",)
        case SettingsInvalid():
            code, lines = USAGE, (str(error),)
        case NotAuthenticated():
            advice = "  `foedus login` keeps another token"
            code, lines = NOT_ALLOWED, (*_problem_lines(error), advice)
        case Unavailable():
            code, lines = UNREACHABLE, tuple(_problem_lines(error))
        case ApiError():
            code = _code_of(error.problem.status)
            lines = tuple(_problem_lines(error))
        case Unreachable():
            code, lines = UNREACHABLE, (f"unreachable: {error}",)
        case FoedusError() | DocumentInvalid():
            code, lines = REFUSED, (f"refused: {error}",)
        case _:
            return None
    if as_json:
        problem = error.problem if isinstance(error, ApiError) else {"title": str(error)}
        say_json(problem, is_error=True)
    else:
        for line in lines:
            tell(line)
    return code


def _code_of(status: int) -> int:
    if status == 403:
        return NOT_ALLOWED
    return UNREACHABLE if status >= 500 else REFUSED


def _problem_lines(error: ApiError) -> Iterator[str]:
    problem = error.problem
    yield f"refused: {problem.title}"
    detail = problem.detail.removesuffix(f"; {problem.hint}")  # it follows on a line of its own
    if detail:
        yield f"  {detail}"
    for field in problem.fields:
        yield f"  field: {field}"
    if problem.hint:
        yield f"  hint: {problem.hint}"
    if problem.trace_id and problem.status >= 500:
        yield f"  trace: {problem.trace_id}"
