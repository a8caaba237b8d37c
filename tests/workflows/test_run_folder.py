from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sharing.object_store import digest_of
from tests.runtimes.run_folders import job, lay, told
from workflows.causes import Cause, CauseCode
from workflows.events import RoundStarted, StepFailed, StepStarted
from workflows.run_folder import StepError, StepFolder, run_step
from workflows.tasks import SiteFailure


@pytest.fixture(autouse=True)
def _handler_of_sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(root: Path, body: Callable[[StepFolder], None], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("workflows.run_folder.hide_memory", lambda: None)  # it is for good
    return run_step("federate", lay(root, job()), body)


def test_a_step_that_returns_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = run(tmp_path / "run", lambda folder: folder.put("out", b"x"), monkeypatch)

    assert status == 0
    assert [type(event) for event in told(tmp_path / "run")] == [StepStarted]
    assert (tmp_path / "run" / "out").read_bytes() == b"x"


CAUSE = Cause(code=CauseCode.COHORT_TOO_SMALL, detail="few")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StepError(CAUSE), CauseCode.COHORT_TOO_SMALL),
        (SiteFailure(CAUSE), CauseCode.COHORT_TOO_SMALL),
        (KeyError("x"), CauseCode.PLATFORM_BUG),
        (PermissionError("x"), CauseCode.PLATFORM_BUG),
    ],
)
def test_a_step_that_fails_says_why_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: CauseCode
) -> None:
    def body(folder: StepFolder) -> None:
        raise error

    assert run(tmp_path / "run", body, monkeypatch) == 1
    last = told(tmp_path / "run")[-1]
    assert isinstance(last, StepFailed)
    assert last.cause.code is code


def full() -> None:
    raise OSError(errno.ENOSPC, "no space")


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("ending", "code"), [(full, 74), (stop, 75)], ids=["a full disk", "SIGTERM"]
)
def test_what_may_pass_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: Callable[[], None], code: int
) -> None:
    def body(folder: StepFolder) -> None:
        ending()
        folder.put("out", b"x")

    assert run(tmp_path / "run", body, monkeypatch) == code
    assert [type(event) for event in told(tmp_path / "run")] == [StepStarted]
    assert not (tmp_path / "run" / "out").exists()


def test_events_are_numbered_on(tmp_path: Path) -> None:
    root = lay(tmp_path / "run", job())
    first = StepFolder(root, "federate", clock=lambda: 3.5)
    first.tell(StepStarted)
    first.tell(RoundStarted, round=1, cohort=2)

    event = StepFolder(root, "federate").tell(RoundStarted, round=2, cohort=2)

    assert event.number == 3
    assert [one.number for one in told(root)] == [1, 2, 3]
    assert told(root)[0].at == 3.5


def test_an_object_is_there_under_its_digest(tmp_path: Path) -> None:
    folder = StepFolder(lay(tmp_path / "run", job()), "federate")

    digest = folder.keep(b"content")

    assert digest == digest_of(b"content")
    assert folder.files.object(digest).read_bytes() == b"content"


def test_only_inputs_of_the_plan_count(tmp_path: Path) -> None:
    folder = StepFolder(lay(tmp_path / "run", job(), {"bundle.tar": b"x"}), "federate")
    (folder.files.inputs / "checkpoint.safetensors").write_bytes(b"stale")

    assert folder.input("checkpoint.safetensors") is None
    given = folder.input("bundle.tar")
    assert given
    assert given.read_bytes() == b"x"
