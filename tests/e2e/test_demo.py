"""``make demo`` after installation, as a process."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from sklearn.datasets import load_digits

from tests.clients.cli_process import REPOSITORY, environment, foedus
from tests.e2e.real_server import until

PNG = b"\x89PNG\r\n"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "demo"
    for process in alive(tmp_path / "demo"):
        process.kill()


def alive(folder: Path) -> list[psutil.Process]:
    """Processes that have to do with ``folder``."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            told = [*process.cmdline(), process.environ().get("FOEDUS_DATA", "")]
            if any(part.startswith(str(folder)) for part in told):
                found.append(process)
    return found


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo", "--folder", str(folder)],
        cwd=REPOSITORY,
        env=environment(folder.parent),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_an_interrupted_demo_leaves_no_process_and_the_next_one_reads_digits(folder: Path) -> None:
    interrupted = start(folder)
    assert interrupted.stdout is not None
    seen = []
    for line in interrupted.stdout:
        seen.append(line)
        if line.startswith("round 1/"):
            break
    assert len(alive(folder)) >= 3, "".join(seen)  # demo, server and wrapper at least
    interrupted.send_signal(signal.SIGINT)
    rest, _ = interrupted.communicate(timeout=60)

    assert interrupted.returncode == 130, rest
    assert "Interrupted" in rest
    until(lambda: alive(folder) == [], "everything to be gone", 5.0)

    output, _ = (demo := start(folder)).communicate(timeout=180)

    assert demo.returncode == 0, output
    accuracy = float(output.partition("onnxruntime reads ")[2].partition("%")[0])
    assert accuracy >= 95
    assert (folder / "learning-curve.png").read_bytes().startswith(PNG)
    assert (folder / "predictions.png").read_bytes().startswith(PNG)
    assert alive(folder) == []
    digits = load_digits()
    np.savez(folder / "digits.npz", x=digits.data / 16)
    read = foedus("model", "predict", folder / "model.onnx", folder / "digits.npz", home=folder)
    assert np.mean(np.array(read.stdout.split(), int) == digits.target) > 0.95
