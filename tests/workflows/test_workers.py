from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.workflows.misbehaving_worker import Act, Load, Told
from workflows.causes import CauseCode
from workflows.job import Limits
from workflows.tasks import Done, Failed, Reply, SiteFailure
from workflows.workers import WorkerPool

ENTRY = ("tests.workflows.misbehaving_worker",)


def make_pool(folder: Path, num_workers: int = 1, **limits: float) -> WorkerPool[Act]:
    with (folder / "log").open("ab") as log:
        return WorkerPool(
            num_workers=num_workers,
            limits=Limits(**limits),  # type: ignore[arg-type]
            folder=folder / "scratch",
            entry=ENTRY,
            answers=Told | Done | Failed,
            log=os.dup(log.fileno()),
        )


def wait_until(holds: Callable[[], bool], within_s: float = 20.0) -> None:
    ends = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < ends, "it never came about"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[WorkerPool[Act]]:
    with make_pool(tmp_path) as pool:
        yield pool


def told(reply: Reply | SiteFailure) -> str:
    assert isinstance(reply, Reply)
    return str(reply.answer.text)


def failure(pool: WorkerPool[Act], task: Act) -> SiteFailure:
    with pytest.raises(SiteFailure) as caught:
        pool.call(task).result(60)
    return caught.value


def test_arrays_come_back_as_they_were_sent(pool: WorkerPool[Act]) -> None:
    sent = pool.call(Act(what="sum"), [b"ab", memoryview(b"cde")]).result(60)
    made = pool.call(Act(what="arrays", number=5)).result(60)

    assert sent.answer.text == "5"
    np.testing.assert_array_equal(made.arrays["x"], np.arange(5, dtype=np.float32))


def test_a_model_is_mapped_from_its_file_and_the_one_before_is_deleted(
    pool: WorkerPool[Act],
) -> None:
    first = {"a": np.ones((3, 5), np.float32), "empty": np.zeros((0, 2)), "b": np.array(2.0)}
    second = {"a": np.full(3, 2.0)}

    ref = pool.broadcast(first)
    assert told(pool.call(Act(what="model", model=ref)).result(60)) == "17.0"
    assert pool.broadcast(first) is ref
    newer = pool.broadcast(second)

    assert told(pool.call(Act(what="model", model=newer)).result(60)) == "6.0"
    assert not Path(ref.path).exists()


def test_answers_come_as_they_are_ready_and_all_of_them(tmp_path: Path) -> None:
    tasks = [(Act(what="sleep", number=1.0, text="slow"), ())]
    tasks += [(Act(what="echo", text=str(i)), ()) for i in range(20)]

    with make_pool(tmp_path, num_workers=2) as pool:
        texts = [told(reply) for _, reply in pool.as_completed(tasks)]

    assert sorted(texts) == sorted(["slow", *map(str, range(20))])
    assert texts.index("slow") > 10


def test_every_worker_runs_a_standing_task_and_so_does_its_replacement(tmp_path: Path) -> None:
    with make_pool(tmp_path, num_workers=2) as pool:
        pool.broadcast_task(Load(text="program"))
        replies = pool.broadcast_task(Load(text="data"))
        assert len({reply.answer.pid for reply in replies}) == 2

        for pid in pool.pids:
            os.kill(pid, signal.SIGKILL)
        after = [reply for _, reply in pool.as_completed([(Act(what="loaded"), ())] * 4)]

    assert {told(reply) for reply in after} == {"program,data"}


@pytest.mark.parametrize(
    ("what", "number", "code", "says"),
    [
        ("exit", 3, CauseCode.PROGRAM_DIED, "exit status 3"),
        ("segfault", 0, CauseCode.PROGRAM_DIED, "signal 11"),
        ("leave", 0, CauseCode.PROGRAM_DIED, "sys.exit(3)"),
        ("arrays", 1 << 19, CauseCode.PROGRAM_OUTPUT_TOO_LARGE, "limits.output_mb = 1"),
        ("raise", 0, CauseCode.PLATFORM_BUG, "RuntimeError"),
        ("linger", 0, CauseCode.PROGRAM_DIED, "exit status 7"),
        ("answer-other", 0, CauseCode.PROGRAM_DIED, "out of turn"),
        ("be-killed", 0, CauseCode.PROGRAM_DIED, "signal 9"),
    ],
)
def test_a_task_that_fails_is_lost_alone(
    tmp_path: Path, what: str, number: float, code: CauseCode, says: str
) -> None:
    with make_pool(tmp_path, output_mb=1) as pool:
        pool.broadcast_task(Load(text="program"))
        cause = failure(pool, Act(what=what, number=number)).cause

        assert cause.code is code
        assert says in cause.detail
        assert told(pool.call(Act(what="loaded")).result(60)) == "program"


def test_a_refused_allocation_is_out_of_memory(pool: WorkerPool[Act]) -> None:
    cause = failure(pool, Act(what="raise", text="memory")).cause

    assert cause.code is CauseCode.PROGRAM_OUT_OF_MEMORY


def test_who_takes_too_long_is_ended_and_replaced(tmp_path: Path) -> None:
    with make_pool(tmp_path, train_s=0.3) as pool:
        pool.broadcast_task(Load(text="program"))
        before = pool.pids
        cause = failure(pool, Act(what="sleep", number=60)).cause

        assert cause.code is CauseCode.PROGRAM_HUNG
        assert "limits.train_s = 0.3 s" in cause.detail
        assert told(pool.call(Act(what="loaded")).result(60)) == "program"
        assert pool.pids != before


