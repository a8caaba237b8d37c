"""How one server is set up, read once at its start from ``FOEDUS_...`` in the environment."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def default_data_folder() -> Path:
    """Where data lives if nothing is said (XDG Base Directory Specification)."""
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "foedus"


class Settings(BaseSettings):
    """Settings of the control plane. Sizes are in units of 2**20 or 2**10 bytes."""

    model_config = SettingsConfigDict(env_prefix="FOEDUS_", extra="ignore", frozen=True)

    data: Path = Field(default_factory=default_data_folder)
    """Folder of everything that lasts: database, objects, scratch of attempts, logs. Default
    ``~/.local/share/foedus``. One server at a time may use it; whoever can read it can read
    every model and every upload."""

    host: str = "127.0.0.1"
    """Address to listen on. Any other than a loopback address puts bearer tokens on the network in
    clear text: put a proxy that speaks TLS before it."""

    port: int = Field(default=8470, ge=0, le=65535)
    """TCP port; 0 takes a free one, which is printed and written to ``endpoint`` in the data
    folder."""

    first_token_file: Path | None = None
    """File (made with mode 0600) for the administrator's token of the first start; by default
    it is printed once on standard output, and is nowhere afterwards."""

    max_running: int = Field(default=2, ge=1)
    """Jobs that run at a time; the others wait in line. Each takes the workers that it asks for."""

    max_attempts: int = Field(default=5, ge=1)
    """Attempts lost in a row, without a new round, after which a job fails."""

    reconcile_s: float = Field(default=0.2, gt=0)
    """Seconds between looks at open jobs; longer finds ended and lost attempts later."""

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

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level of the JSON log on standard error; ``debug`` adds every read request."""

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
