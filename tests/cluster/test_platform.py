"""The whole platform as the chart installs it: two replicas, Argo, MinIO, PostgreSQL, Keycloak."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from keycloak import KeycloakAdmin

from clients.keycloak_realm import Realm, realm_document
from sharing.s3_bucket import Address
from tests.clients.cli_process import foedus
from tests.cluster import minio_server
from tests.cluster.chart_release import Release, build_image, fresh_namespace, opened
from tests.cluster.conftest import services
from tests.cluster.kubernetes import Kubernetes
from tests.cluster.own_postgres import OwnPostgres
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

    @property
    def login(self) -> dict[str, str]:
        return {
            "FOEDUS_CLIENT_ID": "night-run",
            "FOEDUS_CLIENT_SECRET_FILE": str(self.folder / "secret"),
        }


def _port_of(url: str) -> int:
    return urlsplit(url).port or 80


@contextmanager
def realm_with_a_machine(name: str) -> Iterator[tuple[str, str]]:
    """A realm of Keycloak's: the server's URL, and the secret of its machine ``night-run``."""
    found = services("keycloak")
    url, user = found["LAB_KEYCLOAK_URL"], found["LAB_KEYCLOAK_ADMIN_USER"]
    password = found["LAB_KEYCLOAK_ADMIN_PASSWORD"]
    realm = Realm(url, name, user, password, allow_plain_http=False)
    list(realm.bring_in(realm_document(name)))
    try:
        yield url, realm.add_machine("night-run", "acme", ["operator", "developer"])
    finally:
        KeycloakAdmin(server_url=f"{url}/", username=user, password=password).delete_realm(name)


@pytest.fixture(scope="module")
def platform(
    kubernetes: Kubernetes, lab: Path, s3: Address, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Platform]:
    build_image(lab)
    with ExitStack() as stack:
        enter = stack.enter_context
        name = enter(fresh_namespace())
        platform = Platform(name, tmp_path_factory.mktemp("client"))
        (platform.folder / "job.yaml").write_text(JOB)
        keycloak, secret = enter(realm_with_a_machine(name))
        (platform.folder / "secret").write_text(secret)
        database = f"postgresql://postgres@{enter(opened(enter(OwnPostgres()).port))}/postgres"
        platform.kubectl(
            *("create", "secret", "generic", "foedus-database", f"--from-literal=url={database}")
        )
        platform.kubectl(
            *("create", "secret", "generic", "foedus-s3"),
            f"--from-literal=access-key={s3.access_key}",
            f"--from-literal=secret-key={s3.secret_key}",
        )
        stack.callback(minio_server.empty, s3, name)
        endpoint = enter(opened(_port_of(f"http://{s3.endpoint}")))
        platform.install(
            *("--set", "replicas=2,engine=argo,store=s3,identity=keycloak"),
            *("--set", f"s3.endpoint={endpoint},s3.secure=false"),
            *("--set", f"s3.bucket={name},s3.existingSecret=foedus-s3"),
            *("--set", "database.existingSecret=foedus-database"),
            *("--set", f"keycloak.serverUrl=http://{enter(opened(_port_of(keycloak)))}"),
            *("--set", f"keycloak.realm={name},keycloak.issuer={keycloak}/realms/{name}"),
        )
        yield platform


def test_it_makes_the_model_of_one_machine_while_it_is_rolled_out_anew(
    platform: Platform, tmp_path: Path
) -> None:
    job_file = platform.folder / "job.yaml"

    _, job = platform.rolled_out_during(platform.foedus("submit", job_file)[0]["id"])

    assert job["phase"] == "succeeded"
    assert job["attempt"] == 1  # Argo's pods go on without us
    with running(tmp_path / "alone") as server:
        env = {"FOEDUS_URL": server.url, "FOEDUS_TOKEN": server.token}
        ended = foedus("submit", "--watch", job_file, home=tmp_path, env=env, timeout_s=200.0)
        assert ended.returncode == 0, ended.stderr
        listed = foedus("model", "list", "--json", home=tmp_path, env=env)
    assert platform.digest_of(job["id"]) == json.loads(listed.stdout)[0]["digest"]
