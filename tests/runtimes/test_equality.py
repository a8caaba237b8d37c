"""One model, whatever moves the bytes: every runtime, any number of workers, resumed or not."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from sharing.object_store import digest_of
from tests.runtimes.run_folders import (
    ENVIRONMENT,
    finished,
    inputs_after,
    job,
    lay,
    linear,
    outputs,
    own,
    run,
    start,
    told,
)
from tests.workflows.test_workers import is_running, wait_until
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


def test_four_workers_of_flower_make_the_model_of_one_native_worker(
    tmp_path: Path, undisturbed: Path
) -> None:
    root = lay(tmp_path / "run", job(runtime={"kind": "flower", "workers": 4}))

    assert run(root, "flower") == 0, (root / "federate.log").read_text()

    assert outputs(root)["model.safetensors"] == outputs(undisturbed)["model.safetensors"]
    for mine, reference in zip(finished(root), finished(undisturbed), strict=True):
        assert (mine.model, mine.loss, mine.metrics) == (
            reference.model,
            reference.loss,
            reference.metrics,
        )


def test_two_workers_that_resume_make_what_one_made_undisturbed(
    tmp_path: Path, undisturbed: Path
) -> None:
    spec = job(runtime={"kind": "native", "workers": 2})
    root = lay(tmp_path / "run", spec, inputs_after(undisturbed, 1))

    assert run(root) == 0, (root / "federate.log").read_text()

    assert outputs(root) == outputs(undisturbed)
    assert [event.round for event in finished(root)] == [2, 3]


def test_a_flower_step_stopped_or_killed_goes_on_from_its_last_round(tmp_path: Path) -> None:
    program = linear(tmp_path)
    spec = job(
        program=own(program),
        runtime={"kind": "flower", "workers": 1},
        evaluate={"select": "best", "where": "central"},
        rounds=60,
    )
    whole = lay(tmp_path / "whole", spec, program)
    assert run(whole, "flower") == 0, (whole / "federate.log").read_text()

    record: dict[str, bytes] = {}
    for part, ending in enumerate([signal.SIGTERM, signal.SIGKILL]):
        cut = lay(tmp_path / f"cut-{part}", spec, program | record)
        with start(cut, "flower") as process:
            wait_until(lambda: len(finished(cut)) >= 5, 60)  # noqa: B023 - waited for here
            os.kill(process.pid, ending)
            status = process.wait(30)
        assert status == (75 if ending is signal.SIGTERM else -signal.SIGKILL)
        assert finished(cut)[-1].round < 60
        record = inputs_after(cut, len(finished(cut)), record)
    resumed = lay(tmp_path / "resumed", spec, program | record)
    assert run(resumed, "flower") == 0, (resumed / "federate.log").read_text()

    assert outputs(resumed) == outputs(whole)


def workers_of(pid: int) -> list[int]:
    """Children of a process, whichever of its threads started them."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def test_killed_workers_do_not_show_in_the_result(tmp_path: Path) -> None:
    program = linear(tmp_path)
    spec = job(
        program=own(program),
        runtime={"kind": "native", "workers": 2},
        local={"epochs": 50},
        rounds=2,
    )
    quiet = lay(tmp_path / "quiet", spec, program)
    assert run(quiet) == 0, (quiet / "federate.log").read_text()

    root = lay(tmp_path / "run", spec, program)
    with start(root, "native") as process:
        wait_until(lambda: len(told(root)) >= 2, 60)  # a round has started
        workers = workers_of(process.pid)
        os.kill(workers[0], signal.SIGKILL)
        assert process.wait(120) == 0, (root / "federate.log").read_text()

    assert len(workers) == 2
    assert not any(is_running(pid) for pid in workers)
    assert outputs(root) == outputs(quiet)


EXCHANGES: dict[str, dict[str, Any]] = {
    "Poisson and bytes": {
        "cohort": {"size": 3, "selection": {"kind": "poisson"}},
        "codec": {"kind": "int8", "bucket": 64},
    },
    "power of choice and a mask": {
        "cohort": {"size": 2, "selection": {"kind": "power-of-choice", "candidates": 4}},
        "codec": {"kind": "random-mask", "fraction": 0.5},
    },
}


@pytest.mark.parametrize("fields", EXCHANGES.values(), ids=EXCHANGES)
def test_neither_selection_nor_codec_lets_runtime_workers_or_a_resumption_show(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    program = linear(tmp_path)

    def laid(name: str, kind: str, workers: int, inputs: Mapping[str, bytes]) -> Path:
        runtime = {"kind": kind, "workers": workers}
        spec = job(program=own(program), runtime=runtime, rounds=4, **fields)
        return lay(tmp_path / name, spec, program | inputs)

    one = laid("one", "native", 1, {})
    assert run(one) == 0, (one / "federate.log").read_text()
    two = laid("two", "flower", 2, {})
    resumed = laid("resumed", "native", 2, inputs_after(one, 2))
    with start(two, "flower") as first, start(resumed, "native") as second:
        assert (first.wait(120), second.wait(120)) == (0, 0)

    assert outputs(resumed) == outputs(one)
    assert outputs(two)["model.safetensors"] == outputs(one)["model.safetensors"]
    assert [event.model for event in finished(two)] == [event.model for event in finished(one)]
    update = {"w": (10, 64), "b": (10,)}
    codec = job(**fields).codec
    size = sum(codec.form(shape, np.dtype(np.float64)).size_bytes for shape in update.values())
    assert [event.bytes_up for event in finished(one)] == [
        event.sites * size for event in finished(one)
    ]


def test_a_run_starts_from_an_earlier_model(tmp_path: Path) -> None:
    program = linear(tmp_path)
    native = {"kind": "native", "workers": 1}
    first = lay(tmp_path / "first", job(program=own(program), runtime=native, rounds=1), program)
    assert run(first) == 0, (first / "federate.log").read_text()
    model = outputs(first)["model.safetensors"]
    spec = job(
        program=own(program),
        runtime=native,
        init={"kind": "model", "digest": digest_of(model)},
        rounds=1,
    )
    root = lay(tmp_path / "run", spec, program | {"init.safetensors": model})

    assert run(root) == 0, (root / "federate.log").read_text()

    (line,) = outputs(root)["transcripts.jsonl"].splitlines()
    assert msgspec.json.decode(line, type=RoundTranscript).previous_model == digest_of(model)
