"""How a client's requests travel: with a token, a timeout, and patience with a restarting server.

A request that may be repeated is repeated while the connection fails or the server says that it is
away (429, 502, 503, 504; RFC 9110 section 10.2.3 for Retry-After), until patience runs out. What
may not be repeated is only tried again when it surely never left. Redirects are not followed, so
that a token goes to one place alone; but for links to objects, which are asked for, and followed
once and without the token. A link is a secret: no error names it, and httpx may not log it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from clients.errors import (
    AnswerNotUnderstood,
    ApiError,
    NotSecure,
    Unavailable,
    Unreachable,
    from_problem,
)
from clients.resources import Problem

T = TypeVar("T")
TokenSource = Callable[[], str]
"""Gives a token that is good for now; see ``clients.tokens``."""
CHUNK_BYTES: Final = 1 << 20
PROBLEM_BYTES: Final = 1 << 20
JSON: Final[Mapping[str, str]] = {"Content-Type": "application/json"}
AWAY: Final = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how often to try again.

    Attributes:
        first_s: Pause before the second try; doubles from try to try.
        longest_s: Longest pause.
        total_s: Time without any success after which to give up.
    """

    first_s: float = 0.1
    longest_s: float = 2.0
    total_s: float = 60.0

    def pause_s(self, num_failures: int) -> float:
        """Pause after the ``num_failures``-th failure in a row, without jitter."""
        return min(self.longest_s, self.first_s * 2.0 ** min(num_failures - 1, 30))


DEFAULT_PATIENCE: Final = Patience()


class Retrying:
    """Failures in a row, against one patience."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self.succeeded()

    def succeeded(self) -> None:
        """Start anew: something worked."""
        self._num_failures = 0
        self._since = time.monotonic()

    def wait(self, error: Unreachable | Unavailable, at_least_s: float = 0.0) -> None:
        """Pause before the next try.

        Raises:
            Unreachable: Patience is over; or Unavailable, as ``error`` is.
        """
        self._num_failures += 1
        jitter = random.uniform(0.75, 1.25)  # noqa: S311 - spreads clients, guards nothing
        pause_s = max(at_least_s, self._patience.pause_s(self._num_failures) * jitter)
        if time.monotonic() + pause_s - self._since > self._patience.total_s:
            raise error
        time.sleep(pause_s)


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request.

    Attributes:
        body: Bytes, or a file that is streamed.
        is_repeatable: Whether doing it twice is doing it once.
        answer_s: Longest silence before the answer, in seconds; None for the usual.
        takes_link: Whether the answer may be fetched from where the server says.
    """

    method: str
    path: str
    params: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    body: bytes | Path | None = None
    is_repeatable: bool = True
    answer_s: float | None = None
    takes_link: bool = False


def _tells_no_link(record: logging.LogRecord) -> bool:
    """False for what httpx and httpcore would tell of a link to an object."""
    return "X-Amz-Signature" not in record.getMessage()


for _name in ("httpx", "httpcore.http11"):
    logging.getLogger(_name).addFilter(_tells_no_link)


