"""A disk that fills up under a run: refusals are typed, nothing is lost, and the run goes on."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec

from tests.e2e.jobs import small
from tests.e2e.real_server import RealServer, running, until
from workflows.job import JobSpec

ROUNDS = 8
DISK_MB = 24
WAIT_S = 120.0


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A real file system of a few MiB; needs the right to mount."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Take every byte that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def submit(server: RealServer, job: JobSpec) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/jobs",
        content=msgspec.json.encode(job),
        headers={"Authorization": f"Bearer {server.token}"},
        trust_env=False,
    )


def test_a_run_outlives_a_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    with small_disk(folder / "data") as disk, running(folder) as server, server.client() as foedus:
        undisturbed = foedus.submit(small(foedus, "undisturbed", ROUNDS)).wait(WAIT_S)
        one_too_many = small(foedus, "one too many")
        job = foedus.submit(small(foedus, "starved", ROUNDS))
        next(done for done in job.rounds(timeout_s=WAIT_S) if done.number >= 2)

        filler = fill(disk)
        until(lambda: not submit(server, one_too_many).is_success, "a refusal")
        refusal = submit(server, one_too_many)
        os.truncate(filler, 0)
        filler.unlink()
        closed = job.wait(WAIT_S)

        assert refusal.status_code in (503, 507)
        assert refusal.json()["retryable"] is True
        assert closed.model is not None
        assert undisturbed.model is not None
        assert foedus.models.get(closed.model).digest == foedus.models.get(undisturbed.model).digest
        finished = [
            event.fields["round"] for event in job.events() if event.kind == "round.finished"
        ]
        assert sorted(set(finished)) == list(range(1, ROUNDS + 1))
