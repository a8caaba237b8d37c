"""The chart: what it renders, what the API server says to that, and a release that is rolled."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.cluster.chart_release import (
    CHART,
    PLATFORM,
    Release,
    build_image,
    done,
    fresh_namespace,
    opened,
    rendered,
    run,
    template,
)
from tests.cluster.own_postgres import OwnPostgres

LAB = Path(os.environ.get("FOEDUS_LAB", "")).absolute()
VALUE_SETS = {
    "defaults": (),
    "platform": ("-f", str(PLATFORM)),
    "argo alone": ("--set", "engine=argo,argo.nodeSelector.disk=ssd"),
    "pinned, with a proxy's certificate": (
        *("--set", "image.digest=sha256:" + 64 * "a", "--set", "store=s3,s3.endpoint=s3:9000"),
        *("--set", "s3.existingSecret=a,s3.caSecret=b,imagePullSecrets[0].name=c"),
    ),
    "no network policies": ("--set", "networkPolicy.enabled=false,persistence.storageClass=lab"),
}
JOB = """\
name: rolled
program: {kind: builtin, name: digits-mlp}
runtime: {kind: native, workers: 1}
data: {kind: partitioned, dataset: digits, sites: 3, holdout: 0.2}
init: {kind: seed, seed: 11}
local: {epochs: 4, optimizer: {kind: sgd, lr: 0.05}}
rounds: 60
output: {onnx: []}
"""


@pytest.fixture(scope="module")
def cluster() -> None:
    subprocess.run([LAB / "up"], check=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def namespace(cluster: None) -> Iterator[str]:
    """One in which nothing is."""
    with fresh_namespace() as name:
        yield name


@pytest.fixture(scope="module")
def release(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """An installed one, with SQLite and objects on its volume."""
    build_image(LAB)
    with fresh_namespace() as name:
        release = Release(name, tmp_path_factory.mktemp("client"))
        (release.folder / "job.yaml").write_text(JOB)
        release.install()
        yield release


@pytest.fixture
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL, as pods see it."""
    with OwnPostgres() as server, opened(server.port) as address:
        yield f"postgresql://postgres@{address}/postgres"


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS.keys())
def test_lint_has_nothing_against_it(values: tuple[str, ...]) -> None:
    done("helm", "lint", "--strict", "--kube-version", "1.34", CHART, *values)


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS.keys())
def test_the_api_server_takes_every_field(values: tuple[str, ...], namespace: str) -> None:
    # Kinds of the Prometheus operator are not in every cluster.
    options = (*values, "--set", "serviceMonitor.enabled=false")
    text = template(namespace, *options).stdout

    said = done(
        *("kubectl", "apply", "-n", namespace, "-f", "-", "--dry-run=server", "--validate=strict"),
        stdin=text,
    )

    assert len(said.splitlines()) == len(rendered(*options))


def test_the_api_server_refuses_a_misspelt_field(namespace: str) -> None:
    text = template(namespace).stdout.replace("maxUnavailable", "maxUnavailible")

    ended = run(
        *("kubectl", "apply", "-n", namespace, "-f", "-", "--dry-run=server", "--validate=strict"),
        stdin=text,
    )

    assert ended.returncode != 0
    assert "maxUnavailible" in ended.stderr


@pytest.mark.parametrize(
    ("option", "told"),
    {
        "a misspelt value": ("replica=2", "replica"),
        "a misspelt value within": ("s3.buckt=x", "buckt"),
        "a misspelt setting": ("settings.max_runing=2", "max_runing"),
        "an unknown engine": ("engine=slurm", "engine"),
        "several on one volume": ("replicas=2", "more than one needs engine argo"),
        "a store without credentials": ("store=s3,s3.endpoint=s3:9000", "s3.existingSecret"),
        "an identity without a server": ("identity=keycloak", "keycloak.serverUrl"),
        "an ingress without TLS": ("ingress.enabled=true,ingress.host=a.b", "ingress.tlsSecret"),
        "a secret in the values": ("database.url=postgresql://a:b@c/d", "url"),
    }.values(),
)
def test_wrong_values_are_refused_by_name(option: str, told: str) -> None:
    ended = template("somewhere", "--set", option)

    assert ended.returncode != 0
    assert told in ended.stderr


def pods_of(objects: dict[tuple[str, str], Any]) -> list[Any]:
    """Specifications of pods, in whatever makes them."""
    return [
        one["spec"]["template"]["spec"]
        for (kind, _), one in objects.items()
        if kind in ("StatefulSet", "Job")
    ]


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS.keys())
def test_every_pod_gives_up_what_it_does_not_need(values: tuple[str, ...]) -> None:
    pods = pods_of(rendered(*values))

    assert pods
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] != 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
        for container in pod["containers"]:
            assert container["resources"]["limits"]["memory"]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "privileged": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
            }


