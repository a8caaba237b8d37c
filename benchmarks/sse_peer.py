"""Server-sent events with nothing around them: the floor beneath ``benchmarks.watchers``.

The same server program (uvicorn, uvloop, httptools) with an application of a screenful: a POST to
``/tell/CHANNEL`` hands its body to everybody who watches ``/watch/CHANNEL``. It knows no tokens,
jobs, records, heartbeats or resumption. Prints where it listens.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from typing import Any, Final

import uvicorn

CHANNELS: Final[defaultdict[str, set[asyncio.Queue[bytes]]]] = defaultdict(set)


async def application(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
    """Answer one request."""
    _, verb, channel = scope["path"].split("/")
    if verb == "watch":
        await _watch(CHANNELS[channel], receive, send)
        return
    message = await receive()
    event = b"id: 1\nevent: told\ndata: " + message["body"] + b"\n\n"
    for queue in CHANNELS[channel]:
        queue.put_nowait(event)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


async def _watch(watchers: set[asyncio.Queue[bytes]], receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    watchers.add(queue)
    telling = asyncio.create_task(_tell(queue, send))
    while (await receive())["type"] != "http.disconnect":
        pass
    telling.cancel()
    watchers.discard(queue)


async def _tell(queue: asyncio.Queue[bytes], send: Any) -> None:  # noqa: ANN401 - ASGI
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"retry: 500\n\n", "more_body": True})
    while True:
        event = await queue.get()
        await send({"type": "http.response.body", "body": event, "more_body": True})


class _Server(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:  # noqa: ANN401 - uvicorn's
        await super().startup(sockets)
        print("http://{}:{}".format(*self.servers[0].sockets[0].getsockname()), flush=True)


if __name__ == "__main__":
    config = uvicorn.Config(
        application,
        port=0,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    _Server(config).run()
    sys.exit(0)
