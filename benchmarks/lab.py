"""The lab's real servers, which some benchmarks measure against; ``FOEDUS_LAB`` names its folder.

They are the same that the tests of ``tests/cluster`` use, started in the same way.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from tests.cluster import conftest

services = conftest.services


def folder() -> Path:
    """Where the lab is; ends the benchmark if nothing says so."""
    path = Path(conftest.LAB)
    if not conftest.LAB or not (path / "services" / "up").is_file():
        sys.exit("this benchmark needs the lab's servers: set FOEDUS_LAB to the lab's folder")
    return path.resolve()


def postgres() -> str:
    """URL of a PostgreSQL in which databases may be made."""
    folder()
    return services("postgres")["LAB_POSTGRES_URL"]


def minio() -> Mapping[str, str]:
    """Settings that put objects into the lab's MinIO, but for the bucket."""
    folder()
    found = services("minio")
    return {
        "FOEDUS_STORE": "s3",
        "FOEDUS_S3_ENDPOINT": found["LAB_S3_ENDPOINT"],
        "FOEDUS_S3_SECURE": "false",
        "FOEDUS_S3_REGION": found["LAB_S3_REGION"],
        "FOEDUS_S3_ACCESS_KEY": found["LAB_S3_ACCESS_KEY"],
        "FOEDUS_S3_SECRET_KEY": found["LAB_S3_SECRET_KEY"],
    }