def test_there_are_no_rights_without_a_cluster_to_use_them_on() -> None:
    objects = rendered()

    kinds = {kind for kind, _ in objects}
    (pod,) = pods_of(objects)
    assert not {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "Secret"} & kinds
    assert pod["automountServiceAccountToken"] is False


def test_rights_are_those_of_the_engine_and_of_one_namespace() -> None:
    objects = rendered(*VALUE_SETS["platform"])

    assert not [kind for kind, _ in objects if kind.startswith("Cluster")]
    assert {name: one["rules"] for (kind, name), one in objects.items() if kind == "Role"} == {
        "foedus": [
            {
                "apiGroups": ["argoproj.io"],
                "resources": ["workflows"],
                "verbs": ["create", "get", "list", "watch", "patch", "delete"],
            },
            {
                "apiGroups": [""],
                "resources": ["secrets", "services"],
                "verbs": ["create", "patch", "delete"],
            },
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
            {
                "apiGroups": [""],
                "resources": ["configmaps"],
                "resourceNames": ["foedus-runs"],
                "verbs": ["patch"],
            },
        ],
        "foedus-executor": [
            {
                "apiGroups": ["argoproj.io"],
                "resources": ["workflowtaskresults"],
                "verbs": ["create", "patch"],
            }
        ],
    }
    for (kind, name), one in objects.items():
        if kind == "RoleBinding":
            assert one["roleRef"]["name"] == name
            assert [subject["name"] for subject in one["subjects"]] == [name]


def test_secrets_are_named_and_never_held() -> None:
    objects = rendered(*VALUE_SETS["platform"])

    held = [one for (kind, _), one in objects.items() if kind == "Secret"]
    variables = objects["ConfigMap", "foedus"]["data"]
    assert [one["type"] for one in held] == ["kubernetes.io/service-account-token"]
    assert not any("data" in one or "stringData" in one for one in held)
    assert variables["FOEDUS_DATABASE_URL_FILE"] == "/run/foedus/database/url"
    assert variables["FOEDUS_S3_SECRET_KEY_FILE"] == "/run/foedus/s3/secret-key"
    assert not {"FOEDUS_DATABASE_URL", "FOEDUS_S3_SECRET_KEY"} & set(variables)


def test_network_policies_close_everything_and_open_what_is_needed() -> None:
    objects = rendered(*VALUE_SETS["platform"])

    policies = {name: one["spec"] for (kind, name), one in objects.items() if "Network" in kind}
    ours = {"matchLabels": {"app.kubernetes.io/name": "foedus"}}
    steps = {
        "matchLabels": {
            "app.kubernetes.io/name": "foedus",
            "app.kubernetes.io/managed-by": "foedus",
        },
        "matchExpressions": [{"key": "foedus.dev/part", "operator": "NotIn", "values": ["shard"]}],
    }
    assert set(policies) == {
        *("foedus-nothing", "foedus-names", "foedus-control-plane", "foedus-database"),
        *("foedus-steps", "foedus-shards", "foedus-server-steps"),
    }
    assert policies["foedus-nothing"] == {
        "podSelector": ours,
        "policyTypes": ["Ingress", "Egress"],
    }
    assert policies["foedus-names"]["podSelector"] == ours
    (entrance,) = policies["foedus-control-plane"]["ingress"]
    assert {"podSelector": steps} in entrance["from"]
    assert len(entrance["from"]) == 4
    assert policies["foedus-steps"]["podSelector"] == steps
    assert policies["foedus-steps"]["policyTypes"] == ["Egress"]
    to_control_plane, to_api_server = policies["foedus-steps"]["egress"]
    assert to_control_plane["ports"] == [{"protocol": "TCP", "port": "http"}]
    assert [port["port"] for port in to_api_server["ports"]] == [443, 6443]
    (to_database,) = policies["foedus-database"]["egress"]
    assert to_database["ports"] == [{"protocol": "TCP", "port": 5432}]
    assert to_database["to"]


