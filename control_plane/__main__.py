"""``python -m control_plane``: one server on one folder, or a backup of it.

``migrate`` only updates its tables; ``backup`` and ``restore`` say by ``--help`` what they do.

Exit codes: 0 stopped by SIGTERM or SIGINT; 1 could not start; 2 a setting is wrong; 3 another
server uses the folder; 4 the address is taken. Standard output tells where it listens and, at the
first start of all, the administrator's token; the log is JSON on standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Final

import structlog
import uvicorn
from pydantic import ValidationError

from control_plane.app import ENDPOINT_FILE, Application, chosen_engine, create_app
from control_plane.data_folder import FolderInUse, claimed, write_private
from control_plane.platform import open_records
from control_plane.refusals import DatabaseUnavailable
from control_plane.settings import Settings
from control_plane.tracing import trace_id
from workflows.engine import WorkflowEngine
from workflows.kubernetes import ClusterUnknown

EXIT_STARTUP: Final = 1
EXIT_SETTINGS: Final = 2
EXIT_FOLDER: Final = 3
EXIT_ADDRESS: Final = 4
BACKLOG: Final = 2048


class _Server(uvicorn.Server):
    """Ends event streams before it waits for requests, and exits with 0 when asked to stop."""

    def __init__(self, config: uvicorn.Config, app: Application, url: str) -> None:
        super().__init__(config)
        self._app = app
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            gc.freeze()
            _say(f"Foedus listens at {self._url}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state["service"].platform.hub.close()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def main(
    make_engine: Callable[[Settings, Mapping[str, str]], WorkflowEngine] = chosen_engine,
) -> int:
    """Serve until asked to stop, what runs plans being made by ``make_engine``."""
    return _with_folder(lambda settings: _serve(settings, make_engine(settings, os.environ)))


def migrate() -> int:
    """Bring the records to the newest tables and end; what a server does at its start anyway."""
    return _with_folder(_migrate)


def _with_folder(act: Callable[[Settings], int]) -> int:
    settings = _settings()
    if settings is None:
        return EXIT_SETTINGS
    try:
        with claimed(settings.data):
            return act(settings)
    except ClusterUnknown as error:
        _complain(f"FOEDUS_KUBECONFIG: {error}")
        return EXIT_SETTINGS
    except FolderInUse as error:
        _complain(str(error))
        return EXIT_FOLDER
    except OSError as error:
        _complain(f"FOEDUS_DATA: {settings.data} cannot be used: {error.strerror}")
        return EXIT_STARTUP


def _back_up_or_restore(argv: Sequence[str]) -> int:
    from control_plane.backup_command import run

    settings = _settings()
    return EXIT_SETTINGS if settings is None else run(settings, argv)


def _settings() -> Settings | None:
    """What the environment says; None after complaining of what is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        for problem in error.errors():
            _complain(_place_of(problem["loc"]) + problem["msg"].removeprefix("Value error, "))
    return None


def _place_of(location: tuple[int | str, ...]) -> str:
    """The variable that a problem is with; nothing where it is with several."""
    name = "_".join(map(str, location)).upper()
    if not name:
        return ""
    return (
        f"{name}: " if name.startswith(("FOEDUS_", "KEYCLOAK_", "MINIO_")) else f"FOEDUS_{name}: "
    )


def _migrate(settings: Settings) -> int:
    try:
        open_records(settings.data, settings.records_url).close()
    except DatabaseUnavailable as error:
        _complain(str(error))
        return EXIT_STARTUP
    return 0


def _serve(settings: Settings, engine: WorkflowEngine) -> int:
    _configure_log(settings.log_level)
    try:
        listening = _listen(settings.host, settings.port)
    except OSError as error:
        _complain(f"{settings.host}:{settings.port} cannot be listened on: {error.strerror}")
        return EXIT_ADDRESS
    with listening:
        url = f"http://{settings.reachable_host}:{listening.getsockname()[1]}"
        app = create_app(
            settings,
            engine=engine,
            url=lambda: settings.endpoint_url or url,
            announce_token=lambda token: _announce(settings, token),
        )
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=max(1, round(settings.shutdown_s)),
        )
        write_private(settings.data / ENDPOINT_FILE, url.encode())
        server = _Server(config, app, url)
        server.run(sockets=[listening])
    if not server.started:
        _complain("the server could not start; the log above says why")
        return EXIT_STARTUP
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _announce(settings: Settings, token: str) -> None:
    """Hand the administrator's token over: to its file, else to the terminal."""
    if settings.first_token_file:
        try:
            write_private(settings.first_token_file, token.encode())
        except OSError as error:
            _complain(f"FOEDUS_FIRST_TOKEN_FILE cannot be written: {error.strerror}")
        else:
            return
    _say(f"Administrator's token, shown this once: {token}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _complain(line: str) -> None:
    sys.stderr.write(f"foedus: {line}\n")


def _configure_log(level: str) -> None:
    """JSON lines on standard error, from us and from the libraries alike."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_trace,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
            foreign_pre_chain=shared,
        )
    )
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[handler], force=True)


def _add_trace(
    _logger: Any,  # noqa: ANN401 - structlog's signature
    _method: str,
    event: MutableMapping[str, Any],
) -> MutableMapping[str, Any]:
    if trace := trace_id.get():
        event["trace_id"] = trace
    return event


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            sys.exit(main())
        case ["migrate"]:
            sys.exit(migrate())
        case ["backup" | "restore", *_] as argv:
            sys.exit(_back_up_or_restore(argv))
        case _:
            _complain("usage: python -m control_plane [migrate | backup TO | restore FROM]")
            sys.exit(EXIT_SETTINGS)
