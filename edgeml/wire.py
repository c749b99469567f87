"""The wire: what TCP connections cost, by the kernel's own count.

Decides what counts: every byte that was sent (again, too, if it was lost), every byte that came, handshakes of TLS and
what nobody has read yet included, and the headers of every segment. What the kernel does not tell is a flat
ATTEMPT_BYTES for each attempt to connect. Not counted: segments that came twice, and fragments below TCP.

Needs Linux 4.19; elsewhere only attempts count. Source: `struct tcp_info` of include/uapi/linux/tcp.h, RFC 4898.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from typing import Final

HEADER_BYTES: Final = 52
"""Of a segment: IPv4 and TCP with timestamps."""
HEADER_V6_BYTES: Final = 72
ATTEMPT_BYTES: Final = 512
"""Looking a name up, and segments that were sent in vain."""
_INFO_BYTES: Final = 256
_INFO: Final = struct.Struct("=128xQII56xQ")
"""tcpi_bytes_received, tcpi_segs_out, tcpi_segs_in, tcpi_bytes_sent."""


def wire_bytes(connection: socket.socket) -> int:
    """Say what a connection has cost until now, in both directions; 0 where the kernel does not say.

    Raises:
        OSError: It is closed.
    """
    kind = getattr(socket, "TCP_INFO", None)
    if kind is None or connection.family not in {socket.AF_INET, socket.AF_INET6}:
        return 0
    info = connection.getsockopt(socket.IPPROTO_TCP, kind, _INFO_BYTES)
    if len(info) < _INFO.size:
        return 0
    received, segments_out, segments_in, sent = _INFO.unpack_from(info)
    header = HEADER_BYTES if connection.family == socket.AF_INET else HEADER_V6_BYTES
    return int(received + sent + (segments_out + segments_in) * header)


class WireMeter:
    """Adds up what connections cost. Thread-safe.

    `unread_bytes` is what the kernel should take in at most before it is read: so much, about, comes of a download
    that is stopped. None: as it likes, which is quicker over long lines.
    """

    def __init__(self, unread_bytes: int | None = None) -> None:
        self.unread_bytes = unread_bytes
        self._lock = threading.Lock()
        self._open: dict[socket.socket, int] = {}
        self._past_bytes = 0

    def attempt(self) -> None:
        """Count an attempt to connect."""
        self.add(ATTEMPT_BYTES)

    def add(self, count: int) -> None:
        """Count bytes that are known otherwise."""
        with self._lock:
            self._past_bytes += count

    def watch(self, connection: socket.socket) -> None:
        """Count a connection from its beginning, and for as long as it is open. Look again before it is closed."""
        with self._lock:
            self._open.setdefault(connection, 0)
            self._look()

    def look(self) -> int:
        """Say what all connections have cost until now, in bytes."""
        with self._lock:
            self._look()
            return self._past_bytes + sum(self._open.values())

    def meter_handshakes(self, context: ssl.SSLContext) -> None:
        """Count handshakes that fail, too: whoever makes such a connection never hands it over."""
        meter = self

        class Watched(ssl.SSLSocket):
            def do_handshake(self, block: bool = False) -> None:
                try:
                    super().do_handshake(block)
                except OSError:
                    meter.add(wire_bytes(self))
                    # paho leaves it to the garbage collector.
                    self.close()
                    raise

        context.sslsocket_class = Watched

    def _look(self) -> None:
        for connection, last_bytes in list(self._open.items()):
            try:
                self._open[connection] = max(last_bytes, wire_bytes(connection))
            except OSError:
                # Closed since it was looked at last.
                self._past_bytes += self._open.pop(connection)