def test_a_shard_reaches_its_server_step_and_nobody_else_reaches_that() -> None:
    objects = rendered(*VALUE_SETS["platform"])

    def part(name: str) -> Any:
        labels = {"app.kubernetes.io/managed-by": "foedus", "foedus.dev/part": name}
        return {"podSelector": {"matchLabels": labels}}

    of_shards = objects["NetworkPolicy", "foedus-shards"]["spec"]
    of_servers = objects["NetworkPolicy", "foedus-server-steps"]["spec"]
    port = [{"protocol": "TCP", "port": 8471}]
    to_server, to_api_server = of_shards["egress"]
    assert {"podSelector": of_shards["podSelector"]} == part("shard")
    assert of_shards["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in of_shards
    assert to_server == {"ports": port, "to": [part("server")]}
    assert [one["port"] for one in to_api_server["ports"]] == [443, 6443]
    assert {"podSelector": of_servers["podSelector"]} == part("server")
    assert of_servers["ingress"] == [{"ports": port, "from": [part("shard")]}]


def test_the_chart_and_the_manifest_for_a_namespace_give_the_same_rights() -> None:
    chart = rendered("--set", "engine=argo")
    manifest = list(YAML(typ="safe").load_all((CHART.parent / "argo/namespace.yaml").read_text()))
    by_hand = {(one["kind"], one["metadata"]["name"]): one for one in manifest}

    for ours, theirs in (("foedus", "foedus-control-plane"), ("foedus-executor",) * 2):
        assert chart["Role", ours]["rules"] == by_hand["Role", theirs]["rules"]
    server_steps = ("NetworkPolicy", "foedus-server-steps")
    assert chart[server_steps]["spec"] == by_hand[server_steps]["spec"]
    account = ("ServiceAccount", "foedus-executor")
    assert chart[account]["automountServiceAccountToken"] is False
    assert by_hand[account]["automountServiceAccountToken"] is False


def test_without_argo_nobody_reaches_the_api_server() -> None:
    objects = rendered()

    assert objects["NetworkPolicy", "foedus-control-plane"]["spec"].get("egress") is None
    assert ("NetworkPolicy", "foedus-steps") not in objects


def test_policies_select_the_pods_that_there_are() -> None:
    objects = rendered(*VALUE_SETS["platform"])

    for kind, component in (("StatefulSet", "control-plane"), ("Job", "migrations")):
        (one,) = (one for (found, _), one in objects.items() if found == kind)
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "foedus"
        assert labels["app.kubernetes.io/instance"] == "foedus"
        assert labels["app.kubernetes.io/component"] == component
        assert labels["app.kubernetes.io/managed-by"] != "foedus"


def test_tables_are_brought_up_to_date_before_servers_start() -> None:
    (job,) = (one for (kind, _), one in rendered(*VALUE_SETS["platform"]).items() if kind == "Job")

    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-P", "-m", "control_plane", "migrate"]


def test_a_large_number_stays_a_number() -> None:
    (variables,) = (
        one["data"]
        for (kind, _), one in rendered("--set", "settings.object_mb=3000000").items()
        if kind == "ConfigMap"
    )

    assert variables["FOEDUS_OBJECT_MB"] == "3000000"


def test_an_installed_release_is_closed_to_its_own_container(release: Release) -> None:
    (pod,) = release.get("pods", "-l", "app.kubernetes.io/component=control-plane")["items"]

    said = release.kubectl(
        *("exec", "foedus-0", "--", "sh", "-c"),
        "id -u; touch /srv/x 2>&1; ls /var/run/secrets 2>&1; grep CapEff /proc/1/status;"
        "grep -c first-token /proc/1/environ; stat -c %a /var/lib/foedus/first-token",
    ).splitlines()

    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    assert said[0] == "65532"
    assert "Read-only file system" in said[1]
    assert "No such file" in said[2]
    assert said[3].split() == ["CapEff:", "0000000000000000"]
    assert said[-1] == "600"
    assert "token" not in release.kubectl("logs", "foedus-0")


def test_a_rollout_with_a_run_in_flight_loses_nothing(release: Release) -> None:
    job_file = release.folder / "job.yaml"
    undisturbed = release.foedus("submit", job_file)[0]["id"]
    release.foedus("watch", undisturbed)

    rolled = release.foedus("submit", job_file)[0]["id"]
    events, job = release.rolled_out_during(rolled)

    finished = [event["fields"]["round"] for event in events if event["kind"] == "round.finished"]
    assert job["phase"] == "succeeded"
    assert job["attempt"] > 1
    assert sorted(set(finished)) == list(range(1, 61))
    assert release.digest_of(rolled) == release.digest_of(undisturbed)


def test_an_upgrade_with_other_settings_keeps_jobs_and_models(release: Release) -> None:
    before = release.foedus("model", "list")

    release.install("--set", "settings.max_running=3")

    assert release.foedus("model", "list") == before
    assert "FOEDUS_MAX_RUNNING=3" in release.kubectl("exec", "foedus-0", "--", "env")


def test_with_postgres_a_job_makes_the_tables_before_the_server_starts(
    cluster: None, postgres: str, tmp_path: Path
) -> None:
    build_image(LAB)
    with fresh_namespace() as namespace:
        release = Release(namespace, tmp_path)
        release.kubectl(
            *("create", "secret", "generic", "foedus-database", f"--from-literal=url={postgres}")
        )
        for _ in ("install", "upgrade"):
            release.install("--set", "database.existingSecret=foedus-database")

        events = release.get("events")["items"]
        hooks = [one for one in events if "migrations" in one["involvedObject"]["name"]]
        assert [one for one in hooks if one["reason"] == "Completed"]
        assert release.foedus("jobs") == [[]]
        files = release.kubectl("exec", "foedus-0", "--", "ls", "/var/lib/foedus/data").split()
        assert "foedus.db" not in files
