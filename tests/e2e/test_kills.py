"""kill -9 of whatever runs, whenever: nothing acknowledged is lost, and the model is the same.

Each test compares with a run of the same job that nobody disturbed.
"""

from __future__ import annotations

import random
import threading

import psutil
import pytest

from clients.resources import Event, Job
from clients.sdk import JobHandle
from tests.e2e.jobs import small
from tests.e2e.real_server import RealServer, kill, until
from workflows.run import Phase

ROUNDS = 8
WAIT_S = 120.0
SEEDS = (1, 2)


@pytest.fixture(scope="module")
def undisturbed(server: RealServer) -> str:
    """Digest of the model of a run that was left alone."""
    with server.client() as foedus:
        job = foedus.submit(small(foedus, "undisturbed", ROUNDS)).wait(WAIT_S)
        return digest_of(server, job)


@pytest.fixture
def doomed(server: RealServer, undisturbed: str) -> RealServer:
    """The server, once it has shown what it makes when it is left alone."""
    return server


def digest_of(server: RealServer, job: Job) -> str:
    assert job.model is not None
    with server.client() as foedus:
        return foedus.models.get(job.model).digest


def wait_for_round(job: JobHandle, number: int) -> None:
    for done in job.rounds(timeout_s=WAIT_S):
        if done.number >= number:
            return


def require_whole_story(job: JobHandle) -> list[Event]:
    events = list(job.events(timeout_s=WAIT_S))
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert sum(event.kind == "run.closed" for event in events) == 1
    finished = [event.fields["round"] for event in events if event.kind == "round.finished"]
    assert sorted(set(finished)) == list(range(1, ROUNDS + 1))
    return events


def test_a_run_that_is_killed_three_ways_ends_with_the_same_model(
    doomed: RealServer, undisturbed: str
) -> None:
    with doomed.client() as foedus:
        job = foedus.submit(small(foedus, "killed", ROUNDS))

        wait_for_round(job, 2)
        assert kill(doomed.steps()) == 1

        wait_for_round(job, 4)
        before = [event for event, _ in zip(job.events(), range(10), strict=False)]
        doomed.kill()
        assert kill(doomed.attempts()) >= 2
        until(lambda: not doomed.attempts(), "the attempt to be gone")
        doomed.start()

        wait_for_round(job, 6)
        attempt = job.refresh().attempt
        doomed.kill()
        assert len(doomed.steps()) == 1
        doomed.start()
        closed = job.wait(WAIT_S)

        assert attempt == 3
        assert closed.attempt == attempt  # without the control plane, it just went on
        assert digest_of(doomed, closed) == undisturbed
        assert require_whole_story(job)[:10] == before


@pytest.mark.parametrize("seed", SEEDS)
def test_killing_at_random_moments_leads_to_the_same_model(
    doomed: RealServer, undisturbed: str, seed: int
) -> None:
    rng = random.Random(seed)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    over = threading.Event()

    def disturb() -> None:
        for _ in range(4):
            if over.wait(rng.uniform(0.0, 1.5)):
                return
            what = rng.choice(("control plane", "step", "wrapper", "both"))
            print(f"kill the {what}")  # noqa: T201 - as above
            if what in ("control plane", "both"):
                doomed.kill()
            if what in ("step", "both"):
                kill(doomed.steps())
            if what == "wrapper":
                kill([process for process in doomed.attempts() if _is_wrapper(process)])
            if what in ("control plane", "both"):
                doomed.start()

    with doomed.client() as foedus:
        job = foedus.submit(small(foedus, f"random-{seed}", ROUNDS))
        disturbing = threading.Thread(target=disturb)
        disturbing.start()
        try:
            closed = job.wait(WAIT_S)
        finally:
            over.set()
            disturbing.join(WAIT_S)

        assert closed.phase is Phase.SUCCEEDED
        assert digest_of(doomed, closed) == undisturbed
        require_whole_story(job)


def _is_wrapper(process: psutil.Process) -> bool:
    try:
        return "workflows.wrapper" in process.cmdline()
    except psutil.Error:
        return False
