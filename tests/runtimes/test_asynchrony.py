"""Runs whose server steps while sites are training: the same model whatever moves the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

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
)
from workflows.plan import plan_digest
from workflows.transcript import RoundTranscript, verify_chain

JOBS: dict[str, dict[str, Any]] = {
    "FedBuff and bytes": {
        "strategy": {"kind": "fedbuff", "buffer": 3},
        "codec": {"kind": "int8", "bucket": 64},
        "cohort": {"size": 4, "arrivals": {"kind": "virtual", "sigma": 1.5, "max_staleness": 2}},
        "rounds": 6,
    },
    "FedAsync": {
        "strategy": {"kind": "fedasync", "rho": 0, "staleness": {"kind": "hinge", "a": 1, "b": 2}},
        "cohort": {"size": 3, "arrivals": {"kind": "virtual", "sigma": 1.5, "max_staleness": 4}},
        "rounds": 10,
    },
}


@pytest.mark.parametrize("fields", JOBS.values(), ids=JOBS)
def test_neither_runtime_nor_workers_nor_a_resumption_show(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    program = linear(tmp_path)

    def spec(kind: str, workers: int) -> Any:
        runtime = {"kind": kind, "workers": workers}
        return job(program=own(program), runtime=runtime, **fields)

    def laid(name: str, kind: str, workers: int, inputs: Mapping[str, bytes]) -> Path:
        return lay(tmp_path / name, spec(kind, workers), program | inputs)

    one = laid("one", "native", 1, {})
    assert run(one) == 0, (one / "federate.log").read_text()
    four = laid("four", "flower", 4, {})
    two = laid("two", "native", 2, inputs_after(one, fields["rounds"] // 2))
    with start(four, "flower") as first, start(two, "native") as second:
        assert (first.wait(120), second.wait(120)) == (0, 0)

    assert outputs(two) == outputs(one)
    assert outputs(four)["model.safetensors"] == outputs(one)["model.safetensors"]
    assert [event.model for event in finished(four)] == [event.model for event in finished(one)]
    lines = outputs(one)["transcripts.jsonl"].splitlines()
    transcripts = [msgspec.json.decode(line, type=RoundTranscript) for line in lines]
    verify_chain(transcripts, plan=plan_digest(spec("native", 1), ENVIRONMENT))
    assert any(min(one.asked or (9,)) < one.round for one in transcripts)
    assert finished(one)[-1].metrics["accuracy"] > 0.5
