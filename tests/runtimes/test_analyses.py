"""Analyses over real processes: exact, the same for any workers and runtime, resumed or not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sklearn.datasets import load_diabetes

from control_plane.capabilities import read_capabilities
from sharing.object_store import digest_of
from tests.runtimes.run_folders import (
    ENVIRONMENT,
    ROOT,
    finished,
    inputs_after,
    lay,
    run,
    told,
)
from workflows.analyses import AnyFinding
from workflows.analyses.quantile import QuantileFinding
from workflows.checkpoint import read_model
from workflows.events import SiteDropped
from workflows.job import JobSpec
from workflows.plan import plan_digest
from workflows.rules import check_job
from workflows.transcript import RoundTranscript, verify_chain

OUTPUTS = ("tally.safetensors", "result.json", "transcripts.jsonl", "spent.json")
SKEWED = {"kind": "dirichlet", "alpha": 0.2}
PROGRESS = {"kind": "quantile", "column": "y", "levels": [0.25, 0.5], "low": 0, "high": 400}


def analysis(query: dict[str, Any], dataset: str = "diabetes", **fields: Any) -> JobSpec:
    data = {"kind": "partitioned", "dataset": dataset, "sites": 5, **fields.pop("data", {})}
    document = {
        "name": "progress",
        "program": {"kind": "analysis", "query": query},
        "runtime": {"kind": "native", "workers": 1},
        "data": data,
        **fields,
    }
    return check_job(msgspec.convert(document, JobSpec), read_capabilities())


def outputs(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in OUTPUTS}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native run with one worker: the reference."""
    root = lay(tmp_path_factory.mktemp("native"), analysis(PROGRESS))
    assert run(root) == 0, (root / "federate.log").read_text()
    return root


def test_an_analysis_finds_what_is_there_and_leaves_a_record_that_verifies(
    undisturbed: Path,
) -> None:
    made, events = outputs(undisturbed), finished(undisturbed)
    lines = made["transcripts.jsonl"].splitlines()
    transcripts = [msgspec.json.decode(line, type=RoundTranscript) for line in lines]
    spec = analysis(PROGRESS)

    finding = msgspec.json.decode(made["result.json"], type=AnyFinding)

    assert isinstance(finding, QuantileFinding)
    assert (finding.sites, finding.examples) == ((5, 5, 5), 442)
    targets = load_diabetes().target
    for one in finding.levels:
        true = np.quantile(targets, one.level, method="inverted_cdf")
        assert one.value == pytest.approx(true, abs=400 / 64**3 / 2)
    assert verify_chain(transcripts, plan=plan_digest(spec, ENVIRONMENT)) == digest_of(lines[-1])
    assert transcripts[-1].model == digest_of(made["tally.safetensors"])
    assert {c.num_examples for t in transcripts for c in t.commitments} == {1}
    assert spec.program.query.finding(read_model(made["tally.safetensors"])) == finding  # type: ignore[union-attr]
    assert [(event.rounds, event.sites, event.loss) for event in events] == [(3, 5, None)] * 3
    assert not (undisturbed / "model.safetensors").exists()


def test_four_workers_of_flower_count_what_one_native_worker_does(
    tmp_path: Path, undisturbed: Path
) -> None:
    root = lay(tmp_path / "run", analysis(PROGRESS, runtime={"kind": "flower", "workers": 4}))

    assert run(root, "flower") == 0, (root / "federate.log").read_text()

    assert outputs(root)["tally.safetensors"] == outputs(undisturbed)["tally.safetensors"]
    assert outputs(root)["result.json"] == outputs(undisturbed)["result.json"]


def test_two_workers_that_resume_find_what_one_found_undisturbed(
    tmp_path: Path, undisturbed: Path
) -> None:
    spec = analysis(PROGRESS, runtime={"kind": "native", "workers": 2})
    root = lay(tmp_path / "run", spec, inputs_after(undisturbed, 1))

    assert run(root) == 0, (root / "federate.log").read_text()

    assert outputs(root) == outputs(undisturbed)
    assert [event.round for event in finished(root)] == [2, 3]


def test_a_site_below_the_minimum_does_not_answer_and_says_why(tmp_path: Path) -> None:
    count = {"kind": "count", "column": "y", "values": ["setosa"]}
    fields = {"evaluate": {"minimum_count": 25}, "data": {"sites": 4, "partitioner": SKEWED}}
    root = lay(tmp_path / "run", analysis(count, "iris", **fields))

    assert run(root) == 0, (root / "federate.log").read_text()

    dropped = [event for event in told(root) if isinstance(event, SiteDropped)]
    line = (root / "transcripts.jsonl").read_bytes().splitlines()[0]
    transcript = msgspec.json.decode(line, type=RoundTranscript)
    finding = msgspec.json.decode((root / "result.json").read_bytes(), type=AnyFinding)
    assert [event.cause.code for event in dropped] == ["too-few-examples"] * len(dropped)
    assert 0 < len(dropped) < 4
    assert [one.site for one in transcript.dropped] == sorted(event.site for event in dropped)
    assert finding.sites == (4 - len(dropped),)
    assert 25 * finding.sites[0] <= finding.examples < 150


def test_a_worker_that_answers_queries_holds_no_framework() -> None:
    code = (
        "import sys, workflows.worker, workflows.workbench\n"
        "found = {'torch', 'sklearn', 'scipy', 'pyarrow', 'flwr'} & set(sys.modules)\n"
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
