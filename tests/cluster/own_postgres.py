"""A PostgreSQL that may be stopped and killed: the lab's is everybody's."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/bin"))


class OwnPostgres:
    """A server with a database on a free port; it runs while it is entered."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder = Path(tempfile.mkdtemp(prefix="foedus-pg-"))
        shutil.chown(self.folder, "postgres", "postgres")
        self._do("initdb", "-D", str(self.folder / "data"), "-A", "trust", "-U", "postgres", "-N")
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> OwnPostgres:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.remove()

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        log = str(self.folder / "log")
        self._do("pg_ctl", "-D", str(self.folder / "data"), "-w", "-o", options, "-l", log, "start")

    def stop(self, mode: str = "immediate") -> None:
        """``immediate`` is a crash: nothing is brought to disk that is not there yet."""
        self._do("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", mode, "stop")

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _do(self, program: str, *arguments: str) -> None:
        command = ["runuser", "-u", "postgres", "--", str(BIN / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=60, cwd="/")
