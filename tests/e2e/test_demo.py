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


def test_the_demo_reads_digits_and_leaves_its_pictures_and_no_process(folder: Path) -> None:
    demo = start(folder)
    output, _ = demo.communicate(timeout=180)

    assert demo.returncode == 0, output
    accuracy = float(output.partition("onnxruntime reads ")[2].partition("%")[0])
    assert accuracy >= 95
    assert (folder / "learning-curve.png").read_bytes().startswith(PNG)
    assert (folder / "predictions.png").read_bytes().startswith(PNG)
    assert (folder / "model.onnx").stat().st_size > 0
    assert alive(folder) == []
    digits = load_digits()
    np.savez(folder / "digits.npz", x=digits.data / 16)
    read = foedus("model", "predict", folder / "model.onnx", folder / "digits.npz", home=folder)
    assert np.mean(np.array(read.stdout.split(), int) == digits.target) > 0.95


def test_an_interrupted_demo_leaves_nothing_running_and_can_be_started_again(folder: Path) -> None:
    for moment in ("Control plane ready", "round 1/"):
        demo = start(folder)
        assert demo.stdout is not None
        seen = []
        for line in demo.stdout:
            seen.append(line)
            if line.startswith(moment):
                break
        assert seen[-1].startswith(moment), "".join(seen)
        if moment.startswith("round"):
            assert len(alive(folder)) >= 3  # demo, server, wrapper at least
        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate(timeout=60)

        assert demo.returncode == 130, rest
        assert "Interrupted" in rest
        until(lambda: alive(folder) == [], "everything to be gone", 5.0)
