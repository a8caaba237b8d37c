"""The chart, rendered and installed in a namespace of the lab's cluster, by helm and kubectl."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.clients.cli_process import REPOSITORY, environment, foedus
from tests.cluster.kubernetes import ENFORCED, environment_image
from tests.cluster.tcp_proxy import TcpProxy

HOME = Path(os.environ.get("LAB_HOME") or Path.home() / ".cache" / "lab")
CHART = REPOSITORY / "deploy" / "chart"
PLATFORM = REPOSITORY / "deploy" / "values" / "platform.yaml"
HELM = "helm.sh/helm/v3/cmd/helm@v3.19.0"
AS_PODS_SEE_IT = "10.244.0.1"
"""This machine."""
IMAGE = "foedus-chart:test"
PACKAGES = (
    *("control_plane", "clients", "workflows", "strategies", "privacy", "sharing", "translation"),
)
Object = Mapping[str, Any]


@cache
def path_of(program: str) -> Path:
    """One of the lab's programs. Helm is not among those that it builds."""
    path = HOME / "bin" / program
    if program == "helm" and not path.exists():
        subprocess.run(
            ["go", "install", HELM],
            env={**os.environ, "GOBIN": str(path.parent), "CGO_ENABLED": "0"},
            check=True,
            capture_output=True,
            timeout=900,
        )
    return path


def run(
    program: str, *arguments: str | Path, stdin: str = "", timeout_s: float = 300.0
) -> subprocess.CompletedProcess[str]:
    """One of the lab's programs, towards the lab's cluster."""
    return subprocess.run(
        [path_of(program), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "KUBECONFIG": str(HOME / "cluster" / "kubeconfig")},
        check=False,
    )


def done(program: str, *arguments: str | Path, stdin: str = "") -> str:
    """What it said, once it has succeeded."""
    ended = run(program, *arguments, stdin=stdin)
    assert ended.returncode == 0, ended.stderr or ended.stdout
    return ended.stdout


