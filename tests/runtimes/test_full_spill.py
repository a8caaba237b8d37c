"""A fold that keeps updates, on a disk that has no room for them: real file system, real step."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.runtimes.run_folders import job, lay, linear, own, start, told
from workflows.events import RoundStarted


def test_a_spill_without_room_ends_the_step_for_now(tmp_path: Path) -> None:
    program = linear(tmp_path)
    spec = job(
        program=own(program),
        runtime={"kind": "native", "workers": 1},
        strategy={"kind": "coordinate-median"},
    )
    root = lay(tmp_path / "run", spec, program)
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], check=True)
    try:
        with start(root, "native", {"TMPDIR": str(disk)}) as step:
            code = step.wait(120)
        room = os.statvfs(disk)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)

    assert code == 74, (root / "federate.log").read_text()
    assert isinstance(told(root)[-1], RoundStarted)  # nothing is told that would be for good
    assert room.f_bfree == room.f_blocks  # so the exit code alone can say what it was
