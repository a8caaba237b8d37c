"""The way of an AI developer through the command line and the SDK, against the product's server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

from clients.errors import JobCancelled, Refused
from tests.clients.cli_process import foedus
from tests.e2e.jobs import small
from tests.e2e.real_server import RealServer, until
from workflows.run import Phase

WAIT_S = 120.0
JOB = """\
name: small-digits
program: {kind: builtin, name: digits-mlp}
runtime: {kind: flower, workers: 1}
data: {kind: partitioned, dataset: mine.csv, label: digit, sites: 3}
local: {epochs: 3, batch_size: 16, optimizer: {kind: sgd, lr: 0.1}}
rounds: 3
output: {onnx: []}
"""


ANALYSIS = """\
name: a-pixel
program:
  kind: analysis
  query: {kind: mean, columns: [{column: pixel_20, low: 0, high: 16}]}
runtime: {kind: native}
data: {kind: partitioned, dataset: mine.csv, label: digit, sites: 3}
"""


def write_job(folder: Path, text: str = JOB) -> None:
    """A job, and beside it the data of one's own that it names."""
    digits = load_digits()
    header = ",".join([*(f"pixel_{k}" for k in range(64)), "digit"])
    rows = zip(digits.data[:300], digits.target[:300], strict=True)
    lines = [",".join(map(str, [*pixels, label])) for pixels, label in rows]
    (folder / "mine.csv").write_text("\n".join([header, *lines]) + "\n")
    (folder / "job.yaml").write_text(text)


def test_from_a_document_and_data_of_ones_own_to_a_model(home: Path, server: RealServer) -> None:
    write_job(home)

    watched = foedus("submit", "job.yaml", "--watch", "--json", home=home)
    *_, last = map(json.loads, watched.stdout.splitlines())
    model = last["model"]
    known = foedus("dataset", "list", "--json", home=home)
    listed = foedus("model", "list", "--json", home=home)
    pulled = foedus("model", "pull", model, "--variant", "safetensors", home=home)
    no_onnx = foedus("model", "pull", model, home=home)

    assert (watched.returncode, watched.stderr) == (0, "")
    assert last["phase"] == "succeeded"
    facts = {dataset["name"]: dataset["facts"] for dataset in json.loads(known.stdout)}["mine"]
    assert (facts["num_examples"], facts["num_classes"]) == (300, 10)
    assert model in [published["id"] for published in json.loads(listed.stdout)]
    assert pulled.returncode == 0
    assert len(load_file(home / "small-digits.safetensors")) == 4
    assert no_onnx.returncode == 3
    assert "it has safetensors" in no_onnx.stderr
    with server.client() as client:
        job = client.job(last["id"])
        assert [done.number for done in job.rounds(timeout_s=WAIT_S)] == [1, 2, 3]
        assert all("accuracy" in done.metrics for done in job.rounds(timeout_s=WAIT_S))
        transcripts = {made.name: made for made in job.artifacts()}["transcripts.jsonl"]
        lines = job.pull_artifact(transcripts, home / "t.jsonl").read_text().splitlines()
        assert len(lines) == 3
        assert "federate" in job.logs()


def test_from_a_short_document_to_the_answer_of_a_query(home: Path, server: RealServer) -> None:
    write_job(home, ANALYSIS)

    watched = foedus("submit", "job.yaml", "--watch", home=home)
    *_, pointer = watched.stdout.splitlines()
    told = foedus(*pointer.partition("foedus ")[2].split(), "--json", home=home)
    misspelt = ANALYSIS.replace("pixel_20", "pixel_2O")
    write_job(home, misspelt)
    refused = foedus("submit", "job.yaml", home=home)

    assert (watched.returncode, watched.stderr) == (0, "")
    found = json.loads(told.stdout)
    [pixel] = found["columns"]
    pixels = load_digits().data[:300, 20]
    assert (found["sites"], found["examples"]) == ([3], 300)
    assert pixel["mean"] == pytest.approx(pixels.mean(), abs=1e-11)
    assert pixel["variance"] == pytest.approx(pixels.var(), abs=1e-10)
    with server.client() as client:
        [job] = client.jobs(name="a-pixel")
        handle = client.job(job.id)
        assert (job.model, job.rounds) == (None, 1)
        assert handle.result().examples == 300
        assert sorted(made.name for made in handle.artifacts()) == [
            "result.json",
            "spent.json",
            "tally.safetensors",
            "transcripts.jsonl",
        ]
    assert refused.returncode == 3
    assert "field: program.query.columns[0].column" in refused.stderr
    assert "hint: did you mean `pixel_2`" in refused.stderr


def test_data_with_text_among_its_numbers_is_refused_by_row_and_column(home: Path) -> None:
    (home / "mine.csv").write_text("a,b,y\n1,2,0\n3,oops,1\n")

    refused = foedus("dataset", "push", "mine.csv", home=home)

    assert refused.returncode == 3
    assert "row 2" in refused.stderr
    assert "column `b`" in refused.stderr


def test_a_dry_run_starts_nothing(home: Path, server: RealServer) -> None:
    write_job(home, JOB.replace("small-digits", "never"))

    tried = foedus("submit", "job.yaml", "--dry-run", "--json", home=home)

    assert tried.returncode == 0
    assert json.loads(tried.stdout)["parameters"] > 0
    with server.client() as client:
        assert list(client.jobs(name="never")) == []


def test_cancelling_a_running_job_ends_it_and_its_processes(server: RealServer) -> None:
    with server.client() as client:
        job = client.submit(small(client, "cancelled", rounds=10_000))
        next(iter(job.rounds(timeout_s=WAIT_S)))

        job.cancel()

        with pytest.raises(JobCancelled):
            job.wait(WAIT_S)
        assert job.last.phase is Phase.CANCELLED
        assert job.last.round >= 1
        until(lambda: not server.attempts(), "its processes to be gone")


def test_a_job_that_contradicts_itself_is_refused_by_its_fields(
    home: Path, server: RealServer
) -> None:
    write_job(home, JOB + "cohort: {size: 4}\n")

    refused = foedus("submit", "job.yaml", home=home)

    assert refused.returncode == 3
    assert "field: cohort.size" in refused.stderr
    assert "hint: " in refused.stderr
    with server.client() as client, pytest.raises(Refused):
        client.submit(home / "job.yaml")


def test_submitting_twice_under_one_key_submits_once(server: RealServer) -> None:
    with server.client() as client:
        first = client.submit(
            small(client, "once", rounds=10_000), idempotency_key="one-and-the-same"
        )
        second = client.submit(
            small(client, "once", rounds=10_000), idempotency_key="one-and-the-same"
        )

        assert first.id == second.id
        assert [job.id for job in client.jobs(name="once")] == [first.id]
        first.cancel()
        with pytest.raises(JobCancelled):
            first.wait(WAIT_S)