def test_who_takes_too_much_memory_is_ended_and_replaced(tmp_path: Path) -> None:
    with make_pool(tmp_path, memory_mb=300) as pool:
        cause = failure(pool, Act(what="hog")).cause

        assert cause.code is CauseCode.PROGRAM_OUT_OF_MEMORY
        assert "limits.memory_mb = 300" in cause.detail
        assert told(pool.call(Act(what="echo", text="on")).result(60)) == "on"


def test_memory_of_what_any_of_its_threads_started_counts(tmp_path: Path) -> None:
    with make_pool(tmp_path, memory_mb=600) as pool:
        cause = failure(pool, Act(what="hog-beside")).cause

        assert cause.code is CauseCode.PROGRAM_OUT_OF_MEMORY


def test_a_fork_bomb_is_ended_with_all_it_started(tmp_path: Path) -> None:
    with make_pool(tmp_path, memory_mb=60_000) as pool:
        before = pool.call(Act(what="echo")).result(60).answer.pid
        cause = failure(pool, Act(what="fork-bomb")).cause

        assert cause.code is CauseCode.PROGRAM_DIED
        assert "more than 64 processes" in cause.detail
        wait_until(lambda: not group_of(before))
        assert told(pool.call(Act(what="echo", text="on")).result(60)) == "on"


def group_of(leader: int) -> list[str]:
    """Processes that run in the group of ``leader``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found.append(path.parent.name)
    return found


def test_a_worker_killed_by_others_does_not_show_in_the_result(
    tmp_path: Path, pool: WorkerPool[Act]
) -> None:
    pool.broadcast_task(Load(text="program"))
    mark = str(tmp_path / "scratch" / "killed")

    assert told(pool.call(Act(what="be-killed-once", text=mark)).result(60)) == mark
    assert told(pool.call(Act(what="loaded")).result(60)) == "program"


def test_who_speaks_out_of_turn_is_ended(pool: WorkerPool[Act]) -> None:
    pool.broadcast_task(Load(text="program"))
    descriptor = max(
        int(entry.name)
        for entry in Path(f"/proc/{pool.pids[0]}/fd").iterdir()
        if str(entry.readlink()).startswith("socket:")
    )

    cause = failure(pool, Act(what="lie", text=str(descriptor))).cause

    assert cause.code is CauseCode.PROGRAM_DIED
    assert told(pool.call(Act(what="loaded")).result(60)) == "program"


def test_a_worker_that_never_gets_ready_is_a_failure_of_its_tasks(tmp_path: Path) -> None:
    pool: WorkerPool[Act] = WorkerPool(
        num_workers=1,
        limits=Limits(),
        folder=tmp_path / "scratch",
        entry=(*ENTRY, "--never-ready"),
        log=subprocess.DEVNULL,
    )
    with pool:
        assert "exit status 4" in failure(pool, Act(what="echo")).cause.detail


def test_tasks_past_the_deadline_are_given_up(tmp_path: Path) -> None:
    tasks = [(Act(what="echo", text="quick"), ())]
    tasks += [(Act(what="sleep", number=60, text=f"slow-{i}"), ()) for i in range(5)]

    with make_pool(tmp_path) as pool:
        pool.broadcast_task(Load(text="program"))
        outcomes = dict(pool.as_completed(tasks, deadline_s=1.0))

        late = [t.text for t, outcome in outcomes.items() if isinstance(outcome, SiteFailure)]
        assert sorted(late) == [f"slow-{i}" for i in range(5)]
        assert told(pool.call(Act(what="loaded")).result(10)) == "program"


def test_leaving_the_pool_ends_every_worker(tmp_path: Path) -> None:
    with make_pool(tmp_path, num_workers=2) as pool:
        pool.broadcast_task(Load(text="program"))
        pool.call(Act(what="sleep", number=60))
        pids = pool.pids

    assert not any(is_running(pid) for pid in pids)


def test_workers_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = f"""
import sys, time
from pathlib import Path
from tests.workflows.test_workers import make_pool
from tests.workflows.misbehaving_worker import Act, Load
with make_pool(Path({str(tmp_path)!r}), num_workers=2) as pool:
    pool.broadcast_task(Load(text="x"))
    pool.call(Act(what="sleep", number=60))
    print(*pool.pids, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()

    wait_until(lambda: not any(is_running(pid) for pid in pids))


def test_a_worker_sees_an_environment_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FOEDUS_TOKEN", "secret")

    with make_pool(tmp_path) as pool:
        names = told(pool.call(Act(what="environment")).result(60)).split(",")

    assert "PATH" in names
    assert "FOEDUS_TOKEN" not in names


def test_what_a_worker_prints_goes_to_the_log(tmp_path: Path) -> None:
    with make_pool(tmp_path) as pool:
        assert told(pool.call(Act(what="flood", number=20)).result(60)) == ""

    assert (tmp_path / "log").stat().st_size >= 20 << 20


def test_a_worker_reaches_only_what_it_must(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("token")
    with socket.create_server(("127.0.0.1", 0)) as server, make_pool(tmp_path) as pool:
        port = server.getsockname()[1]

        def attempt(what: str) -> str:
            return told(pool.call(Act(what="try", text=what)).result(60))

        assert attempt(f"write {tmp_path / 'scratch' / 'mine'}") == "ok"
        assert attempt("read /etc/hostname") == "ok"
        if "no network" in pool.confined:
            assert attempt(f"connect {port}") == "OSError"
        if any(means.startswith("files") for means in pool.confined):
            assert attempt(f"read {secret}") == "PermissionError"
            assert attempt(f"write {tmp_path / 'elsewhere'}") == "PermissionError"
