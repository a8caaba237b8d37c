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

ROUNDS = 6
WAIT_S = 120.0
SEEDS = (1, 2)


@pytest.fixture(scope="module")
def undisturbed(server: RealServer) -> str:
    """Digest of the model of a run that was left alone."""
    with server.client() as foedus:
        job = foedus.submit(small("undisturbed", ROUNDS)).wait(WAIT_S)
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


def test_killing_the_control_plane_does_not_disturb_a_run(
    doomed: RealServer, undisturbed: str
) -> None:
    with doomed.client() as foedus:
        job = foedus.submit(small("killed-control-plane", ROUNDS))
        wait_for_round(job, 1)
        doomed.kill()
        num_steps = len(doomed.steps())
        doomed.start()

        closed = job.wait(WAIT_S)

        assert num_steps == 1
        assert closed.attempt == 1
        assert digest_of(doomed, closed) == undisturbed
        require_whole_story(job)


def test_killing_the_step_leads_to_the_same_model(doomed: RealServer, undisturbed: str) -> None:
    with doomed.client() as foedus:
        job = foedus.submit(small("killed-step", ROUNDS))
        wait_for_round(job, 2)
        killed = kill(doomed.steps())

        closed = job.wait(WAIT_S)

        assert killed == 1
        assert digest_of(doomed, closed) == undisturbed
        require_whole_story(job)


def test_killing_everything_leads_to_the_same_model(doomed: RealServer, undisturbed: str) -> None:
    with doomed.client() as foedus:
        job = foedus.submit(small("killed-everything", ROUNDS))
        wait_for_round(job, 3)
        before = [event for event, _ in zip(job.events(), range(5), strict=False)]
        doomed.kill()
        killed = kill(doomed.attempts())
        until(lambda: not doomed.attempts(), "the attempt to be gone")
        doomed.start()

        closed = job.wait(WAIT_S)

        assert killed >= 2
        assert digest_of(doomed, closed) == undisturbed
        assert require_whole_story(job)[:5] == before


@pytest.mark.parametrize("seed", SEEDS)
def test_killing_at_random_moments_leads_to_the_same_model(
    doomed: RealServer, undisturbed: str, seed: int
) -> None:
    rng = random.Random(seed)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    over = threading.Event()

    def disturb() -> None:
        for _ in range(3):
            if over.wait(rng.uniform(0.0, 3.0)):
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
        job = foedus.submit(small(f"random-{seed}", ROUNDS))
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
