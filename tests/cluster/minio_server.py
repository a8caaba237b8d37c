"""What tests do to MinIO behind the store's back, and MinIO servers of their own to be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
from minio import Minio
from minio.error import S3Error

from sharing.s3_bucket import Address


def address_in(found: Mapping[str, str]) -> Address:
    """The lab's MinIO as its administrator, from what the lab says of it."""
    return Address(
        endpoint=found["LAB_S3_ENDPOINT"],
        secure=False,
        region=found["LAB_S3_REGION"],
        access_key=found["LAB_S3_ACCESS_KEY"],
        secret_key=found["LAB_S3_SECRET_KEY"],
    )


def client(address: Address) -> Minio:
    """The SDK's own client."""
    return Minio(
        address.endpoint,
        access_key=address.access_key,
        secret_key=address.secret_key,
        session_token=address.session_token or None,
        secure=address.secure,
        region=address.region,
    )


def empty(address: Address, bucket: str) -> None:
    """Remove a bucket with all that is in it."""
    minio = client(address)
    with contextlib.suppress(S3Error):
        for found in minio.list_objects(bucket, recursive=True, include_version=True):
            minio.remove_object(bucket, found.object_name or "", version_id=found.version_id)
        minio.remove_bucket(bucket)


class Server:
    """A MinIO of this test's own over ``folder``; its port stays when it is started again."""

    def __init__(self, program: Path, folder: Path, certificates: Path | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"127.0.0.1:{free.getsockname()[1]}"
        options = ["--quiet", "--address", endpoint]
        if certificates:
            options += ["--certs-dir", str(certificates)]
        self._command = [program, "server", *options, folder]
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = folder
        self.address = Address(
            endpoint=endpoint,
            secure=certificates is not None,
            access_key="faulty",
            secret_key="faulty-test-only",
        )

    def start(self) -> None:
        """Return when it serves."""
        environ = {
            **os.environ,
            "MINIO_ROOT_USER": self.address.access_key,
            "MINIO_ROOT_PASSWORD": self.address.secret_key,
            "MINIO_BROWSER": "off",
        }
        self._process = subprocess.Popen(
            self._command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(300):
            with contextlib.suppress(httpx.TransportError):
                scheme = "https" if self.address.secure else "http"
                health = f"{scheme}://{self.address.endpoint}/minio/health/ready"
                if httpx.get(health, verify=False, trust_env=False).is_success:
                    return
            time.sleep(0.1)
        raise AssertionError("MinIO did not start")

    def kill(self) -> None:
        """End it with no chance to say goodbye."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let it hold its connections and say nothing."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self._process.pid}/task")
        while any(_state(thread) != "T" for thread in threads.iterdir()):
            time.sleep(0.01)

    def uploads(self) -> list[Path]:
        """Parts of uploads that are neither completed nor aborted."""
        return list((self.folder / ".minio.sys" / "multipart").rglob("part.*"))


def _state(thread: Path) -> str:
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]