class Transport:
    """A connection pool to one server, in the name of one user. Safe to share among threads."""

    def __init__(
        self,
        url: str,
        token: str | TokenSource,
        *,
        timeout_s: float = 30.0,
        patience: Patience = DEFAULT_PATIENCE,
        allow_plain_http: bool = False,
    ) -> None:
        """Connect lazily.

        Raises:
            NotSecure: Plain HTTP to another machine, and it was not allowed.
        """
        require_secure(url, allow_plain_http)
        self._allow_plain_http = allow_plain_http
        self.url = url.rstrip("/")
        self.patience = patience
        self._token = token
        self._timeout = httpx.Timeout(timeout_s, connect=5.0, pool=timeout_s)
        self._client = httpx.Client(
            base_url=self.url,
            timeout=self._timeout,
            trust_env=not is_loopback(url),  # a proxy cannot reach what is on this machine
        )
        self._without_token = httpx.Client(timeout=self._timeout)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()
        self._without_token.close()

    def send(self, call: Call) -> httpx.Response:
        """The answer, read whole.

        Raises:
            ApiError: The server refused.
            Unreachable: No answer; the request may have been carried out.
        """
        retrying = Retrying(self.patience)
        while True:
            try:
                with self.opened(call) as response:
                    response.read()
                    return response
            except Unavailable as error:
                if not call.is_repeatable or error.problem.status not in AWAY:
                    raise
                retrying.wait(error, error.retry_after_s)
            except Unreachable as error:
                never_left = isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout)
                if not (call.is_repeatable or never_left):
                    raise
                retrying.wait(error)

    def fetch(self, call: Call, kind: type[T]) -> T:
        """The answer's body as a value.

        Raises:
            AnswerNotUnderstood: It is not one.
            ApiError: The server refused.
            Unreachable: No answer.
        """
        return understand(self.send(call).content, kind)

    @contextlib.contextmanager
    def opened(self, call: Call) -> Iterator[httpx.Response]:
        """One try; the answer's body is still to be read, within the context.

        Raises:
            ApiError: The server refused.
            LoginRefused: The source of tokens has none.
            Unreachable: The connection failed, here or while the body was read.
        """
        timeout = httpx.Timeout(self._timeout)
        if call.answer_s is not None:
            timeout.read = call.answer_s
        token = self._token if isinstance(self._token, str) else self._token()
        headers = {**call.headers, **({"Authorization": f"Bearer {token}"} if token else {})}
        body: bytes | Iterable[bytes] | None
        if isinstance(call.body, Path):
            headers["Content-Length"] = str(call.body.stat().st_size)
            body = _chunks(call.body)
        else:
            body = call.body
        try:
            with self._client.stream(
                call.method,
                call.path,
                params=dict(call.params),
                headers=headers,
                content=body,
                timeout=timeout,
            ) as response:
                if not (call.takes_link and response.status_code == HTTPStatus.TEMPORARY_REDIRECT):
                    if not response.is_success:
                        raise _refusal(response)
                    yield response
                    return
                link = response.headers.get("location", "")
        except httpx.TransportError as error:
            raise Unreachable(_say(error, self.url)) from error
        with self._linked(call, link) as response:
            yield response

    @contextlib.contextmanager
    def _linked(self, call: Call, link: str) -> Iterator[httpx.Response]:
        """The object that a link leads to; its digest is the caller's to check.

        Raises:
            ApiError: The store refused.
            NotSecure: The link would go over plain HTTP to another machine, which is not allowed.
            Unreachable: The store did not answer, or broke off.
        """
        place = urlsplit(link)._replace(path="", query="", fragment="").geturl()
        require_secure(place, self._allow_plain_http, "the link")
        headers = {name: text for name, text in call.headers.items() if name == "Range"}
        try:
            with self._without_token.stream(call.method, link, headers=headers) as response:
                if not response.is_success:
                    raise _refused_link(response, place)
                yield response
        except httpx.TransportError as error:
            raise Unreachable(_say(error, place)) from None  # httpx's own error holds the link

    def put_to_link(self, link: str, content: bytes) -> None:
        """One try to send bytes to where a link leads.

        Raises:
            ApiError: The store refused.
            NotSecure: The link would go over plain HTTP to another machine, which is not allowed.
            Unreachable: The store did not answer, or broke off; it may have taken them.
        """
        place = urlsplit(link)._replace(path="", query="", fragment="").geturl()
        require_secure(place, self._allow_plain_http, "the link")
        try:
            response = self._without_token.put(link, content=content)
        except httpx.TransportError as error:
            raise Unreachable(_say(error, place)) from None  # httpx's own error holds the link
        if not response.is_success:
            raise _refused_link(response, place)


def understand(content: bytes | str, kind: type[T]) -> T:
    """Decode an answer.

    Raises:
        AnswerNotUnderstood: It is not a ``kind``.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise AnswerNotUnderstood(
            f"the server's answer is not what this version expects ({error}); is the address "
            "right, and are both of one version?"
        ) from error


def require_secure(url: str, allow_plain_http: bool = False, what: str = "the token") -> None:
    """Return if ``what`` may travel to ``url``.

    Raises:
        NotSecure: Plain HTTP to another machine, and it was not allowed.
    """
    if urlsplit(url).scheme != "https" and not (is_loopback(url) or allow_plain_http):
        raise NotSecure(
            f"{url}: {what} would travel in the clear; use https://, or set "
            "FOEDUS_ALLOW_PLAIN_HTTP=1 where the network itself is private"
        )


def is_loopback(url: str) -> bool:
    """Whether ``url`` is on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _refusal(response: httpx.Response) -> ApiError:
    content = b""
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > PROBLEM_BYTES:
            break
    try:
        problem = msgspec.json.decode(content, type=Problem)
    except msgspec.MsgspecError:
        title = f"{response.status_code} {response.reason_phrase}"
        hint = "the answer is not from a Foedus server; is the address right?"
        problem = Problem(type="", title=title, status=response.status_code, hint=hint)
    return from_problem(problem, _seconds(response.headers.get("retry-after", "")))


def _refused_link(response: httpx.Response, place: str) -> ApiError:
    problem = Problem(
        type="",
        title=f"{response.status_code} {response.reason_phrase}",
        status=response.status_code,
        detail=f"the object store at {place} refused its own link",
        hint="Try again, or without taking it directly.",
    )
    return from_problem(problem, 0.0)


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() else 0.0


def _say(error: httpx.TransportError, url: str) -> str:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return f"nobody answers at {url}; is the server running (`foedus serve`)?"
    if isinstance(error, httpx.TimeoutException):
        return f"{url} took too long to answer"
    return f"the connection to {url} broke off"
