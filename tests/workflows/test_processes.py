from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from workflows.processes import end_session, identify, scrubbed

FAMILY = """
import os, subprocess, sys, time
nap = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
members = [
    subprocess.Popen(nap),
    subprocess.Popen(nap, process_group=0),
    subprocess.Popen(nap, start_new_session=True),
]
print(*[member.pid for member in members], flush=True)
time.sleep(600)
"""


def state_of(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def test_a_session_ends_with_all_that_descends_from_its_leader() -> None:
    bystander = subprocess.Popen(["sleep", "600"])
    leader = subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, start_new_session=True
    )
    assert leader.stdout is not None
    members = [int(pid) for pid in leader.stdout.readline().split()]
    identity = identify(leader.pid)
    try:
        assert identity.is_alive()
        assert end_session(identity, within_s=10)

        assert not identity.is_alive()
        assert [state_of(pid) for pid in members if state_of(pid) not in (None, "Z")] == []
        assert bystander.poll() is None
        assert end_session(identity, within_s=10)
    finally:
        for process in (leader, bystander):
            process.kill()
            process.wait()
        leader.stdout.close()


def test_members_are_ended_when_their_leader_is_gone_already() -> None:
    script = (
        "import subprocess, sys\n"
        "nap = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'],"
        " stdout=subprocess.DEVNULL)\n"
        "print(nap.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    leader = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert leader.stdout is not None
    member = int(leader.stdout.readline())
    identity = identify(leader.pid)
    leader.communicate()

    assert state_of(member) not in (None, "Z")
    assert end_session(identity, within_s=10)
    assert state_of(member) in (None, "Z")


def test_a_number_that_was_given_away_is_nobody() -> None:
    identity = identify(os.getpid())

    earlier = msgspec.structs.replace(identity, started=identity.started - 1)
    elsewhere = msgspec.structs.replace(identity, boot="another")

    assert identity.is_alive()
    assert not earlier.is_alive()
    assert not elsewhere.is_alive()
    assert end_session(earlier, within_s=0)
    assert end_session(elsewhere, within_s=0)


def test_nobody_has_a_number_that_is_free() -> None:
    process = subprocess.Popen(["true"])
    process.wait()

    with pytest.raises(ProcessLookupError):
        identify(process.pid)


def test_a_child_learns_next_to_nothing_of_its_parents_environment(tmp_path: Path) -> None:
    parent = {"PATH": "/bin", "LANG": "C", "AWS_SECRET_ACCESS_KEY": "s", "PYTHONPATH": "/evil"}

    child = scrubbed(parent, home=tmp_path / "home", tmp=tmp_path / "tmp")

    assert child == {
        "PATH": "/bin",
        "LANG": "C",
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }
