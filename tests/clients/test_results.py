"""What an analysis found, through the SDK and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from clients.errors import AnswerNotUnderstood, DownloadCorrupt, ResultMissing
from clients.resources import Artifact, Page
from sharing.object_store import digest_of
from tests.clients.cli_process import foedus
from tests.clients.scripted_server import Answer, message, reply, serving, stream, value
from tests.clients.values import AT, JOB, SPEC, client, closed
from workflows.analyses.count import Count, CountFinding
from workflows.job import Analysis
from workflows.run import Phase

FOUND = CountFinding(sites=(5,), examples=9, values=("yes", 2), counts=(4, 3), others=2)
ASKED = msgspec.structs.replace(
    SPEC, program=Analysis(query=Count(column="y", values=("yes", 2))), rounds=1
)


def listed(content: bytes, name: str = "result.json") -> Answer:
    made = Artifact(
        name=name,
        digest=digest_of(content),
        size_bytes=len(content),
        media_type="application/json",
        step="federate",
        at=AT,
    )
    return value(Page(items=(made,)))


def test_a_result_comes_typed_and_verified() -> None:
    content = msgspec.json.encode(FOUND)
    answers = (value(JOB), listed(content), reply(200, content))

    with serving(*answers) as script, client(script.url) as sdk:
        assert sdk.job("job-1").result() == FOUND

    assert script.asked[2].path == "/v1/jobs/job-1/artifacts/result.json"


def test_a_job_that_trains_has_no_result() -> None:
    answers = (value(JOB), listed(b"weights", "model.safetensors"))

    with serving(*answers) as script, client(script.url) as sdk, pytest.raises(ResultMissing):
        sdk.job("job-1").result()


def test_a_result_that_is_none_or_another_is_not_taken() -> None:
    other = (value(JOB), listed(b"{}"), reply(200, b"[]"), reply(200, b"[]"))
    with serving(*other) as script, client(script.url) as sdk, pytest.raises(DownloadCorrupt):
        sdk.job("job-1").result()

    none = (value(JOB), listed(b"{}"), reply(200, b"{}"))
    with serving(*none) as script, client(script.url) as sdk, pytest.raises(AnswerNotUnderstood):
        sdk.job("job-1").result()


@pytest.mark.parametrize("as_json", [False, True], ids=["lines", "json"])
def test_the_command_line_shows_a_result(tmp_path: Path, as_json: bool) -> None:
    content = msgspec.json.encode(FOUND)
    answers = (value(JOB), listed(content), reply(200, content))
    arguments = ("result", "job-1", "--json") if as_json else ("result", "job-1")

    with serving(*answers) as script:
        env = {"FOEDUS_URL": script.url, "FOEDUS_TOKEN": "foedus_secret"}
        done = foedus(*arguments, home=tmp_path, env=env)

    assert (done.returncode, done.stderr) == (0, "")
    if as_json:
        assert json.loads(done.stdout)["counts"] == [4, 3]
    else:
        assert done.stdout.splitlines() == ["yes\t4", "2\t3", "(others)\t2"]


def test_whoever_watches_an_analysis_is_told_where_its_result_is(tmp_path: Path) -> None:
    over = message(1, "run.closed", phase="succeeded", cause=None)
    done_job = closed(Phase.SUCCEEDED, spec=ASKED)

    with serving(value(JOB), stream(over), value(done_job)) as script:
        env = {"FOEDUS_URL": script.url, "FOEDUS_TOKEN": "foedus_secret"}
        done = foedus("watch", "job-1", home=tmp_path, env=env)

    assert done.stdout.splitlines()[-1] == "  what it found: foedus result job-1"
