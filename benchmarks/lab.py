"""The lab's real servers, which some benchmarks measure against; ``FOEDUS_LAB`` names its folder.

They are the same that the tests of ``tests/cluster`` use, started in the same way.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sharing.s3_bucket import Address
from tests.cluster import conftest, minio_server
from tests.cluster.kubernetes import Kubernetes, build_image, started


def folder() -> Path:
    """Where the lab is; ends the benchmark if nothing says so."""
    path = Path(conftest.LAB)
    if not conftest.LAB or not (path / "services" / "up").is_file():
        sys.exit("this benchmark needs the lab's servers: set FOEDUS_LAB to the lab's folder")
    return path.resolve()


def postgres() -> str:
    """URL of a PostgreSQL in which databases may be made."""
    folder()
    return conftest.services("postgres")["LAB_POSTGRES_URL"]


def s3() -> Address:
    """The lab's MinIO, as its administrator."""
    folder()
    return minio_server.address_in(conftest.services("minio"))


def kubernetes() -> Kubernetes:
    """The lab's cluster with Argo."""
    return started(folder())


def image() -> str:
    """This checkout and its environment, in the cluster."""
    return build_image(folder())
