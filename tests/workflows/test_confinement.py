from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def run(script: str) -> list[str]:
    """Output of a script in a process of its own: what is given up is given up for good."""
    lines = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=True,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    return lines.stdout.splitlines()


CONFINED = """
    import os, resource, sys
    from pathlib import Path
    from workflows.confinement import confine
    folders = dict(writable=Path({folder!r}), readable=[Path({readable!r})])
    held = confine(**folders, memory_mb=100, output_mb=1)
    def tried(act):
        try:
            return str(act() or "done")
        except (OSError, MemoryError) as error:
            return type(error).__name__
"""


def test_memory_and_cores_are_limited(tmp_path: Path) -> None:
    script = CONFINED.format(folder=str(tmp_path), readable=str(tmp_path))

    lines = run(
        script
        + """
    print(held[0])
    print(resource.getrlimit(resource.RLIMIT_CORE))
    print(tried(lambda: len(bytearray(6 << 30))))
    """
    )

    assert lines == ["limits on data, files and cores", "(0, 0)", "MemoryError"]


def test_what_is_held_cannot_be_regained_and_is_told(tmp_path: Path) -> None:
    script = CONFINED.format(folder=str(tmp_path), readable=str(tmp_path))

    status = dict(
        line.split(":", 1)
        for line in run(
            script
            + """
    print("held:", ", ".join(held))
    print(Path("/proc/self/status").read_text())
    """
        )
        if ":" in line
    )

    assert "no new privileges" in status["held"]
    assert status["NoNewPrivs"].strip() == "1"
    if "no capabilities" in status["held"]:
        assert int(status["CapEff"], 16) == 0


def test_files_outside_are_out_of_reach_where_the_kernel_can(tmp_path: Path) -> None:
    for name in ("mine", "given"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_text("x")
    (tmp_path / "other").write_text("x")
    script = CONFINED.format(folder=str(tmp_path / "mine"), readable=str(tmp_path / "given"))

    lines = run(
        script
        + f"""
    root = Path({str(tmp_path)!r})
    print(held[-1])
    print(tried((root / "mine" / "old").read_text))
    print(tried(lambda: (root / "mine" / "new").write_text("x")))
    print(tried((root / "given" / "old").read_text))
    print(tried(lambda: (root / "given" / "old").write_text("y")))
    print(tried((root / "given" / "old").unlink))
    print(tried((root / "other").read_text))
    import json, decimal, xmlrpc.client
    """
    )

    if not lines[0].startswith("files by Landlock"):
        pytest.skip("this kernel has no Landlock; the worker says so in its log")
    assert lines[1:] == ["x", "1", "x", *["PermissionError"] * 3]


def test_hidden_memory_cannot_be_read_by_a_confined_process(tmp_path: Path) -> None:
    hidden = """
    import sys
    from workflows.confinement import hide_memory
    hide_memory()
    print("hidden", flush=True)
    sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(hidden)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"SECRET": "token", "PYTHONPATH": "."},
    ) as keeper:
        assert keeper.stdin
        assert keeper.stdout
        assert keeper.stdout.readline() == b"hidden\n"
        script = CONFINED.format(folder=str(tmp_path), readable=str(tmp_path))

        lines = run(
            script
            + f"""
    print(tried(Path("/proc/{keeper.pid}/environ").read_bytes))
    print(tried(lambda: open("/proc/{keeper.pid}/mem", "rb")))
    print(held)
    """
        )
        keeper.stdin.close()

    assert lines[:2] == ["PermissionError", "PermissionError"]


def test_a_process_whose_parent_is_gone_ends_at_once() -> None:
    script = "from workflows.confinement import die_with; die_with(1 << 22); print('lives on')"

    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)

    assert (ended.returncode, ended.stdout) == (1, b"")


def test_in_a_user_namespace_processes_are_counted() -> None:
    script = """
    import os, signal
    from workflows.confinement import _leave_network
    os.setuid(65534) if os.getuid() == 0 else None
    held = _leave_network()
    num_forked = 0
    try:
        while num_forked < 600:
            if os.fork() == 0:
                signal.pause()
            num_forked += 1
    except BlockingIOError:
        pass
    print(held[1] if len(held) > 1 else "")
    print(num_forked, flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    """

    lines = run(script)

    if not lines[0]:
        pytest.skip("no user namespaces here")
    assert lines == ["at most 512 processes and threads", "511"]
