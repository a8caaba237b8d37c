"""What tests do to MinIO behind the store's back, and MinIO servers of their own to be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

from minio import Minio
from minio.error import S3Error

from sharing.s3_bucket import Address


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

    def __init__(
        self, program: Path, folder: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        self._command = [
            program,
            "server",
            "--quiet",
            "--address",
            f"127.0.0.1:{self._port}",
            folder,
        ]
        self._environ = dict(environ or {})
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = folder
        self.address = Address(
            endpoint=f"127.0.0.1:{self._port}",
            secure=False,
            access_key="faulty",
            secret_key="faulty-test-only",
        )

    def start(self) -> None:
        """Return when it serves."""
        environ = {
            **os.environ,
            **self._environ,
            "MINIO_ROOT_USER": self.address.access_key,
            "MINIO_ROOT_PASSWORD": self.address.secret_key,
            "MINIO_BROWSER": "off",
        }
        self._process = subprocess.Popen(
            self._command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(300):
            with contextlib.suppress(URLError, ConnectionError):
                health = f"http://{self.address.endpoint}/minio/health/ready"
                with urllib.request.urlopen(health, timeout=5):
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

    def uploads(self) -> list[Path]:
        """Parts of uploads that are neither completed nor aborted."""
        return list((self.folder / ".minio.sys" / "multipart").rglob("part.*"))
