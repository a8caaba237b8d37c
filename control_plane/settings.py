"""How one server is set up, read once at its start from ``FOEDUS_...`` in the environment."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from clients.resources import Role


def default_data_folder() -> Path:
    """Where data lives if nothing is said (XDG Base Directory Specification)."""
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "foedus"


def _either(name: str, *others: str) -> Any:  # noqa: ANN401 - as pydantic's own
    """Names of a variable: ours, and those of the documents that this platform follows."""
    return AliasChoices(f"FOEDUS_KEYCLOAK_{name}", *others)


class KeycloakSettings(BaseSettings):
    """How users of a Keycloak realm are known, where ``FOEDUS_IDENTITY=keycloak``.

    No client secret is needed: tokens are verified with the realm's public keys.
    """

    model_config = SettingsConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    server_url: str = Field(
        validation_alias=_either("SERVER_URL", "KEYCLOAK_SERVER_URL"),
        pattern=r"^https?://[^/@?#]+(/[^@?#]*)?$",
    )
    """Where this server reaches Keycloak, as https://keycloak.example.org. Over plain http whoever
    is between could give other keys, and so be anyone."""

    realm: str = Field(
        default="foedus",
        validation_alias=_either("REALM", "KEYCLOAK_REALM"),
        pattern=r"^[^/?#]+$",
    )
    """Name of the realm; ``foedus admin keycloak import`` makes one that fits."""

    audience: str = Field(
        default="foedus-api",
        validation_alias=_either("AUDIENCE", "FOEDUS_KEYCLOAK_CLIENT_ID", "KEYCLOAK_CLIENT_ID"),
        min_length=1,
    )
    """Client that stands for this platform in the realm; tokens without it in ``aud`` are another
    service's and refused."""

    issuer: str = Field(default="", validation_alias=_either("ISSUER"))
    """What tokens say in ``iss``, if it is not SERVER_URL/realms/REALM: users reach Keycloak by
    another name than this server does."""

    cli_client_id: str = Field(default="foedus-cli", validation_alias=_either("CLI_CLIENT_ID"))
    """Client by which ``foedus login --device`` logs in; told to anyone at ``/v1/login``."""

    organisation_claim: str = Field(
        default="organisation", validation_alias=_either("ORGANISATION_CLAIM"), min_length=1
    )
    """Claim that names the user's organisation, which is added when it first comes. Users must not
    be able to change it themselves."""

    roles: dict[str, Role] = Field(
        default={role.value: role for role in Role}, validation_alias=_either("ROLES"), min_length=1
    )
    """Our role for each role of the realm, as JSON: {"ml-developer": "developer"}; by default those
    of the same name. Users with none of them are refused."""

    @field_validator("server_url", "issuer")
    @classmethod
    def _without_slash(cls, url: str) -> str:
        return url.rstrip("/")

    @property
    def issuer_url(self) -> str:
        """What tokens of the realm say in ``iss``."""
        return self.issuer or f"{self.server_url}/realms/{self.realm}"

    @property
    def base_url(self) -> str:
        """Where this server reaches Keycloak, fit to be followed by a path."""
        return f"{self.server_url}/"


