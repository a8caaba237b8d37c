"""A door to a server that can be shut and opened, to play that server's absence."""

from __future__ import annotations

import contextlib
import socket
import threading


class TcpProxy:
    """Forwards connections at ``host`` to ``port`` of this machine while it is open."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = ("127.0.0.1", port)
        self._connections: list[socket.socket] = []
        self._listening = socket.create_server((host, 0))
        self.port = int(self._listening.getsockname()[1])
        self._is_open = True
        self.num_connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def lead_to(self, port: int) -> None:
        """Have connections that are yet to come go elsewhere on this machine."""
        self._target = ("127.0.0.1", port)

    def shut(self) -> None:
        """Break all connections, and take no more."""
        self._is_open = False
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    def open(self) -> None:
        """Take connections again."""
        self._is_open = True

    def close(self) -> None:
        """Go away for good."""
        self.shut()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                if not self._is_open:
                    near.close()
                    continue
                self.num_connections += 1
                try:
                    far = socket.create_connection(self._target, 5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                self._connections += [near, far]
                threading.Thread(target=_relay, args=(near, far), daemon=True).start()


def _relay(near: socket.socket, far: socket.socket) -> None:
    with near, far:
        back = threading.Thread(target=_pump, args=(far, near), daemon=True)
        back.start()
        _pump(near, far)
        back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            sink.sendall(chunk)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
