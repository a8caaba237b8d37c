"""The lab's cluster, through its own command line."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.e2e.real_server import until

ROOT = Path(__file__).parent.parent.parent
HOST = "10.244.0.1"
"""This machine, as pods of the lab see it."""
ENFORCED = "pod-security.kubernetes.io/enforce"
CODE = ("workflows", "strategies", "privacy", "sharing", "translation", "requirements.lock")
TEST_CODE = (
    "tests/__init__.py",
    "tests/workflows/__init__.py",
    "tests/workflows/steps_for_tests.py",
)


def started(lab: Path) -> Kubernetes:
    """The lab's cluster with Argo."""
    done = subprocess.run([lab / "up"], capture_output=True, text=True, timeout=300, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("export KUBECONFIG="))
    home = Path(os.environ.get("LAB_HOME", Path.home() / ".cache" / "lab"))
    return Kubernetes(Path(line.partition("=")[2]), home / "bin")


@dataclass(frozen=True)
class Kubernetes:
    kubeconfig: Path
    programs: Path

    def run(
        self, program: str, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> str:
        done = subprocess.run(
            [self.programs / program, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def kill(self, program: str) -> None:
        """End one of the cluster's own programs, as ``up`` names it; ``up`` starts it again."""
        pid = (self.kubeconfig.parent / f"{program}.pid").read_text().split()[0]
        os.kill(int(pid), signal.SIGKILL)

    def make_namespace(self) -> Namespace:
        name = f"foedus-{secrets.token_hex(4)}"
        self.run("kubectl", "create", "namespace", name)
        self.run("kubectl", "label", "namespace", name, f"{ENFORCED}=restricted")
        manifest = (ROOT / "deploy/argo/namespace.yaml").read_text()
        ours = manifest.replace("namespace: foedus", f"namespace: {name}")
        self.run("kubectl", "apply", "-f", "-", stdin=ours)
        return Namespace(self, name)


@dataclass(frozen=True)
class Namespace:
    kubernetes: Kubernetes
    name: str

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        return self.kubernetes.run("kubectl", "-n", self.name, *arguments, stdin=stdin, check=check)

    def argo(self, *arguments: str) -> str:
        return self.kubernetes.run("argo", "-n", self.name, *arguments)

    def get(self, *what: str) -> list[dict[str, Any]]:
        return json.loads(self.kubectl("get", *what, "-o", "json"))["items"]

    def kubeconfig(self, path: Path) -> Path:
        """Of the account that the control plane has here, with no right beyond its role's."""
        config = json.loads(self.kubectl("config", "view", "--raw", "-o", "json"))
        token = self.kubectl("create", "token", "foedus-control-plane").strip()
        config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
        path.write_text(json.dumps(config))
        return path

    def settings(self, image: str, folder: Path) -> dict[str, str]:
        """Of a server on this machine whose steps are pods here."""
        return {
            "FOEDUS_ENGINE": "argo",
            "FOEDUS_HOST": "0.0.0.0",
            "FOEDUS_ENDPOINT_URL": f"http://{HOST}:{{port}}",
            "FOEDUS_KUBECONFIG": str(self.kubeconfig(folder / "kubeconfig")),
            "FOEDUS_NAMESPACE": self.name,
            "FOEDUS_IMAGE": image,
            "FOEDUS_RUNS_PER_ORGANISATION": "1",
        }

    def require_nothing_left(self) -> None:
        """Of a run that has ended: no workflow, no pod, no Secret, within a minute."""
        until(lambda: not self.get("workflows"), "the workflow to be removed")
        until(lambda: not self.get("pods"), "its pods to go", within_s=60)
        left = {secret["metadata"]["name"] for secret in self.get("secrets")}
        assert left == {"foedus-executor.service-account-token"}

    @contextmanager
    def cut_off(self, *selected: str) -> Iterator[None]:
        """Take down the link of a pod: the first of those selected."""
        pod = self.get("pods", *selected)[0]
        near = _told("ip", "-j", "neigh", "show", pod["status"]["podIP"])[0]
        found = _told("bridge", "-j", "fdb", "show", "br", near["dev"])
        (link,) = {one["ifname"] for one in found if one["mac"] == near["lladdr"]}
        subprocess.run(["ip", "link", "set", link, "down"], check=True)
        try:
            yield
        finally:
            subprocess.run(["ip", "link", "set", link, "up"], check=True)

    def delete(self) -> None:
        self.kubectl("delete", "workflows", "--all", "--wait=false")
        self.kubernetes.run("kubectl", "delete", "namespace", self.name, "--wait=false")


def _told(*command: str) -> Any:
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=10).stdout)


def build_image(lab: Path) -> str:
    """An image with the environment and, above it, the code of this checkout; each is kept."""
    venv = (ROOT / ".venv").resolve()
    base = environment_image(venv)
    if _kept_config(base) is None:
        _image(lab, base, str(venv))
    name = f"foedus-{ROOT.name}:1"
    sources = [ROOT / name for name in (*CODE, *TEST_CODE)]
    files = sorted(path for source in sources for path in (source, *source.rglob("*.*")))
    code = _digest(files)
    if f"FOEDUS_CODE={code}" not in (_kept_config(name) or ""):
        with tempfile.TemporaryDirectory() as folder:
            _lay_code(sources, Path(folder))
            _image(
                lab,
                *(name, "--from", base, f"{folder}:/srv/foedus"),
                *("--env", "PYTHONPATH=/srv/foedus", "--env", f"PATH={venv}/bin:/usr/bin:/bin"),
                *("--env", f"FOEDUS_CODE={code}"),
            )
    return name


def _lay_code(sources: Sequence[Path], folder: Path) -> None:
    """Copy code and compile it as the product's image has it: no pod may write beside it."""
    for source in sources:
        to = folder / source.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, to)
    folder.chmod(0o755)
    options = ("-q", "-j", "0", "--invalidation-mode", "unchecked-hash")
    subprocess.run([sys.executable, "-m", "compileall", *options, folder], check=True, timeout=120)


def environment_image(venv: Path) -> str:
    """Name of the image of an environment, which lies there where it lies here."""
    content = f"{venv}\0".encode() + (ROOT / "requirements.lock").read_bytes()
    return f"foedus-environment:{sha256(content).hexdigest()[:12]}"


def _digest(paths: list[Path]) -> str:
    digest = sha256()
    for path in paths:
        if path.is_file() and path.suffix != ".pyc":
            digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _kept_config(image: str) -> str | None:
    home = Path(os.environ.get("LAB_HOME", Path.home() / ".cache" / "lab"))
    path = home / "images" / image.replace(":", "_") / "config.json"
    return path.read_text() if path.exists() else None


def _image(lab: Path, *arguments: str) -> None:
    subprocess.run([lab / "image", *arguments], check=True, timeout=600, capture_output=True)
