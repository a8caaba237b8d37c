from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from pydantic import ValidationError

from control_plane import settings as module
from control_plane.settings import KeycloakSettings, Settings, default_data_folder


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOEDUS_PORT", "9000")
    monkeypatch.setenv("FOEDUS_DATA", "/srv/foedus")
    monkeypatch.setenv("FOEDUS_TOKEN", "the client's, not ours")

    settings = Settings()

    assert (settings.port, settings.data) == (9000, Path("/srv/foedus"))


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "70000"), ("MAX_RUNNING", "0"), ("REQUEST_S", "soon")]
)
def test_a_wrong_setting_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"FOEDUS_{name}", value)

    with pytest.raises(ValidationError) as refused:
        Settings()

    assert refused.value.errors()[0]["loc"] == (name.lower(),)


@pytest.mark.parametrize(
    "url", ["mysql://u:hidden@h/n", "postgresql://u:hidden@h", "hidden", "postgresql://[hidden/n"]
)
@pytest.mark.parametrize("is_file", [False, True], ids=["in the environment", "in a file"])
def test_a_url_of_no_postgres_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, is_file: bool
) -> None:
    (tmp_path / "url").write_text(url)
    name = "DATABASE_URL_FILE" if is_file else "DATABASE_URL"
    monkeypatch.setenv(f"FOEDUS_{name}", str(tmp_path / "url") if is_file else url)

    with pytest.raises(ValidationError) as refused:
        Settings()

    assert refused.value.errors()[0]["loc"] == (name.lower(),)
    assert "hidden" not in str(refused.value)


def test_the_url_of_the_records_comes_from_its_file_and_is_no_part_of_what_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "url").write_text("postgresql://u:hidden@h/n\n")
    monkeypatch.setenv("FOEDUS_DATABASE_URL_FILE", str(tmp_path / "url"))
    from_file = Settings()
    monkeypatch.setenv("FOEDUS_DATABASE_URL", "postgresql://u:hidden@h/other")

    assert Settings.model_fields["database_url"].default is None
    assert from_file.records_url == "postgresql://u:hidden@h/n"
    assert Settings().records_url == "postgresql://u:hidden@h/other"
    assert "hidden" not in repr(Settings())


def test_the_data_folder_follows_the_desktop_specification(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg")

    assert default_data_folder() == Path("/xdg/foedus")


@pytest.mark.parametrize(
    ("host", "reachable"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("foedus.local", "foedus.local"),
    ],
)
def test_this_machine_reaches_the_server(host: str, reachable: str) -> None:
    assert Settings(host=host).reachable_host == reachable


def test_every_setting_says_what_it_does() -> None:
    source = inspect.getsource(module)
    for name in (*Settings.model_fields, *KeycloakSettings.model_fields):
        after = source.partition(f"\n    {name}: ")[2]
        assert after.split("\n\n")[0].count('"""') == 2, name


S3 = {"MINIO_ENDPOINT": "127.0.0.1:9000", "MINIO_ACCESS": "key", "MINIO_SECRET": "hidden"}


def test_a_bucket_may_be_named_as_minio_deployments_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**S3, "MINIO_SECURE": "false", "FOEDUS_STORE": "s3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FOEDUS_S3_ENDPOINT", "minio:9000")

    settings = Settings()

    assert (settings.s3_endpoint, settings.s3_access_key) == ("minio:9000", "key")
    assert not settings.s3_secure
    assert settings.s3_secret_key.get_secret_value() == "hidden"
    assert "hidden" not in repr(settings)


@pytest.mark.parametrize("missing", S3)
def test_a_bucket_without_address_or_credentials_is_refused(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name, value in {**S3, "FOEDUS_STORE": "s3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)

    with pytest.raises(ValidationError, match="FOEDUS_STORE=s3 needs FOEDUS_S3_") as refused:
        Settings()

    assert "hidden" not in refused.value.errors()[0]["msg"]


@pytest.mark.parametrize("endpoint", ["http://minio:9000", "minio:9000/path", "minio:port", "a b"])
def test_an_endpoint_is_a_host_and_a_port(endpoint: str) -> None:
    with pytest.raises(ValidationError):
        Settings(s3_endpoint=endpoint)


@pytest.mark.parametrize("prefix", ["FOEDUS_KEYCLOAK", "KEYCLOAK"])
def test_a_realm_comes_from_the_environment_under_either_name(
    monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.setenv("FOEDUS_IDENTITY", "keycloak")
    monkeypatch.setenv(f"{prefix}_SERVER_URL", "https://keycloak.example.org/auth/")
    monkeypatch.setenv(f"{prefix}_REALM", "iot-ngin")
    monkeypatch.setenv(f"{prefix}_CLIENT_ID", "ppfl")
    monkeypatch.setenv("KEYCLOAK_CLIENT_SECRET_KEY", "not needed, and in no way")
    monkeypatch.setenv("FOEDUS_KEYCLOAK_ROLES", '{"ml-developer": "developer"}')

    realm = Settings().keycloak

    assert realm is not None
    assert realm.issuer_url == "https://keycloak.example.org/auth/realms/iot-ngin"
    assert (realm.audience, realm.roles) == ("ppfl", {"ml-developer": "developer"})
    assert "not needed" not in repr(realm)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVER_URL", ""),
        ("SERVER_URL", "keycloak.example.org"),
        ("SERVER_URL", "https://admin:secret@keycloak.example.org"),
        ("REALM", "a/b"),
        ("AUDIENCE", ""),
        ("ROLES", '{"ml": "boss"}'),
        ("ROLES", "{}"),
    ],
)
def test_a_realm_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("FOEDUS_IDENTITY", "keycloak")
    monkeypatch.setenv("FOEDUS_KEYCLOAK_SERVER_URL", "https://keycloak.example.org")
    monkeypatch.setenv(f"FOEDUS_KEYCLOAK_{name}", value)

    with pytest.raises(ValidationError) as refused:
        Settings()

    assert refused.value.errors()[0]["loc"][0] == f"FOEDUS_KEYCLOAK_{name}"


def test_a_realm_must_be_told_where_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().keycloak is None
    monkeypatch.setenv("FOEDUS_IDENTITY", "keycloak")

    with pytest.raises(ValidationError) as refused:
        Settings()

    assert refused.value.errors()[0]["loc"] == ("FOEDUS_KEYCLOAK_SERVER_URL",)


def test_the_argo_engine_needs_an_image_and_an_address_that_pods_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FOEDUS_ENGINE", "argo")
    monkeypatch.setenv("FOEDUS_IMAGE", "foedus:1")

    with pytest.raises(ValidationError, match="needs FOEDUS_IMAGE and FOEDUS_ENDPOINT_URL"):
        Settings()

    monkeypatch.setenv("FOEDUS_ENDPOINT_URL", "http://foedus:8470")
    monkeypatch.setenv("FOEDUS_NODE_SELECTOR", '{"pool": "gpu"}')
    assert Settings().node_selector == {"pool": "gpu"}


@pytest.mark.parametrize(
    "url", ["foedus:8470", "http://{{workflow.name}}", "http://a b", "file:///a"]
)
def test_an_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("FOEDUS_ENDPOINT_URL", url)

    with pytest.raises(ValidationError):
        Settings()


def test_nothing_can_be_retained_in_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOEDUS_S3_RETENTION_DAYS", "30")

    with pytest.raises(ValidationError, match="FOEDUS_STORE=s3"):
        Settings()