def require_postgres(url: str) -> None:
    """Raise unless ``url`` is one of PostgreSQL's; the message does not repeat it.

    Raises:
        ValueError: It is not.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("is no URL") from None
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError("must begin with postgresql://")
    if parts.path in ("", "/"):
        raise ValueError("must name a database: postgresql://user:password@host:port/name")


class Settings(BaseSettings):
    """Settings of the control plane. Sizes are in units of 2**20 or 2**10 bytes.

    Some of the object store's are also read from the names that MinIO deployments commonly give
    them (``MINIO_ENDPOINT``, ``MINIO_ACCESS``, ``MINIO_SECRET``, ``MINIO_SECURE``); ours win.
    """

    model_config = SettingsConfigDict(
        env_prefix="FOEDUS_",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
    )

    data: Path = Field(default_factory=default_data_folder)
    """Folder of everything that lasts: database (with the logs), objects, scratch. Default
    ``~/.local/share/foedus``. One server at a time may use it; whoever can read it can read
    every model and every upload."""

    database_url: SecretStr | None = None
    """Records in PostgreSQL, as ``postgresql://user:password@host:port/name``; by default they are
    in SQLite in the data folder. Several servers, each with a data folder of its own, may then
    share them if they share objects and engine, too."""

    database_url_file: Path | None = None
    """File with that URL, for a mounted secret; ``FOEDUS_DATABASE_URL`` wins."""

    lease_s: float = Field(default=10.0, ge=1.0)
    """Seconds after which another server on the same records takes on the runs of one that is
    silent."""

    host: str = "127.0.0.1"
    """Address to listen on. Any other than a loopback address puts bearer tokens on the network in
    clear text: put a proxy that speaks TLS before it."""

    port: int = Field(default=8470, ge=0, le=65535)
    """TCP port; 0 takes a free one, which is printed and written to ``endpoint`` in the data
    folder."""

    first_token_file: Path | None = None
    """File (made with mode 0600) for the administrator's token of the first start; by default
    it is printed once on standard output, and is nowhere afterwards."""

    identity: Literal["local", "keycloak"] = "local"
    """Who says who is calling: ``local`` knows users and tokens of its own, ``keycloak`` besides
    these the access tokens of a Keycloak realm."""

    keycloak: KeycloakSettings | None = Field(
        default_factory=lambda so_far: (
            KeycloakSettings()  # type: ignore[call-arg]  # the environment gives what is missing
            if so_far.get("identity") == "keycloak"
            else None
        )
    )
    """That realm, as ``FOEDUS_KEYCLOAK_...`` describe it; None under another identity."""

    max_running: int = Field(default=2, ge=1)
    """Jobs that run at a time, on all servers together; the others wait in line. Each takes the
    workers that it asks for."""

    max_attempts: int = Field(default=5, ge=1)
    """Attempts lost in a row, without a new round, after which a job fails."""

    quota_running: int | None = Field(default=None, ge=0)
    """Jobs of one organisation that run at a time, unless it has a quota of its own; by default as
    many as run at all. Others of it wait in line, and say so."""

    quota_workers: int | None = Field(default=None, ge=0)
    """Worker processes of one organisation's running jobs together, unless it has a quota of its
    own; a job that leaves their number open counts for 4. No bound by default."""

    quota_storage_mb: int | None = Field(default=None, ge=0)
    """What one organisation's uploads, artifacts and models may take together, in MiB, unless it
    has a quota of its own; then uploads and jobs answer 429. No bound by default."""

    quota_open_jobs: int | None = Field(default=1000, ge=0)
    """Jobs of one organisation that have not ended, unless it has a quota of its own; one more
    answers 429."""

    retain_checkpoints_days: float = Field(default=7.0, ge=0)
    """Days after the end of a job for which what only its going on needed is kept: checkpoints, and
    what lost attempts made. Then it is wiped; artifacts, models, transcripts and manifests stay.
    ``inf`` keeps it until the job is deleted."""

    retain_logs_days: float = Field(default=90.0, ge=0)
    """Days after the end of a job for which the logs of its steps are kept; then they are wiped.
    ``inf`` keeps them until the job is deleted."""

    reconcile_s: float = Field(default=0.2, gt=0)
    """Seconds between looks at open jobs; longer finds ended and lost attempts later."""

    engine: Literal["local", "argo"] = "local"
    """What runs the jobs: child processes of this server, or pods of Argo workflows, for which the
    settings down to ``runs_per_organisation`` hold."""

    image: str | None = None
    """Image of the steps' pods: Python and this platform, at this server's version. ``argo``
    needs it."""

    endpoint_url: str | None = Field(default=None, pattern=r"^https?://[^\s/{}]+(/[^\s{}]*)?$")
    """Where pods reach this server. ``argo`` needs it, and ``host`` must then be an address that
    pods can reach."""

    kubeconfig: Path | None = None
    """File that says where the cluster is and who we are to it; by default this server is itself a
    pod of the cluster."""

    namespace: str = Field(default="foedus", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """Namespace of the workflows; ``deploy/argo/namespace.yaml`` says what it must hold."""

    argo_url: str | None = Field(default=None, pattern=r"^https?://[^\s/{}]+(/[^\s{}]*)?$")
    """Argo's user interface, as browsers reach it, for links from jobs to their workflows."""

    node_selector: dict[str, str] = {}
    """Labels, as a JSON object, of the machines that pods may run on; by default any."""

    scratch_mb: int = Field(default=10_240, ge=64)
    """Room for the files of one step, in MiB; a pod that takes more is evicted, and the attempt
    lost."""

    runs_per_organisation: int | None = Field(default=None, ge=1)
    """Workflows of one organisation that run at a time, further ones wait in the cluster; by
    default ``max_running`` alone decides. It is kept in the ConfigMap ``foedus-runs``, where every
    start of a job writes it anew."""

    program_mb: int = Field(default=64, ge=1)
    """Largest program that can be uploaded, in MiB; larger ones answer 413."""

    dataset_mb: int = Field(default=1024, ge=1)
    """Largest data set that can be uploaded, in MiB; larger ones answer 413."""

    object_mb: int = Field(default=4096, ge=1)
    """Largest object (checkpoint, model) that a step may store, in MiB; larger ones fail the
    attempt."""

    body_kb: int = Field(default=1024, ge=1)
    """Largest body that is held in memory, JSON or a part of a log, in KiB; larger ones answer
    413."""

    request_s: float = Field(default=30.0, gt=0)
    """Longest that an answer may take to begin, in seconds; then 503. Uploads and
    downloads are not bound by it."""

    stall_s: float = Field(default=60.0, gt=0)
    """Longest pause within a body that is being received, in seconds; then 408."""

    heartbeat_s: float = Field(default=15.0, gt=0)
    """Seconds between signs of life on a silent event stream; proxies cut silent ones."""

    max_streams: int = Field(default=2000, ge=1)
    """Event streams that are open at a time; more answer 429. Each takes a connection, so the limit
    on open files (``ulimit -n``) must be above it."""

    max_user_streams: int = Field(default=200, ge=1)
    """Event streams that one user has open at a time; more answer 429."""

    probe_s: float = Field(default=120.0, gt=0)
    """Longest that trying out an uploaded program or data set may take, in seconds."""

    shutdown_s: float = Field(default=5.0, gt=0)
    """How long requests under way may take after SIGTERM, in seconds; attempts go on regardless."""

    store: Literal["directory", "s3"] = "directory"
    """Where objects (models, data sets, checkpoints) lie: ``directory``, under the data folder; or
    ``s3``, in a bucket of an S3 server such as MinIO, which the ``s3_...`` settings name. Objects
    are not moved when it changes."""

    s3_endpoint: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])?(:[0-9]+)?$",
        validation_alias=AliasChoices("FOEDUS_S3_ENDPOINT", "MINIO_ENDPOINT"),
    )
    """``HOST`` or ``HOST:PORT`` of the S3 server, without ``http://``."""

    s3_secure: bool = Field(
        default=True, validation_alias=AliasChoices("FOEDUS_S3_SECURE", "MINIO_SECURE")
    )
    """Whether to speak HTTPS with it. If not, whoever listens can read every object."""

    s3_ca_file: Path | None = None
    """Certificates (PEM) to trust for it; by default those of the public authorities."""

    s3_region: str = "us-east-1"
    """Region of the bucket; MinIO has this one unless it was set up otherwise."""

    s3_bucket: str = Field(default="foedus", pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
    """Bucket of the objects. It is made at the start if it is not there, with rules that
    clear up what died half-way; that needs the right s3:CreateBucket."""

    s3_access_key: str = Field(
        default="", validation_alias=AliasChoices("FOEDUS_S3_ACCESS_KEY", "MINIO_ACCESS")
    )
    """Whose credentials. They need s3:ListBucket, s3:GetObject, s3:PutObject,
    s3:DeleteObject, s3:AbortMultipartUpload and s3:ListMultipartUploadParts in the bucket, and no
    more once it is there."""

    s3_secret_key: SecretStr = Field(
        default=SecretStr(""),
        validation_alias=AliasChoices("FOEDUS_S3_SECRET_KEY", "MINIO_SECRET"),
    )
    """Secret of the access key; ``s3_secret_key_file`` keeps it out of the environment."""

    s3_secret_key_file: Path | None = None
    """File that holds the secret of the access key; read once at the start, and wins."""

    s3_public_endpoint: str = Field(default="", pattern=r"^[A-Za-z0-9.:\[\]-]*$")
    """``HOST[:PORT]`` by which clients reach the S3 server, for links to objects; by
    default the endpoint itself."""

    s3_retention_days: int | None = Field(default=None, ge=1, le=36_500)
    """Days for which the S3 server keeps manifests, transcripts and model cards of jobs that
    succeeded from being removed by anybody, its administrator included (object lock, compliance).
    The bucket must have been made with object lock, as this server does; by default nothing is
    retained."""

    link_s: int = Field(default=300, ge=1, le=604800)
    """Seconds for which a link to an object, or to a part of an upload, is good. Whoever has the
    link has the object, or sends the part."""

    otlp_endpoint: str | None = None
    """OpenTelemetry collector that spans of requests and ended runs are sent to by OTLP over HTTP,
    as ``http://127.0.0.1:4318``. None by default; spans are dropped while it is away."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level of the JSON log on standard error; ``debug`` adds every read request."""

    @model_validator(mode="after")
    def _has_what_its_store_needs(self) -> Self:
        if self.store == "s3":
            named = {
                "FOEDUS_S3_ENDPOINT": self.s3_endpoint,
                "FOEDUS_S3_ACCESS_KEY": self.s3_access_key,
            }
            if self.s3_secret_key_file is None:
                named["FOEDUS_S3_SECRET_KEY"] = self.s3_secret_key.get_secret_value()
            if missing := [name for name, value in named.items() if not value]:
                raise ValueError(f"FOEDUS_STORE=s3 needs {', '.join(missing)}")
        elif self.s3_retention_days is not None:
            raise ValueError("FOEDUS_S3_RETENTION_DAYS needs FOEDUS_STORE=s3")
        return self

    @field_validator("database_url")
    @classmethod
    def _is_of_postgres(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            require_postgres(url.get_secret_value())
        return url

    @field_validator("database_url_file")
    @classmethod
    def _holds_one_of_postgres(cls, file: Path | None) -> Path | None:
        if file is not None:
            require_postgres(_content(file))
        return file

    @property
    def records_url(self) -> str | None:
        """Where PostgreSQL is, with its password; None for SQLite in the data folder."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return None if self.database_url_file is None else _content(self.database_url_file)

    @model_validator(mode="after")
    def _has_what_its_engine_needs(self) -> Self:
        if self.engine == "argo" and not (self.image and self.endpoint_url):
            raise ValueError("FOEDUS_ENGINE=argo needs FOEDUS_IMAGE and FOEDUS_ENDPOINT_URL")
        return self

    @property
    def reachable_host(self) -> str:
        """The host under which this very machine reaches the server, fit for a URL."""
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return self.host
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "[::1]"
        return self.host if address.version == 4 else f"[{self.host}]"


def _content(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"{file} cannot be read") from None
