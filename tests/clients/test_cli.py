from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from onnx import TensorProto, helper

from clients.cli.output import printable, size
from clients.cli.platform import server_environment
from sharing.object_store import digest_of
from tests.clients import values
from tests.clients.cli_process import environment, foedus
from tests.clients.scripted_server import (
    Handler,
    Script,
    free_port,
    message,
    problem,
    reply,
    serving,
    stream,
    value,
)
from tests.clients.values import AT, JOB, closed, round_fields
from workflows.run import Phase

DOCUMENT = """\
name: digits
program: {kind: builtin, name: digits-mlp}
data: {kind: partitioned, dataset: digits}
rounds: 2
"""
HEAVY = ("torch", "flwr", "sklearn", "xgboost", "onnx", "onnxruntime", "ray", "matplotlib")
STORY = (
    message(1, "job.submitted", name="digits"),
    message(2, "round.finished", **round_fields(1)),
    message(3, "run.closed", phase="succeeded", cause=None),
)
DONE = closed(Phase.SUCCEEDED, model="model-1")


def at(script: Script) -> dict[str, str]:
    return {"FOEDUS_URL": script.url, "FOEDUS_TOKEN": "foedus_secret", "FOEDUS_PATIENCE_S": "1"}


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(DOCUMENT)
    return path


def test_help_takes_less_than_half_a_second_of_processor_time(tmp_path: Path) -> None:
    def used_s() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used_s()
    done = foedus("--help", home=tmp_path)

    assert done.returncode == 0
    assert "submit" in done.stdout
    assert used_s() - before < 0.5


def test_commands_never_import_a_framework(tmp_path: Path, document: Path) -> None:
    program = (
        "import sys\nfrom clients.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
        f"found = sorted(set(sys.modules) & set({HEAVY!r}))\n"
        "sys.exit(f'imported {found}' if found else code)"
    )
    with serving(value(JOB, 202), stream(*STORY), value(DONE)) as script:
        done = subprocess.run(
            [sys.executable, "-c", program, "submit", str(document), "--watch"],
            env=environment(tmp_path, **at(script)),
            capture_output=True,
            text=True,
            check=False,
        )

    assert (done.returncode, done.stderr) == (0, "")


def test_watching_in_a_pipe_writes_plain_lines(tmp_path: Path, document: Path) -> None:
    with serving(value(JOB, 202), stream(*STORY), value(DONE)) as script:
        done = foedus("submit", document, "--watch", home=tmp_path, env=at(script))

    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "round 1/2  sites 3  loss 0.5000  accuracy 0.9000  0.25 s",
        "succeeded",
        "model model-1",
        "  fetch it: foedus model pull model-1",
    ]


def test_watching_with_json_writes_the_job_its_events_and_the_job(
    tmp_path: Path, document: Path
) -> None:
    with serving(value(JOB, 202), stream(*STORY), value(DONE)) as script:
        done = foedus("submit", document, "--watch", "--json", home=tmp_path, env=at(script))

    first, *events, last = map(json.loads, done.stdout.splitlines())
    assert first["phase"] == "pending"
    assert [event["id"] for event in events] == [1, 2, 3]
    assert last["phase"] == "succeeded"


