from __future__ import annotations

from pathlib import Path

import pytest

from workflows.job import Limits
from workflows.program import write_template
from workflows.program_check import Finding, check_program

LINEAR = """
import torch
from torch import nn

def build():
    return nn.Linear(3, 2)

def loss(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)
"""
OWN_LOOP = """
def train(model, data, config):
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
    for _ in range(config.epochs):
        optimizer.zero_grad()
        loss(model, (data.x, data.y)).backward()
        optimizer.step()
"""
TOY = "example_features = [3]\nclasses = 2\n"
SKLEARN = """
from sklearn.linear_model import SGDClassifier

def build():
    return SGDClassifier(loss="log_loss")
"""


def write(folder: Path, code: str, toml: str = TOY, framework: str = "torch") -> Path:
    folder.mkdir()
    (folder / "program.py").write_text(code)
    (folder / "program.toml").write_text(f'name = "p"\nframework = "{framework}"\n{toml}')
    return folder


def last_finding(tmp_path: Path, program: Path, limits: Limits | None = None) -> Finding:
    report = check_program(program, tmp_path / "scratch", limits=limits or Limits())
    assert not report.ok
    assert all(finding.ok for finding in report.findings[:-1])
    return report.findings[-1]


def test_the_template_passes_every_check(tmp_path: Path) -> None:
    write_template(tmp_path / "mine")
    before = {path: path.read_bytes() for path in (tmp_path / "mine").iterdir()}

    report = check_program(tmp_path / "mine", tmp_path / "scratch")

    assert report.ok, report.findings
    assert [finding.about for finding in report.findings] == [
        *("bundle", "model", "training", "repeatable", "evaluation", "onnx")
    ]
    assert report.facts is not None
    assert report.facts.framework == "torch"
    assert {path: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == before


def test_a_scikit_learn_program_passes_every_check(tmp_path: Path) -> None:
    program = write(tmp_path / "p", SKLEARN, framework="sklearn")

    report = check_program(program, tmp_path / "scratch")

    assert report.ok, report.findings
    assert report.facts is not None
    assert [p.shape for p in report.facts.parameters] == [(1, 3), (1,)]


def test_an_xgboost_program_passes_every_check(tmp_path: Path) -> None:
    code = "def build(eta=0.3):\n    return {'eta': eta, 'max_depth': 2}\n"
    program = write(tmp_path / "p", code, framework="xgboost")

    report = check_program(program, tmp_path / "scratch")

    assert report.ok, report.findings
    assert "lengthens by at most 1,408 bytes" in report.findings[1].found
    assert report.facts is not None
    assert report.facts.growth_bytes == 512 + 128 * 7


def test_a_template_is_not_written_over_anything(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")

    with pytest.raises(FileExistsError, match="name a new folder"):
        write_template(tmp_path / "mine")

    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_folder_without_a_manifest_is_said_to_lack_it(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()

    finding = last_finding(tmp_path, tmp_path / "p")

    assert finding.about == "bundle"
    assert "program.toml is missing" in finding.found
    assert "foedus program new" in finding.mend


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    finding = last_finding(tmp_path, write(tmp_path / "p", "import keras\n" + LINEAR))

    assert finding.about == "model"
    assert "program-import-failed" in finding.found
    assert "`keras`" in finding.found
    assert 'File "program.py", line 1' in finding.evidence


def test_a_program_that_hangs_is_ended_and_said_to_hang(tmp_path: Path) -> None:
    hangs = write(tmp_path / "p", "while True:\n    pass\n")

    finding = last_finding(tmp_path, hangs, Limits(import_s=0.5))

    assert "program-hung" in finding.found
    assert "limits.import_s" in finding.mend


def test_a_program_of_unknown_shape_asks_for_it(tmp_path: Path) -> None:
    finding = last_finding(tmp_path, write(tmp_path / "p", LINEAR, toml=""))

    assert finding.about == "toy data"
    assert "example_features" in finding.mend


def test_a_program_that_keeps_state_between_calls_is_found_out(tmp_path: Path) -> None:
    counting = (
        SKLEARN.replace("return SGDClassifier", "return Counting")
        + """
class Counting(SGDClassifier):
    calls = 0

    def partial_fit(self, x, y):
        Counting.calls += 1
        return super().partial_fit(x * Counting.calls, y)
"""
    )

    finding = last_finding(tmp_path, write(tmp_path / "p", counting, framework="sklearn"))

    assert finding.about == "repeatable"
    assert "globals" in finding.mend


def test_a_penalty_that_is_declared_but_not_added_is_found_out(tmp_path: Path) -> None:
    program = write(tmp_path / "p", LINEAR + OWN_LOOP, toml="hooks = true\n" + TOY)

    finding = last_finding(tmp_path, program)

    assert finding.about == "hooks"
    assert "penalty(model)" in finding.mend
