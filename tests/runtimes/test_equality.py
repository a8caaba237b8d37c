"""One model, whatever moves the bytes: every runtime, any number of workers, resumed or not."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec
import pytest

from sharing.object_store import digest_of
from tests.runtimes.run_folders import (
    ENVIRONMENT,
    finished,
    inputs_after,
    job,
    lay,
    outputs,
    run,
    start,
    told,
)
from tests.workflows.test_workers import is_running, wait_until
from workflows.checkpoint import read_checkpoint
from workflows.plan import plan_digest
from workflows.transcript import RoundTranscript, verify_chain


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native run with one worker: the reference."""
    root = lay(tmp_path_factory.mktemp("native"), job(runtime={"kind": "native", "workers": 1}))
    assert run(root) == 0, (root / "federate.log").read_text()
    return root


def test_a_run_leaves_a_record_that_verifies(undisturbed: Path) -> None:
    made, events = outputs(undisturbed), finished(undisturbed)
    lines = made["transcripts.jsonl"].splitlines()
    transcripts = [msgspec.json.decode(line, type=RoundTranscript) for line in lines]
    spec = job(runtime={"kind": "native", "workers": 1})

    head = verify_chain(transcripts, plan=plan_digest(spec, ENVIRONMENT))

    assert [event.round for event in events] == [1, 2, 3]
    assert head == events[-1].transcript == digest_of(lines[-1])
    assert transcripts[-1].model == events[-1].model == digest_of(made["model.safetensors"])
    assert [event.number for event in told(undisturbed)] == list(range(1, 8))
    assert events[-1].metrics["accuracy"] > 0.5
    assert made["spent.json"] == b"[]\n"
    for event in events:
        for digest in (event.checkpoint, event.transcript):
            content = (undisturbed / "objects" / digest.removeprefix("sha256:")).read_bytes()
            assert digest_of(content) == digest


@pytest.mark.parametrize(("kind", "workers"), [("native", 4), ("flower", 1), ("flower", 2)])
def test_workers_and_runtimes_do_not_show_in_the_model(
    tmp_path: Path, undisturbed: Path, kind: str, workers: int
) -> None:
    root = lay(tmp_path / "run", job(runtime={"kind": kind, "workers": workers}))

    assert run(root, kind) == 0, (root / "federate.log").read_text()

    assert outputs(root)["model.safetensors"] == outputs(undisturbed)["model.safetensors"]
    for mine, reference in zip(finished(root), finished(undisturbed), strict=True):
        assert (mine.model, mine.loss, mine.metrics) == (
            reference.model,
            reference.loss,
            reference.metrics,
        )
    if kind == "native":
        assert outputs(root) == outputs(undisturbed)


@pytest.mark.parametrize("on_record", [1, 2, 3])
def test_a_resumed_run_is_the_undisturbed_one(
    tmp_path: Path, undisturbed: Path, on_record: int
) -> None:
    spec = job(runtime={"kind": "native", "workers": 2})
    root = lay(tmp_path / "run", spec, inputs_after(undisturbed, on_record))

    assert run(root) == 0, (root / "federate.log").read_text()

    assert outputs(root) == outputs(undisturbed)
    assert [e.round for e in finished(root)] == [1, 2, 3][on_record:]


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_step_ended_at_any_moment_goes_on_from_the_last_round(
    tmp_path: Path, ending: signal.Signals
) -> None:
    spec = job(
        runtime={"kind": "flower", "workers": 2},
        evaluate={"select": "best", "where": "central"},
        rounds=40,
    )
    whole = lay(tmp_path / "whole", spec)
    assert run(whole, "flower") == 0, (whole / "federate.log").read_text()

    cut = lay(tmp_path / "cut", spec)
    with start(cut, "flower") as process:
        wait_until(lambda: (cut / "federate.events.jsonl").exists(), 60)
        wait_until(lambda: len(finished(cut)) >= 4, 60)
        os.kill(process.pid, ending)
        status = process.wait(30)
    assert status == (75 if ending is signal.SIGTERM else -signal.SIGKILL)
    assert 4 <= len(finished(cut)) < 40
    resumed = lay(tmp_path / "resumed", spec, inputs_after(cut, len(finished(cut))))
    assert run(resumed, "flower") == 0, (resumed / "federate.log").read_text()

    assert outputs(resumed) == outputs(whole)


def test_killed_workers_do_not_show_in_the_model(tmp_path: Path) -> None:
    spec = job(
        runtime={"kind": "native", "workers": 2},
        local={"epochs": 20, "batch_size": 8},
        rounds=2,
    )
    quiet = lay(tmp_path / "quiet", spec)
    assert run(quiet) == 0, (quiet / "federate.log").read_text()

    root = lay(tmp_path / "run", spec)
    with start(root, "native") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(lambda: (root / "federate.events.jsonl").exists(), 60)
        wait_until(lambda: len(told(root)) >= 2, 60)
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        workers = [int(pid) for t in tasks for pid in (t / "children").read_text().split()]
        assert len(workers) == 2, children
        os.kill(workers[0], signal.SIGKILL)
        assert process.wait(120) == 0, (root / "federate.log").read_text()

    assert not any(is_running(pid) for pid in workers)
    assert outputs(root) == outputs(quiet)


def test_the_best_model_is_kept_over_rounds_and_attempts(tmp_path: Path) -> None:
    spec = job(
        runtime={"kind": "native", "workers": 1},
        local={"epochs": 1, "optimizer": {"kind": "sgd", "lr": 0.5}},
        strategy={"kind": "fedavg", "eta": 3.0},
        evaluate={"select": "best", "where": "central"},
        rounds=8,
    )
    root = lay(tmp_path / "run", spec)
    assert run(root) == 0, (root / "federate.log").read_text()
    events = finished(root)

    best = max(events, key=lambda e: (e.metrics["accuracy"], -e.round))

    assert best.round < 8, "choose a seed for which the last round is not the best"
    assert digest_of(outputs(root)["model.safetensors"]) == best.model
    last = (root / "objects" / events[-1].checkpoint.removeprefix("sha256:")).read_bytes()
    kept = read_checkpoint(last).best
    assert kept
    assert kept.round == best.round
    resumed = lay(tmp_path / "resumed", spec, inputs_after(root, 7))
    assert run(resumed) == 0
    assert outputs(resumed) == outputs(root)


def test_a_run_starts_from_an_earlier_model(tmp_path: Path, undisturbed: Path) -> None:
    model = outputs(undisturbed)["model.safetensors"]
    spec = job(
        runtime={"kind": "native", "workers": 1},
        init={"kind": "model", "digest": digest_of(model)},
        rounds=1,
    )
    root = lay(tmp_path / "run", spec, {"init.safetensors": model})

    assert run(root) == 0, (root / "federate.log").read_text()

    (event,) = finished(root)
    content = (root / "objects" / event.transcript.removeprefix("sha256:")).read_bytes()
    first = msgspec.json.decode(content, type=RoundTranscript)
    assert first.previous_model == digest_of(model)
