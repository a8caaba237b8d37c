"""The README's marked blocks are run, in order, in one folder, as a newcomer would.

Only that its job gets one worker: each loads the framework anew.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.clients.cli_process import REPOSITORY, environment
from tests.e2e.real_server import RealServer

README = REPOSITORY / "README.md"
MARKED = re.compile(
    r"<!-- tested(?:: (?P<file>\S+))? -->\n```(?P<kind>\w+)\n(?P<text>.*?)```", re.S
)
BLOCK_S = 120.0


def test_the_two_commands_come_first() -> None:
    first_block = README.read_text().split("```")[1]

    commands = [line.split("#")[0].strip() for line in first_block.splitlines()[1:]]
    assert commands == ["make demo", "make test"]


def test_what_the_readme_names_is_there() -> None:
    links = re.findall(r"\]\((?!http)([^)]+)\)", README.read_text())

    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_the_readmes_commands_work(home: Path, server: RealServer) -> None:
    shim = home / "bin" / "foedus"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m clients.cli "$@"\n')
    shim.chmod(0o755)
    env = environment(home, FOEDUS_URL=server.url, FOEDUS_TOKEN=server.token)
    env["PATH"] = f"{shim.parent}:{env['PATH']}"
    kinds = []

    for block in MARKED.finditer(README.read_text()):
        kinds.append(block["kind"])
        match block["kind"]:
            case "yaml":
                (home / block["file"]).write_text(block["text"] + "runtime: {workers: 1}\n")
                continue
            case "python":
                command = [sys.executable, "-c", block["text"]]
            case _:
                command = ["bash", "-euo", "pipefail", "-c", block["text"]]
        done = subprocess.run(
            command, cwd=home, env=env, capture_output=True, text=True, timeout=BLOCK_S, check=False
        )
        assert done.returncode == 0, f"{block['text']}\n{done.stdout}\n{done.stderr}"

    assert kinds == ["sh", "yaml", "sh", "python"]
    assert (home / "model.onnx").stat().st_size > 0
