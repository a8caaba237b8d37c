"""What steps print is read at every replica, whichever one took it in, and outlives that one."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from clients.sdk import Foedus
from sharing.s3_bucket import Address
from tests.cluster.test_s3_platform import settings
from tests.e2e.jobs import LINEAR, small
from tests.e2e.real_server import PATIENCE, RealServer, running, until
from workflows.job import Bundle
from workflows.run import Phase

pytestmark = pytest.mark.timeout(180)
WAIT_S = 90.0


def talkative(folder: Path) -> Path:
    """The small program, which says so whenever it evaluates."""
    program = Path(shutil.copytree(LINEAR, folder / "talkative"))
    source = program / "program.py"
    spoken = source.read_text().replace(
        "def build(", 'print("the program is loaded", flush=True)\n\n\ndef build('
    )
    source.write_text(spoken)
    return program


def test_logs_are_read_at_both_replicas_and_outlive_the_one_that_took_them(
    s3: Address, bucket: str, records_url: str, tmp_path: Path
) -> None:
    shared = {**settings(s3, bucket, tmp_path), "FOEDUS_DATABASE_URL": records_url}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running(tmp_path / name, FOEDUS_LEASE_S="2", **shared))
            for name in ("a", "b")
        ]
        token = servers[0].token
        a, b = (
            stack.enter_context(Foedus(server.url, token, patience=PATIENCE)) for server in servers
        )
        program = a.programs.push(talkative(tmp_path))
        job = a.submit(replace(small(a, "digits", rounds=30), program=Bundle(program.digest)))

        until(lambda: "loaded" in b.job(job.id).logs("federate"), "the log to grow", WAIT_S)
        assert not b.job(job.id).refresh().phase.is_final
        [took] = [server for server in servers if server.attempts()]
        [other] = [server for server in servers if server is not took]
        assert "loaded" in _logs(took, token, job.id)
        assert job.wait(timeout_s=WAIT_S).phase is Phase.SUCCEEDED
        whole = _logs(took, token, job.id)
        took.kill()

        assert whole.startswith("==> federate <==\nthe program is loaded")
        assert _logs(other, token, job.id) == whole
        assert _logs(other, token, job.id, tail_bytes=5) != whole
        assert not list(tmp_path.glob("*/data/logs"))


def _logs(server: RealServer, token: str, job: str, tail_bytes: int | None = None) -> str:
    with Foedus(server.url, token, patience=PATIENCE) as foedus:
        return foedus.job(job).logs(tail_bytes=tail_bytes)
