"""The whole platform as the chart installs it: two replicas, Argo, MinIO, PostgreSQL, Keycloak."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from clients.keycloak_realm import Realm, realm_document
from sharing.s3_bucket import Address
from tests.clients.cli_process import foedus
from tests.cluster.chart_release import AS_PODS_SEE_IT, Release, build_image, done
from tests.cluster.conftest import services
from tests.cluster.own_postgres import OwnPostgres
from tests.cluster.tcp_proxy import TcpProxy
from tests.e2e.real_server import running

pytestmark = pytest.mark.timeout(900)  # the image, four servers, an installation, a run
JOB = """\
name: whole
program: {kind: builtin, name: digits-mlp}
runtime: {kind: native, workers: 1}
data: {kind: partitioned, dataset: digits, sites: 3, holdout: 0.2}
init: {kind: seed, seed: 11}
local: {epochs: 4, optimizer: {kind: sgd, lr: 0.05}}
rounds: 30
"""


class Platform(Release):
    """A release whose callers are Keycloak's."""

    @cached_property
    def environment(self) -> dict[str, str]:
        spec = self.get("service", "foedus")["spec"]
        return {
            "FOEDUS_URL": f"http://{spec['clusterIP']}:{spec['ports'][0]['port']}",
            "FOEDUS_CLIENT_ID": "night-run",
            "FOEDUS_CLIENT_SECRET_FILE": str(self.folder / "secret"),
            "FOEDUS_ALLOW_PLAIN_HTTP": "true",
            "FOEDUS_PATIENCE_S": "240",
        }


def opened(url: str, doors: list[TcpProxy]) -> str:
    """HOST:PORT at which pods reach a service of this machine."""
    doors.append(TcpProxy(urlsplit(url).port or 80, AS_PODS_SEE_IT))
    return f"{AS_PODS_SEE_IT}:{doors[-1].port}"


@pytest.fixture(scope="module")
def platform(
    lab: Path, s3: Address, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    subprocess.run([lab / "up"], check=True, capture_output=True, timeout=300)
    build_image(lab)
    name, doors = f"foedus-whole-{secrets.token_hex(3)}", list[TcpProxy]()
    platform = Platform(name, tmp_path_factory.mktemp("client"))
    (platform.folder / "job.yaml").write_text(JOB)
    found = services("keycloak")
    keycloak = found["LAB_KEYCLOAK_URL"]
    realm = Realm(
        *(keycloak, name, found["LAB_KEYCLOAK_ADMIN_USER"], found["LAB_KEYCLOAK_ADMIN_PASSWORD"]),
        allow_plain_http=False,
    )
    list(realm.bring_in(realm_document(name)))
    machine = realm.add_machine("night-run", "acme", ["operator", "developer"])
    (platform.folder / "secret").write_text(machine)
    postgres = OwnPostgres()
    postgres.start()
    done("kubectl", "create", "namespace", name)
    done("kubectl", "label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    try:
        database = f"postgresql://postgres@{opened(postgres.url, doors)}/postgres"
        platform.kubectl(
            *("create", "secret", "generic", "foedus-database", f"--from-literal=url={database}")
        )
        platform.kubectl(
            *("create", "secret", "generic", "foedus-s3"),
            f"--from-literal=access-key={s3.access_key}",
            f"--from-literal=secret-key={s3.secret_key}",
        )
        platform.install(
            *("--set", "replicas=2,engine=argo,store=s3,identity=keycloak"),
            *("--set", f"s3.endpoint={opened('http://' + s3.endpoint, doors)},s3.secure=false"),
            *("--set", f"s3.bucket={name},s3.existingSecret=foedus-s3"),
            *("--set", "database.existingSecret=foedus-database"),
            *("--set", f"keycloak.serverUrl=http://{opened(keycloak, doors)}"),
            *("--set", f"keycloak.realm={name},keycloak.issuer={keycloak}/realms/{name}"),
        )
        yield platform
    finally:
        done("kubectl", "delete", "namespace", name, "--wait=false")
        for door in doors:
            door.close()
        postgres.stop()
        postgres.remove()


def rounds_of(platform: Platform, job_id: str, then: Callable[[], object]) -> Any:
    """The job at its end; in its third round ``then`` is done."""
    with platform.watching(job_id) as told:
        next(told)  # the job; so is the last line
        events = [next(told)]
        while events[-1].get("kind") != "round.finished" or events[-1]["fields"]["round"] < 3:
            assert "phase" not in events[-1], events
            events.append(next(told))
        then()
        *rest, job = told
    events += rest
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    return job


def test_it_makes_the_model_of_one_machine_while_it_is_rolled_out_anew(
    platform: Platform, tmp_path: Path
) -> None:
    job_file = platform.folder / "job.yaml"

    def roll_out() -> None:
        platform.kubectl("rollout", "restart", "statefulset/foedus")
        platform.kubectl("rollout", "status", "statefulset/foedus", "--timeout=180s")

    job = rounds_of(platform, platform.foedus("submit", job_file)[0]["id"], roll_out)

    assert job["phase"] == "succeeded"
    assert job["attempt"] == 1  # Argo's pods go on without us
    with running(tmp_path / "alone") as server:
        env = {"FOEDUS_URL": server.url, "FOEDUS_TOKEN": server.token}
        ended = foedus("submit", "--watch", job_file, home=tmp_path, env=env, timeout_s=200.0)
        assert ended.returncode == 0, ended.stderr
        listed = foedus("model", "list", "--json", home=tmp_path, env=env)
    assert platform.digest_of(job["id"]) == json.loads(listed.stdout)[0]["digest"]