def template(namespace: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    return run(
        *("helm", "template", "foedus", CHART, "--namespace", namespace),
        *("--kube-version", "1.34", "--api-versions", "monitoring.coreos.com/v1", *options),
    )


def rendered(*options: str | Path, namespace: str = "somewhere") -> dict[tuple[str, str], Any]:
    """Objects by kind and name."""
    ended = template(namespace, *options)
    assert ended.returncode == 0, ended.stderr
    found = (one for one in YAML(typ="safe").load_all(ended.stdout) if one)
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def build_image(lab: Path) -> str:
    """The locked environment and, above it, the code of this checkout. (Not the Containerfile.)"""
    venv = (REPOSITORY / ".venv").resolve()
    lock = REPOSITORY / "requirements.lock"
    environment = environment_image(venv)
    if not _config(environment):
        _image(lab, environment, venv)
    sources = (path for name in PACKAGES for path in (REPOSITORY / name).rglob("*.*"))
    code = _digest(sorted(path for path in sources if path.suffix != ".pyc"))
    if code not in _config(IMAGE):
        folders = [f"{REPOSITORY / name}:/srv/foedus/{name}" for name in PACKAGES]
        variables = {"PYTHONPATH": "/srv/foedus", "PATH": f"{venv}/bin:/usr/bin:/bin", "CODE": code}
        given = [part for item in variables.items() for part in ("--env", "=".join(item))]
        _image(
            *(lab, IMAGE, "--from", environment, "--exclude", "__pycache__", *given),
            *(*folders, f"{lock}:/srv/foedus/requirements.lock"),
        )
    return IMAGE


def _digest(paths: list[Path]) -> str:
    digest = sha256()
    for path in paths:
        if path.is_file():
            digest.update(f"{path.relative_to(REPOSITORY)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _config(image: str) -> str:
    path = HOME / "images" / image.replace(":", "_") / "config.json"
    return path.read_text() if path.exists() else ""


def _image(lab: Path, *arguments: str | Path) -> None:
    subprocess.run([lab / "image", *arguments], check=True, capture_output=True, timeout=600)


@contextlib.contextmanager
def opened(port: int) -> Iterator[str]:
    """HOST:PORT at which pods reach a service of this machine."""
    with contextlib.closing(TcpProxy(port, AS_PODS_SEE_IT)) as door:
        yield f"{AS_PODS_SEE_IT}:{door.port}"


@contextlib.contextmanager
def fresh_namespace() -> Iterator[str]:
    """One that admits nothing but restricted pods."""
    name = f"foedus-chart-{secrets.token_hex(3)}"
    done("kubectl", "create", "namespace", name)
    done("kubectl", "label", "namespace", name, f"{ENFORCED}=restricted")
    try:
        yield name
    finally:
        done("kubectl", "delete", "namespace", name, "--wait=false")


@dataclass(frozen=True)
class Release:
    """Foedus as the chart installs it.

    Attributes:
        namespace: Holds nothing else.
        folder: Of the command line's own things.
    """

    namespace: str
    folder: Path

    def install(self, *options: str) -> None:
        """Install it or bring it up to date; returns once it is ready."""
        repository, tag = IMAGE.split(":")
        done(
            *("helm", "upgrade", "--install", "foedus", CHART, "--namespace", self.namespace),
            *("--set", f"image.repository={repository},image.tag={tag},imagePullPolicy=Never"),
            *(*options, "--wait", "--timeout", "240s"),
        )

    def kubectl(self, *arguments: str) -> str:
        return done("kubectl", "-n", self.namespace, *arguments)

    def get(self, *what: str) -> Any:
        return json.loads(self.kubectl("get", *what, "-o", "json"))

    @property
    def login(self) -> dict[str, str]:
        """Who the command line says it is."""
        token = self.kubectl("exec", "foedus-0", "--", "cat", "/var/lib/foedus/first-token")
        return {"FOEDUS_TOKEN": token.strip()}

    @cached_property
    def environment(self) -> dict[str, str]:
        """Of the command line, towards the Service."""
        spec = self.get("service", "foedus")["spec"]
        return {
            "FOEDUS_URL": f"http://{spec['clusterIP']}:{spec['ports'][0]['port']}",
            "FOEDUS_ALLOW_PLAIN_HTTP": "true",
            "FOEDUS_PATIENCE_S": "240",
            **self.login,
        }

    def foedus(self, *arguments: str | Path) -> list[Any]:
        """What the command line says, as JSON."""
        ended = foedus(
            *arguments, "--json", home=self.folder, env=self.environment, timeout_s=400.0
        )
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr
        return [json.loads(line) for line in ended.stdout.splitlines()]

    @contextlib.contextmanager
    def watching(self, job_id: str) -> Iterator[Iterator[Any]]:
        """Events of a job as the command line tells them, across whatever happens to the server."""
        with subprocess.Popen(
            [sys.executable, "-m", "clients.cli", "watch", job_id, "--json"],
            env=environment(self.folder, PYTHONUNBUFFERED="1", **self.environment),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                yield map(json.loads, process.stdout)
                assert process.wait(60) == 0
            finally:
                process.kill()

    def rolled_out_during(self, job_id: str) -> tuple[list[Any], Any]:
        """Replace all servers after a job's third round; every event of the job, and its end."""
        with self.watching(job_id) as told:
            next(told)  # the job; so is the last line
            events = [next(told)]
            while events[-1].get("kind") != "round.finished" or events[-1]["fields"]["round"] < 3:
                assert "phase" not in events[-1], events
                events.append(next(told))
            self.kubectl("rollout", "restart", "statefulset/foedus")
            self.kubectl("rollout", "status", "statefulset/foedus", "--timeout=180s")
            *rest, job = told
        events += rest
        assert [event["id"] for event in events] == list(range(1, len(events) + 1))
        return events, job

    def digest_of(self, job_id: str) -> str:
        """Of the model that the job made."""
        (found,) = self.foedus("model", "list")
        return next(one["digest"] for one in found if one["job"] == job_id)
