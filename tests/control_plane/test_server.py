"""The server as a process: how it starts, what it holds, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 30.0
FORBIDDEN = (
    *("torch", "flwr", "sklearn", "xgboost", "onnx", "onnxruntime", "ray", "matplotlib", "opacus"),
    *("scipy", "pyarrow", "tenseal", "minio", "psycopg", "keycloak", "jwcrypto", "hera"),
    "opentelemetry.sdk",
)
ARGO = {
    "FOEDUS_ENGINE": "argo",
    "FOEDUS_IMAGE": "foedus:1",
    "FOEDUS_ENDPOINT_URL": "http://foedus:8470",
}
JOB = {
    "name": "survivor",
    "program": {"kind": "builtin", "name": "digits-mlp"},
    "data": {"kind": "partitioned", "dataset": "digits", "sites": 2},
    "runtime": {"kind": "native", "workers": 1},
    "rounds": 100_000,
}


class Process:
    """A server on a folder, as `foedus serve` starts it."""

    def __init__(self, folder: Path, **settings: str) -> None:
        names = ("PATH", "LANG", "LD_LIBRARY_PATH", "HOME")
        kept = {name: os.environ[name] for name in names if name in os.environ}
        self.folder = folder
        self.child = subprocess.Popen(
            [sys.executable, "-m", "control_plane"],
            cwd=ROOT,
            env={**kept, "FOEDUS_DATA": str(folder), "FOEDUS_PORT": "0", **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self.token = ""

    def ready(self) -> Process:
        assert self.child.stdout is not None
        while not (self.said and "listens at" in self.said[-1]):
            line = self.child.stdout.readline()
            assert line, self.child.communicate()[1]
            self.said.append(line.rstrip())
            if "token" in line:
                self.token = line.split()[-1]
        return self

    @property
    def url(self) -> str:
        return self.said[-1].split()[-1]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.child.send_signal(number)
        out, error = self.child.communicate(timeout=PATIENCE_S)
        self.said += out.splitlines()
        return self.child.returncode, error


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    """Servers that are ended after the test, however it went."""
    started: list[Process] = []
    yield started
    for process in started:
        if process.child.poll() is None:
            process.child.kill()
        process.child.communicate()


def until(condition: Any) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE_S} s")


def test_the_first_start_shows_the_token_once(tmp_path: Path, processes: list[Process]) -> None:
    first = Process(tmp_path)
    processes.append(first)
    first.ready()
    answer = httpx.get(f"{first.url}/v1/whoami", headers={"Authorization": f"Bearer {first.token}"})
    code, log = first.end()
    second = Process(tmp_path)
    processes.append(second)
    second.ready()
    still = httpx.get(f"{second.url}/v1/whoami", headers={"Authorization": f"Bearer {first.token}"})
    second.end()

    assert answer.status_code == still.status_code == 200
    assert code == 0
    assert second.token == ""
    assert first.token not in log
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert first.token.encode() not in kept
    assert (tmp_path / "endpoint").read_text() == second.url


def test_the_first_token_goes_to_its_file(tmp_path: Path, processes: list[Process]) -> None:
    file = tmp_path / "token"
    server = Process(tmp_path / "data", FOEDUS_FIRST_TOKEN_FILE=str(file))
    processes.append(server)
    server.ready()

    token = file.read_text()

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert server.token == ""
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.get(f"{server.url}/v1/whoami", headers=headers).status_code == 200


def test_a_second_server_on_the_folder_is_refused(tmp_path: Path, processes: list[Process]) -> None:
    first = Process(tmp_path)
    processes.append(first)
    first.ready()

    second = Process(tmp_path)
    processes.append(second)
    _, error = second.child.communicate(timeout=PATIENCE_S)

    assert second.child.returncode == 3
    assert str(tmp_path) in error
    assert str(first.child.pid) in error
    assert "Traceback" not in error
    assert httpx.get(f"{first.url}/health/live").status_code == 200
    assert (tmp_path / "endpoint").read_text() == first.url


@pytest.mark.parametrize(
    ("settings", "code", "word"),
    [
        ({"FOEDUS_PORT": "many"}, 2, "FOEDUS_PORT"),
        ({"FOEDUS_ENGINE": "argo"}, 2, "FOEDUS_ENGINE=argo needs"),
        (ARGO | {"FOEDUS_KUBECONFIG": "/dev/null"}, 2, "FOEDUS_KUBECONFIG: /dev/null"),
        (ARGO, 2, "FOEDUS_KUBECONFIG: this is no pod"),
        ({"FOEDUS_HOST": "203.0.113.1"}, 4, "203.0.113.1"),
        ({"FOEDUS_DATA": "/dev/null/x"}, 1, "FOEDUS_DATA"),
    ],
    ids=["a setting", "an image", "a kubeconfig", "a cluster", "an address", "a folder"],
)
def test_a_start_that_cannot_be_says_why(
    tmp_path: Path, processes: list[Process], settings: dict[str, str], code: int, word: str
) -> None:
    server = Process(tmp_path, **settings)
    processes.append(server)

    _, error = server.child.communicate(timeout=PATIENCE_S)

    assert server.child.returncode == code
    assert word in error
    assert "Traceback" not in error


def test_records_that_cannot_be_read_end_the_start(
    tmp_path: Path, processes: list[Process]
) -> None:
    (tmp_path / "foedus.db").write_text("this is no database" * 100)
    server = Process(tmp_path)
    processes.append(server)

    out, error = server.child.communicate(timeout=PATIENCE_S)

    assert server.child.returncode == 1
    assert error.splitlines()[-1].startswith("foedus: the server could not start")
    assert out == ""


def test_a_stop_ends_streams_and_lets_attempts_go_on(
    tmp_path: Path, processes: list[Process]
) -> None:
    server = Process(tmp_path)
    processes.append(server)
    server.ready()
    headers = {"Authorization": f"Bearer {server.token}"}
    job = httpx.post(f"{server.url}/v1/jobs", json=JOB, headers=headers).json()["id"]
    until(
        lambda: (
            httpx.get(f"{server.url}/v1/jobs/{job}", headers=headers).json()["phase"] != "pending"
        )
    )
    until(lambda: list((tmp_path / "runs").rglob("job.json")))
    stream = {**headers, "Accept": "text/event-stream"}

    with httpx.stream("GET", f"{server.url}/v1/jobs/{job}/events", headers=stream) as events:
        lines = events.iter_lines()
        assert next(lines) == "retry: 500"
        began = time.monotonic()
        server.child.send_signal(signal.SIGTERM)
        rest = list(lines)
    server.child.communicate(timeout=PATIENCE_S)
    took_s = time.monotonic() - began

    again = Process(tmp_path)
    processes.append(again)
    again.ready()
    at = f"{again.url}/v1/jobs/{job}"
    attempts = httpx.get(at, headers=headers).json()["attempt"]
    httpx.patch(at, json={"desired": "cancelled"}, headers=headers)
    closed = until(lambda: (found := httpx.get(at, headers=headers).json())["ended_at"] and found)
    deleted = until(lambda: httpx.delete(at, headers=headers).status_code == 204)
    code, _ = again.end()

    assert server.child.returncode == code == 0
    assert took_s < 4.0
    assert not any("run.closed" in line for line in rest)
    assert attempts == 1
    assert closed["phase"] == "cancelled"
    assert deleted
    assert list((tmp_path / "runs").rglob("job.json")) == []


def test_the_log_is_json_and_holds_no_secret(tmp_path: Path, processes: list[Process]) -> None:
    server = Process(tmp_path, FOEDUS_LOG_LEVEL="debug")
    processes.append(server)
    server.ready()
    headers = {"Authorization": f"Bearer {server.token}"}
    httpx.get(f"{server.url}/v1/jobs?limit=1", headers=headers)
    httpx.get(f"{server.url}/v1/jobs?cursor=verysecret", headers=headers)
    httpx.get(f"{server.url}/v1/jobs", headers={"Authorization": "Bearer foedus_wrongsecret"})
    httpx.post(f"{server.url}/v1/jobs", json=JOB | {"rounds": 0}, headers=headers)

    _, log = server.end()

    for line in log.splitlines():
        assert json.loads(line)["event"]
    for secret in (server.token, "verysecret", "wrongsecret"):
        assert secret not in log


def test_an_upload_that_stalls_or_breaks_off_leaves_nothing(
    tmp_path: Path, processes: list[Process]
) -> None:
    server = Process(tmp_path, FOEDUS_STALL_S="0.3")
    processes.append(server)
    server.ready()
    host, _, port = server.url.rpartition("/")[2].rpartition(":")
    request = (
        f"POST /v1/programs HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n"
        f"Authorization: Bearer {server.token}\r\n\r\nonly this much"
    ).encode()

    with socket.create_connection((host, int(port)), PATIENCE_S) as stalled:
        stalled.sendall(request)
        answer = HTTPResponse(stalled)
        answer.begin()
        told = answer.read()
    with socket.create_connection((host, int(port)), PATIENCE_S) as broken:
        broken.sendall(request)
        until(lambda: list((tmp_path / "scratch").iterdir()))
    until(lambda: not list((tmp_path / "scratch").iterdir()))
    headers = {"Authorization": f"Bearer {server.token}"}
    listed = httpx.get(f"{server.url}/v1/programs", headers=headers).json()["items"]
    _, log = server.end()

    assert answer.status == 408
    assert b"/problems/body-stalled" in told
    assert listed == []
    assert [line for line in log.splitlines() if "audit.recorded" not in line] == []


def test_the_server_never_loads_a_framework(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from litestar.testing import TestClient
from control_plane import __main__
from control_plane.app import create_app, local_engine
from control_plane.settings import Settings
settings = Settings(data=Path(sys.argv[1]))
tokens = []
app = create_app(settings, engine=local_engine(settings, {}), url=str, announce_token=tokens.append)
with TestClient(app) as client:
    headers = {"Authorization": f"Bearer {tokens[0]}"}
    job = client.get("/openapi.json").json()["paths"]["/v1/jobs"]["post"]["requestBody"]
    example = job["content"]["application/json"]["example"]
    for answer in (
        client.post("/v1/jobs?dryRun=true", json=example, headers=headers),
        client.get("/v1/jobs", headers=headers),
        client.get("/v1/capabilities", headers=headers),
        client.get("/health/ready"),
        client.get("/metrics"),
    ):
        assert answer.status_code == 200, answer.text
print(sorted({part for name in sys.modules for part in (name, name.partition(".")[0])}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split("'"))
    assert "litestar" in loaded
    assert loaded.isdisjoint(FORBIDDEN), loaded & set(FORBIDDEN)
