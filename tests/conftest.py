"""What every test shares: one event loop, and no network beyond this machine."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings
from pytest_socket import socket_allow_hosts

# How long one example takes is the machine's load, not a property of the code under test.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_network() -> None:
    socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)


def pytest_configure() -> None:
    """Let children be interrupted, even where a shell started these tests in the background.

    Such a shell has SIGINT ignored, which children inherit; a handler of our own they do not.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