def test_watching_on_a_terminal_shows_a_panel(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    env = {"TERM": "xterm-256color", "COLUMNS": "100"}
    seen = b""

    with serving(value(JOB), stream(*STORY), value(DONE)) as script:
        child = subprocess.Popen(
            [sys.executable, "-m", "clients.cli", "watch", "job-1"],
            env=environment(tmp_path, **at(script), **env),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        while True:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # EIO: the other side is closed
                break
        os.close(ours)

        assert child.wait(30) == 0
    text = seen.decode()
    assert "round 1 of 2" in text
    assert "0.9000" in text
    assert "╭" in text


def test_a_job_that_failed_exits_with_1_and_says_why(tmp_path: Path) -> None:
    cause = {
        "code": "program-raised",
        "actor": "user",
        "retryable": False,
        "hint": "Read the traceback.",
        "detail": "ValueError: no",
        "site": "site-0001",
        "round": 3,
        "evidence": "Traceback\n  line 1\x1b[2J",
    }
    failed = {**msgspec.to_builtins(closed(Phase.FAILED)), "cause": cause}
    over = message(1, "run.closed", phase="failed", cause=cause)

    with serving(value(JOB), stream(over), value(failed)) as script:
        done = foedus("watch", "job-1", home=tmp_path, env=at(script))

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "failed: program-raised (site-0001, round 3)",
        "  ValueError: no",
        "  | Traceback",
        "  |   line 1\\x1b[2J",
        "  hint: Read the traceback.",
        "  more: foedus logs job-1",
    ]


def test_interrupting_a_watch_leaves_the_job_running_and_says_so(tmp_path: Path) -> None:
    watched = threading.Event()

    def hold(handler: Handler) -> None:
        watched.set()
        handler.connection.recv(1)  # returns when the client hangs up

    with serving(value(JOB), stream(STORY[0], then=hold)) as script:
        child = subprocess.Popen(
            [sys.executable, "-m", "clients.cli", "watch", "job-1"],
            env=environment(tmp_path, **at(script)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert watched.wait(30)
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=30)

    assert child.returncode == 130
    assert "job-1 goes on" in stderr
    assert "Traceback" not in stderr
    assert [asked.method for asked in script.asked] == ["GET", "GET"]


@pytest.mark.parametrize(
    ("status", "code"), [(400, 3), (404, 3), (409, 3), (422, 3), (401, 4), (403, 4), (500, 5)]
)
def test_a_refusal_names_field_and_hint_and_has_an_exit_code(
    tmp_path: Path, status: int, code: int
) -> None:
    refusal = problem(
        status, "job-unsupported", detail="no such strategy", hint="use fedavg", fields=["strategy"]
    )

    with serving(refusal) as script:
        done = foedus("jobs", home=tmp_path, env=at(script))

    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.splitlines()[:4] == [
        "refused: Job unsupported",
        "  no such strategy",
        "  field: strategy",
        "  hint: use fedavg",
    ]


def test_a_refusal_as_json_is_the_problem(tmp_path: Path) -> None:
    with serving(problem(404, "not-found", detail="gone")) as script:
        done = foedus("watch", "job-9", "--json", home=tmp_path, env=at(script))

    assert done.returncode == 3
    assert json.loads(done.stderr)["detail"] == "gone"


def test_a_server_that_is_not_there_is_5(tmp_path: Path) -> None:
    env = {
        "FOEDUS_URL": f"http://127.0.0.1:{free_port()}",
        "FOEDUS_TOKEN": "foedus_secret",
        "FOEDUS_PATIENCE_S": "0",
    }

    done = foedus("jobs", home=tmp_path, env=env)

    assert done.returncode == 5
    assert "foedus serve" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_token_one_is_told_to_log_in(tmp_path: Path) -> None:
    done = foedus("jobs", home=tmp_path)

    assert done.returncode == 4
    assert "foedus login" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "env", "expected"),
    [
        (("jobs", "--phase", "dancing"), {}, "succeeded"),
        (("jobs",), {"FOEDUS_TIMEOUT_S": "soon"}, "FOEDUS_TIMEOUT_S"),
        (("frobnicate",), {}, "No such command"),
        (("submit",), {}, "Missing argument"),
    ],
)
def test_wrong_usage_is_2(
    tmp_path: Path, arguments: tuple[str, ...], env: dict[str, str], expected: str
) -> None:
    done = foedus(*arguments, home=tmp_path, env={"FOEDUS_TOKEN": "foedus_secret", **env})

    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_document_with_a_mistake_is_refused_at_its_line(tmp_path: Path, document: Path) -> None:
    document.write_text(DOCUMENT + "strategi: {kind: fedavg}\n")

    done = foedus("submit", document, home=tmp_path, env={"FOEDUS_TOKEN": "foedus_secret"})

    assert done.returncode == 3
    assert "job.yaml:5: strategi" in done.stderr


def test_a_login_is_kept_and_used(tmp_path: Path) -> None:
    user = {
        "id": "user-1",
        "name": "ada",
        "organisation": "organisation-1",
        "roles": ["developer"],
        "created_at": AT,
    }
    with serving(value(user), value({"items": [JOB], "next": None})) as script:
        login = foedus("login", "--url", script.url, home=tmp_path, stdin="foedus_secret\n")
        jobs = foedus("jobs", home=tmp_path)

    assert login.returncode == 0
    assert "ada" in login.stdout
    assert "foedus_secret" not in login.stdout + login.stderr
    assert jobs.stdout.split("\t")[:4] == ["job-1", "digits", "pending", "0/2"]
    kept = tmp_path / ".config" / "foedus" / "credentials.json"
    assert json.loads(kept.read_text())["token"] == "foedus_secret"


