"""How to reach a Kubernetes API server, from a kubeconfig or from within a cluster.

Source: Kubernetes, "Organizing Cluster Access Using kubeconfig Files" and "Accessing the API from
a Pod". Left out on purpose: plugins that run programs to get credentials, and user/password.
"""

from __future__ import annotations

import base64
import ssl
import tempfile
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

IN_CLUSTER: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT: Final = httpx.Timeout(30.0, connect=5.0)


class ClusterUnknown(Exception):
    """It is not said, or not in a way that is understood, how to reach the cluster."""


@dataclass(frozen=True, slots=True, repr=False)
class Cluster:
    """One API server, and who we are to it.

    Attributes:
        url: Where it listens.
        tls: Whom to trust, and our certificate if we have one.
        token: Gives the bearer token, anew for every request, since it may be rotated; None
            without one.
    """

    url: str
    tls: ssl.SSLContext
    token: Callable[[], str] | None = None


class _Server(msgspec.Struct, frozen=True):
    server: str
    ca: str | None = msgspec.field(default=None, name="certificate-authority-data")
    ca_file: str | None = msgspec.field(default=None, name="certificate-authority")


class _User(msgspec.Struct, frozen=True):
    token: str | None = None
    token_file: str | None = msgspec.field(default=None, name="tokenFile")
    certificate: str | None = msgspec.field(default=None, name="client-certificate-data")
    certificate_file: str | None = msgspec.field(default=None, name="client-certificate")
    key: str | None = msgspec.field(default=None, name="client-key-data")
    key_file: str | None = msgspec.field(default=None, name="client-key")


class _Context(msgspec.Struct, frozen=True):
    cluster: str
    user: str


class _NamedServer(msgspec.Struct, frozen=True):
    name: str
    cluster: _Server


class _NamedUser(msgspec.Struct, frozen=True):
    name: str
    user: _User | None = None


class _NamedContext(msgspec.Struct, frozen=True):
    name: str
    context: _Context


class _Config(msgspec.Struct, frozen=True):
    current: str = msgspec.field(name="current-context")
    clusters: tuple[_NamedServer, ...]
    users: tuple[_NamedUser, ...]
    contexts: tuple[_NamedContext, ...]


def read_kubeconfig(path: Path) -> Cluster:
    """The cluster of the file's current context.

    Raises:
        ClusterUnknown: The file is not there, is something else, or names what is not there.
    """
    try:
        config = msgspec.convert(YAML(typ="safe").load(path.read_bytes()), _Config)
        context = {one.name: one.context for one in config.contexts}[config.current]
        server = {one.name: one.cluster for one in config.clusters}[context.cluster]
        user = {one.name: one.user for one in config.users}[context.user] or _User()
        if not server.server.startswith("https://"):
            raise ClusterUnknown(f"{path}: the API server must be reached by https")
        tls = ssl.create_default_context()
        if ca := _content(path, server.ca, server.ca_file):
            tls = ssl.create_default_context(cadata=ca.decode())
        certificate = _content(path, user.certificate, user.certificate_file)
        key = _content(path, user.key, user.key_file)
        if certificate and key:
            _present(tls, certificate, key)
    except (OSError, YAMLError) as error:
        raise ClusterUnknown(f"{path} can not be read: {type(error).__name__}") from error
    except KeyError as error:
        raise ClusterUnknown(f"{path} names {error}, and does not have it") from error
    except (msgspec.ValidationError, ValueError, ssl.SSLError) as error:
        raise ClusterUnknown(f"{path} is no kubeconfig that is understood: {error}") from error
    return Cluster(server.server, tls, _token_of(path, user))


def in_cluster(environ: Mapping[str, str], folder: Path = IN_CLUSTER) -> Cluster:
    """The cluster that this process is a pod of, as its service account.

    Raises:
        ClusterUnknown: It is none, or has no service account token.
    """
    host = environ.get("KUBERNETES_SERVICE_HOST")
    if not host or not (folder / "token").is_file():
        raise ClusterUnknown("this is no pod with a service account; give a kubeconfig")
    address = f"[{host}]" if ":" in host else host
    port = environ.get("KUBERNETES_SERVICE_PORT", "443")
    tls = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    return Cluster(f"https://{address}:{port}", tls, lambda: (folder / "token").read_text().strip())


def open_client(cluster: Cluster) -> httpx.AsyncClient:
    """A client of its API that takes nothing from the environment."""
    return httpx.AsyncClient(
        base_url=cluster.url,
        verify=cluster.tls,
        timeout=_TIMEOUT,
        trust_env=False,
        auth=_Bearer(cluster.token) if cluster.token else None,
    )


class _Bearer(httpx.Auth):
    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._token()}"
        yield request


def _content(config: Path, inline: str | None, file: str | None) -> bytes | None:
    """What is given in place, or by a path relative to the configuration."""
    if inline is not None:
        return base64.b64decode(inline, validate=True)
    return None if file is None else (config.parent / file).read_bytes()


def _present(tls: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Load our certificate; ``ssl`` takes it from files alone, so it lies in one for a moment."""
    with tempfile.NamedTemporaryFile() as file:  # made with mode 0600
        file.write(certificate + b"\n" + key)
        file.flush()
        tls.load_cert_chain(file.name)


def _token_of(config: Path, user: _User) -> Callable[[], str] | None:
    if user.token_file is not None:
        path = config.parent / user.token_file
        return lambda: path.read_text().strip()
    if user.token is not None:
        token = user.token
        return lambda: token
    return None
