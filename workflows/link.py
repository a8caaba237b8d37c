"""The link between a server step and its shards: TLS between two keys that each attempt makes anew.

Each end holds a key of its own and takes no other than the one peer's certificate, so neither a
name nor an authority is trusted; the shards, beside whom programs run, cannot pass for the server.
What travels are the frames of ``workflows.frames``. A peer that has vanished without a word is
noticed after ``SILENCE_S`` seconds.

Source: RFC 8446 (TLS 1.3); RFC 5280, section 4.1.2.5 for a validity without end; tcp(7).
"""

from __future__ import annotations

import os
import select
import socket
import ssl
from datetime import UTC, datetime
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

LINK: Final = "link.json"
"""Name of the file that an end is handed over in."""
PORT: Final = 8471
"""Where the server step listens in a cluster; elsewhere the kernel chooses."""
GREETING_S: Final = 10.0
"""Longest that a peer may take to prove who it is and to say its first word."""
SILENCE_S: Final = 30
_PROBE_S: Final = 10
_BEGINNING: Final = datetime(2000, 1, 1, tzinfo=UTC)
_NEVER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One end of a link. It is a secret.

    Attributes:
        certificate: Its own, as PEM.
        key: To that certificate, as PEM.
        peer: Certificate of the other end, as PEM.
    """

    certificate: str
    key: str
    peer: str

    def __repr__(self) -> str:
        return "Link()"


def make_links() -> tuple[Link, Link]:
    """The server's end and the shards' end of a new link."""
    (ours, our_key), (theirs, their_key) = _identity("server"), _identity("shard")
    return (
        Link(certificate=ours, key=our_key, peer=theirs),
        Link(certificate=theirs, key=their_key, peer=ours),
    )


def server_tls(link: Link) -> ssl.SSLContext:
    """How the server meets who connects."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.num_tickets = 0
    return _between(tls, link)


def shard_tls(link: Link) -> ssl.SSLContext:
    """How a shard meets the server, whose one certificate says more than a host's name."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    return _between(tls, link)


def notice_silence(connection: socket.socket) -> None:
    """Have the kernel break the connection when nothing comes back any more."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, SILENCE_S // _PROBE_S - 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_S * 1000)


def is_readable(connection: socket.socket, within_s: float) -> bool:
    """Whether something comes, or the end of the connection, within so many seconds."""
    return bool(select.select((connection,), (), (), within_s)[0])


def cut(connection: socket.socket) -> None:
    """End a connection that another thread may be reading from; that one sees its end."""
    try:
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    except OSError:
        return  # it was no connection any more


def _between(tls: ssl.SSLContext, link: Link) -> ssl.SSLContext:
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(cadata=link.peer)
    # ``ssl`` takes a key from a file alone; this one is in memory, and nobody else's.
    file = os.memfd_create("link")
    try:
        os.write(file, (link.certificate + link.key).encode())
        tls.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    return tls


def _identity(name: str) -> tuple[str, str]:
    """A certificate that signs itself, and its key."""
    key = Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGINNING)
        .not_valid_after(_NEVER)
        .sign(key, None)
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM).decode(), private.decode()