def test_a_token_that_is_refused_is_not_kept(tmp_path: Path) -> None:
    with serving(problem(401, "not-authentic")) as script:
        login = foedus("login", "--url", script.url, home=tmp_path, stdin="foedus_wrong\n")

    assert login.returncode == 4
    assert not (tmp_path / ".config").exists()


def test_jobs_as_json_is_one_document_over_all_pages(tmp_path: Path) -> None:
    pages = (value({"items": [JOB], "next": "abc="}), value({"items": [JOB], "next": None}))

    with serving(*pages) as script:
        done = foedus("jobs", "--json", home=tmp_path, env=at(script))

    assert [job["id"] for job in json.loads(done.stdout)] == ["job-1", "job-1"]
    assert "cursor=abc%3D" in script.asked[1].path


def test_logs_cannot_drive_the_terminal(tmp_path: Path) -> None:
    with serving(value(JOB), reply(200, "one\x1b]0;owned\x07\ntwö\n".encode())) as script:
        done = foedus("logs", "job-1", "--step", "federate", home=tmp_path, env=at(script))

    assert done.stdout == "one\\x1b]0;owned\\x07\ntwö\n"
    assert script.asked[1].path == "/v1/jobs/job-1/logs?step=federate"


def test_cancelling_patches_what_is_desired(tmp_path: Path) -> None:
    with serving(value(JOB), value(JOB)) as script:
        done = foedus("cancel", "job-1", home=tmp_path, env=at(script))

    assert "is being cancelled" in done.stdout
    assert (script.asked[1].method, json.loads(script.asked[1].body)) == (
        "PATCH",
        {"desired": "cancelled"},
    )


def test_a_published_model_is_fetched_once_and_answers_with_its_classes_names(
    tmp_path: Path,
) -> None:
    content = identity_onnx(columns=2)
    published = values.model(digest_of(content), len(content))
    named = msgspec.structs.replace(published, classes=("benign", "malignant"))
    (tmp_path / "two.csv").write_text("a,b\n0.9,0.1\n0.2,0.8\n")

    answers = (value(named), value(named), reply(200, content), value(named), value(named))
    with serving(*answers) as script:
        first = foedus("model", "predict", "model-1", "two.csv", home=tmp_path, env=at(script))
        again = foedus(
            "model", "predict", "model-1", "two.csv", "--json", home=tmp_path, env=at(script)
        )

    assert (first.stdout, first.stderr) == ("benign\nmalignant\n", "")
    assert json.loads(again.stdout)["labels"] == ["benign", "malignant"]
    assert script.answers == []


def test_examples_that_do_not_fit_a_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(identity_onnx(columns=2))
    (tmp_path / "three.csv").write_text("1,2,3\n")
    (tmp_path / "text.onnx").write_text("no model")

    misfit = foedus("model", "predict", "model.onnx", "three.csv", home=tmp_path)
    broken = foedus("model", "predict", "text.onnx", "three.csv", home=tmp_path)

    assert (misfit.returncode, broken.returncode) == (3, 3)
    assert "the model takes (2)" in misfit.stderr
    assert "text.onnx" in broken.stderr


def identity_onnx(columns: int) -> bytes:
    """A model that gives back what it gets."""
    shape = ["batch", columns]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input"], ["logits"])],
        "identity",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
    )
    opset = helper.make_opsetid("", 18)
    made = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return bytes(made.SerializeToString())


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    many = value({"items": [JOB] * 2000, "next": None})
    with serving(many) as script:
        child = subprocess.Popen(
            [sys.executable, "-m", "clients.cli", "jobs", "--limit", "2000"],
            env=environment(tmp_path, **at(script)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        stderr = child.stderr.read()
        child.stderr.close()
        child.wait(30)

    assert stderr == ""


def test_the_server_is_started_without_the_clients_token() -> None:
    given = {"FOEDUS_DATA": Path("/data"), "FOEDUS_HOST": None, "FOEDUS_PORT": 0}

    found = server_environment({"HOME": "/root", "FOEDUS_TOKEN": "foedus_secret"}, given)

    assert found == {"HOME": "/root", "FOEDUS_DATA": "/data", "FOEDUS_PORT": "0"}


def test_text_of_others_is_shown_without_control_characters() -> None:
    assert printable("a\tb\nc\r\nd") == "a\tb\nc\nd"
    assert printable("a\rb\x1b[2J\x9b\u202ec") == "a\\rb\\x1b[2J\\x9b\\u202ec"


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (1 << 50, "1024.0 TiB"),
    ],
)
def test_sizes_are_told_in_the_unit_that_suits(num_bytes: int, expected: str) -> None:
    assert size(num_bytes) == expected
