"""How long a shard looks for its server."""

from __future__ import annotations

import socket
import time

import pytest

from workflows import shard
from workflows.link import make_links
from workflows.shard import Server, Unserved


def test_a_name_that_is_gone_is_not_waited_for_as_long_as_a_server_that_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard, "REJOIN_S", 0.3)
    began = time.monotonic()

    with pytest.raises(Unserved):
        Server("foedus.invalid.", 1, make_links()[1]).find(60.0)

    assert time.monotonic() - began < 20


def test_a_server_that_does_not_listen_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "REJOIN_S", 0.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        began = time.monotonic()

        with pytest.raises(Unserved):
            Server("127.0.0.1", closed.getsockname()[1], make_links()[1]).find(0.8)

    assert time.monotonic() - began >= 0.8
