"""A folder that installs Foedus where there is no network: gathered once, changed, and used."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.clients.cli_process import REPOSITORY
from tests.cluster.chart_release import HOME, done, path_of

AIRGAP = REPOSITORY / "deploy" / "airgap"
LAB = Path(os.environ.get("FOEDUS_LAB", "")).absolute()
NAMED = "foedus-airgap:test"
# The whole lock is 3 GB; what the job format needs shows the way as well.
FEW = ("msgspec", "rfc8785", "numpy")


def bash(*arguments: str | Path, cut: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a script; ``cut`` off from any network, this machine's own included."""
    return subprocess.run(
        [*(("unshare", "--net") if cut else ()), *arguments],
        env={
            "PATH": f"{HOME / 'bin'}:{os.environ['PATH']}",
            "HOME": "/nonexistent" if cut else os.environ["HOME"],
            "KUBECONFIG": str(HOME / "cluster" / "kubeconfig"),
            "PYTHON": str(REPOSITORY / ".venv" / "bin" / "python"),
            **{name: value for name, value in os.environ.items() if name.startswith("PIP_")},
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, with an image that does nothing."""
    folder = tmp_path_factory.mktemp("airgap")
    subprocess.run([LAB / "up"], check=True, capture_output=True, timeout=300)
    path_of("helm")
    lock = (REPOSITORY / "requirements.lock").read_text()
    pins = [
        found for name in FEW for found in re.findall(rf"^{name}==.*(?:\n    --.*)+", lock, re.M)
    ]
    (folder / "few.lock").write_text("\n".join(pins) + "\n")
    image = pause_image(folder)

    ended = bash(AIRGAP / "gather", "--lock", folder / "few.lock", folder / "medium", image)

    assert ended.returncode == 0, ended.stderr
    return folder / "medium"


def pause_image(folder: Path) -> Path:
    """The lab's smallest image under a name of ours."""
    kept = HOME / "images" / "lab_pause_1"
    (about,) = json.loads((kept / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps([about | {"RepoTags": [NAMED]}]))
    with tarfile.open(folder / "pause.tar", "w") as archive:
        archive.add(folder / "manifest.json", "manifest.json")
        for name in (about["Config"], *about["Layers"]):
            archive.add((kept / name).resolve(), name)
    return folder / "pause.tar"


@pytest.fixture
def medium(gathered: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return shutil.copytree(gathered, tmp_path / "medium")


def test_what_was_gathered_is_whole(gathered: Path) -> None:
    assert bash(gathered / "install", "check", cut=True).returncode == 0
    assert {path.name for path in gathered.iterdir()} == {
        *("images", "wheels", "values", "install", "product.lock", "SHA256SUMS"),
        "foedus-0.1.0.tgz",
    }


@pytest.mark.parametrize("command", [("check",), ("wheels", "ENVIRONMENT")], ids=" ".join)
def test_a_changed_wheel_is_not_installed(
    medium: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    wheel = next((medium / "wheels").glob("rfc8785-*"))
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"x")

    words = [str(tmp_path / "new") if word == "ENVIRONMENT" else word for word in command]
    ended = bash(medium / "install", *words, cut=True)

    assert ended.returncode != 0
    assert wheel.name in ended.stdout + ended.stderr
    assert not (tmp_path / "new").exists()


def test_a_file_that_was_slipped_in_is_noticed(medium: Path) -> None:
    (medium / "images" / "another.tar").write_bytes(b"")

    ended = bash(medium / "install", "images", "echo", cut=True)

    assert ended.returncode != 0
    assert "missing or new" in ended.stderr
    assert not ended.stdout


def test_a_file_that_went_missing_is_noticed(medium: Path) -> None:
    next((medium / "images").iterdir()).unlink()

    assert bash(medium / "install", "check", cut=True).returncode != 0


def test_wheels_are_installed_with_the_network_cut(gathered: Path, tmp_path: Path) -> None:
    ended = bash(gathered / "install", "wheels", tmp_path / "new", cut=True)

    assert ended.returncode == 0, ended.stderr
    python = tmp_path / "new" / "bin" / "python"
    listed = bash(python, "-m", "pip", "list", "--format", "freeze", cut=True).stdout
    assert "foedus==0.1.0" in listed
    said = bash(python, "-c", "import workflows.job, rfc8785; print('fine')", cut=True)
    assert said.stdout == "fine\n", said.stderr


def test_images_are_loaded_into_a_node(gathered: Path) -> None:
    socket = HOME / "cluster" / "containerd-0" / "containerd.sock"
    ctr = ("ctr", "-a", str(socket), "-n", "k8s.io", "images")

    ended = bash(gathered / "install", "images", *ctr, "import")

    assert ended.returncode == 0, ended.stderr
    listed = bash(*ctr, "ls", "-q").stdout
    (name,) = [one for one in listed.split() if one.endswith(NAMED)]
    bash(*ctr, "rm", name)


def test_the_chart_of_the_folder_is_what_is_installed(gathered: Path) -> None:
    namespace = "foedus-airgap-test"
    done("kubectl", "create", "namespace", namespace)
    try:
        ended = bash(
            *(gathered / "install", "chart", namespace, "--dry-run=server"),
            *("--set", "image.repository=foedus/control-plane"),
        )
    finally:
        done("kubectl", "delete", "namespace", namespace, "--wait=false")

    assert ended.returncode == 0, ended.stderr
    assert 'image: "foedus/control-plane:0.1.0"' in ended.stdout
