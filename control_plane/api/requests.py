"""A request as handlers see it: who asks, what there is to work with, and a bounded body."""

from __future__ import annotations

from asyncio import timeout
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, cast

from litestar import Request
from litestar.datastructures import State

from clients.identity import Principal

if TYPE_CHECKING:
    from control_plane.api.service import Service
    from control_plane.ingest import Attempt


class Disconnected(Exception):
    """The caller went away before the whole body had come."""


class BodyTooLarge(Exception):
    """The body has more bytes than are taken here."""


class BodyStalled(Exception):
    """Nothing of the body came for too long."""


class TimedOut(Exception):
    """The answer did not begin in time."""


class Call(Request[Any, Any, State]):
    """A request to this server."""

    @property
    def service(self) -> Service:
        """What there is to work with."""
        return cast("Service", self.app.state["service"])

    @property
    def who(self) -> Principal:
        """Who asks."""
        return cast("Principal", self.user)

    @property
    def attempt(self) -> Attempt:
        """The attempt that asks, on the routes of attempts."""
        return cast("Attempt", self.user)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes; bounded, unless whoever reads it counts.

        Raises:
            BodyTooLarge: It is larger than a body may be.
            BodyStalled: Nothing came for too long.
            Disconnected: It ended too early.
        """
        settings = self.service.settings
        limit = None if self.route_handler.opt.get("streams") else settings.body_kb << 10
        if limit is not None and (self.content_length or 0) > limit:
            raise BodyTooLarge(f"at most {limit} bytes are taken here")
        size = 0
        more = True
        while more:
            try:
                async with timeout(settings.stall_s):
                    message = await self.receive()
            except TimeoutError as error:
                raise BodyStalled(f"nothing came after {size} bytes") from error
            if message["type"] != "http.request":
                raise Disconnected(f"the caller went away after {size} bytes")
            more = message.get("more_body", False)
            size += len(message["body"])
            if limit is not None and size > limit:
                raise BodyTooLarge(f"at most {limit} bytes are taken here")
            if message["body"]:
                yield message["body"]
