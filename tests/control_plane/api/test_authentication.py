from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from clients.identity import NotAuthentic
from control_plane.api.authentication import authenticated, bearer_token
from control_plane.api.requests import TimedOut
from control_plane.settings import Settings

pytestmark = pytest.mark.anyio


def scope(**opt: Any) -> Any:
    service = SimpleNamespace(settings=Settings(request_s=0.02))
    return {
        "type": "http",
        "headers": [],
        "path_params": {},
        "litestar_app": SimpleNamespace(state={"service": service}),
        "route_handler": SimpleNamespace(opt=opt),
    }


async def sleepy(*_: Any) -> None:
    await asyncio.sleep(0.1)


async def nothing(*_: Any) -> None:
    raise AssertionError("nobody calls this")


async def test_an_answer_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(TimedOut):
        await authenticated(sleepy)(scope(access="public"), nothing, nothing)


async def test_a_stream_may_take_its_time() -> None:
    await authenticated(sleepy)(scope(access="public", streams=True), nothing, nothing)


@pytest.mark.parametrize("opt", [{}, {"access": "user"}, {"access": "attempt"}, {"access": "?"}])
async def test_a_route_that_does_not_say_it_is_public_is_closed(opt: dict[str, str]) -> None:
    with pytest.raises(NotAuthentic):
        await authenticated(nothing)(scope(**opt), nothing, nothing)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b""],
        [b"Bearer"],
        [b"Bearer "],
        [b"Basic abc"],
        [b"Bearer \xff"],
        [b"Bearer " + b"x" * 8193],
        [b"Bearer a", b"Bearer b"],
    ],
)
def test_what_is_no_bearer_token(values: list[bytes]) -> None:
    with pytest.raises(NotAuthentic):
        bearer_token([(b"authorization", value) for value in values])


def test_a_bearer_token() -> None:
    assert bearer_token([(b"host", b"x"), (b"authorization", b"bEARER foedus_x ")]) == "foedus_x"
