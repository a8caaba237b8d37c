"""The product's own server as a process that can be killed and started again on the same folder."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import psutil

from clients.sdk import Foedus
from clients.transport import Patience
from tests.clients.cli_process import environment
from tests.clients.scripted_server import free_port

START_S = 60.0
PATIENCE = Patience(first_s=0.02, longest_s=0.2, total_s=START_S)


class RealServer:
    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self._folder = folder
        self._settings = settings
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        return self._folder / "data"

    @property
    def token(self) -> str:
        return (self._folder / "token").read_text().strip()

    @property
    def log(self) -> str:
        return (self._folder / "server.log").read_text(errors="replace")

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "FOEDUS_DATA": str(self._folder / "data"),
            "FOEDUS_PORT": str(self.port),
            "FOEDUS_FIRST_TOKEN_FILE": str(self._folder / "token"),
            **{name: value.format(port=self.port) for name, value in self._settings.items()},
        }
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "control_plane"],
                env=environment(self._folder, **settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self._is_ready, "the server to be ready", START_S)

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/health/ready", trust_env=False).is_success
        return False

    def kill(self) -> None:
        """As a power cut would: nothing of it gets to say a last word."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(START_S)

    def stop(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(START_S)

    def client(self) -> Foedus:
        return Foedus(self.url, self.token, patience=PATIENCE)

    def attempts(self) -> list[psutil.Process]:
        """Wrappers of this folder's attempts, steps and workers beneath them."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                if "workflows.wrapper" in line and any(
                    part.startswith(str(self._folder)) for part in line
                ):
                    found += [process, *process.children(recursive=True)]
        return found

    def steps(self) -> list[psutil.Process]:
        """Step processes: the children of wrappers."""
        wrappers = {
            process.pid for process in self.attempts() if "workflows.wrapper" in _line(process)
        }
        return [process for process in self.attempts() if _parent(process) in wrappers]


@contextlib.contextmanager
def running(folder: Path, **settings: str) -> Iterator[RealServer]:
    """A server, ended with everything that it started; ``{port}`` in a setting is its port."""
    server = RealServer(folder, settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        for process in server.attempts():
            with contextlib.suppress(psutil.Error):
                process.kill()


def kill(processes: list[psutil.Process]) -> int:
    """End each at once; how many there were."""
    num_killed = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
            num_killed += 1
    return num_killed


def until(holds: Callable[[], bool], what: str, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {within_s:g} s for {what}"
        time.sleep(0.02)


def _line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.Error:
        return os.getpid()
