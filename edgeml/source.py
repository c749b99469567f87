"""Where signed metadata and blobs come from: a server, or a directory (USB stick, LAN share, the fleet's own disk).

Decides the layout (`metadata/NAME.json`, `blobs/sha256/HEX`), how transport failures are told apart: retry, retry later,
or never again, and how slow a server may be. Nothing read here is trusted; `edgeml.trust` and `edgeml.download` check every byte.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import urllib3

from .errors import LinkDownError, PermanentTransferError, StalledError, TransferError
from .ids import Digest, is_digest
from .tls import TlsFiles, client_context

READ_BYTES: Final = 64 << 10
CONNECT_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 20.0
RATE_WINDOW_S: Final = 60.0
RATE_MIN_BYTES_S: Final = 32.0
"""A server slower than this over a whole window is as good as gone; it must not hold a device for ever."""
RETRY_AFTER_MAX_S: Final = 3600.0
"""A server may ask for no longer a wait than this."""
_PERMANENT: Final = frozenset({400, 401, 403, 404, 405, 410, 414})


@dataclass(frozen=True, slots=True)
class Stream:
    """An open blob. `offset` is where its bytes begin: 0 if the peer ignored the range asked for."""

    offset: int
    pieces: Iterator[bytes]


class Source(Protocol):
    """Something that serves a repository."""

    def metadata(self, name: str) -> Iterator[bytes]:
        """Yield a metadata file.

        Raises:
            PermanentTransferError: There is none of that name.
            TransferError: Transport failed.
        """
        ...

    def blob(self, digest: Digest, offset: int) -> AbstractContextManager[Stream]:
        """Open a blob from `offset` on.

        Raises:
            PermanentTransferError: There is none.
            TransferError: Transport failed, also while the pieces are read.
        """
        ...


class DirectorySource:
    """A repository in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def metadata(self, name: str) -> Iterator[bytes]:
        """Yield a metadata file."""
        yield from self._pieces(self._directory / "metadata" / Path(name).name, 0)

    @contextmanager
    def blob(self, digest: Digest, offset: int) -> Iterator[Stream]:
        """Open a blob from `offset` on."""
        if not is_digest(digest):
            raise PermanentTransferError(f"{digest!r} is no digest")
        yield Stream(offset, self._pieces(self._directory / "blobs" / "sha256" / digest, offset))

    def _pieces(self, path: Path, offset: int) -> Iterator[bytes]:
        try:
            with path.open("rb") as file:
                file.seek(offset)
                while piece := file.read(READ_BYTES):
                    yield piece
        except FileNotFoundError as error:
            raise PermanentTransferError(f"{path} does not exist") from error
        except OSError as error:
            raise TransferError(f"cannot read {path}: {error.strerror}") from error


class CountedSource:
    """A source that counts the bytes of blobs that come from it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.received_bytes = 0

    def metadata(self, name: str) -> Iterator[bytes]:
        """Yield a metadata file, uncounted."""
        return self._source.metadata(name)

    @contextmanager
    def blob(self, digest: Digest, offset: int) -> Iterator[Stream]:
        """Open a blob from `offset` on."""
        with self._source.blob(digest, offset) as stream:
            yield Stream(stream.offset, self._counting(stream.pieces))

    def _counting(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self.received_bytes += len(piece)
            yield piece


class HttpSource:
    """A repository behind HTTP(S), with ranges."""

    def __init__(
        self, base_url: str, username: str = "", password: str = "", tls: TlsFiles | None = None
    ) -> None:
        self._base = base_url.rstrip("/")
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
            retries=False,
            maxsize=2,
            # None: urllib3 makes its own, with the machine's authorities.
            ssl_context=client_context(tls) if tls is not None else None,
        )
        self._pool.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
        self._headers = {"User-Agent": "edgeml", "Accept-Encoding": "identity"}
        if username and password:
            login = base64.b64encode(f"{username}:{password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {login}"

    def metadata(self, name: str) -> Iterator[bytes]:
        """Yield a metadata file."""
        with self._open(f"{self._base}/metadata/{name}", {}) as (response, pace):
            yield from self._pieces(response, pace)

    @contextmanager
    def blob(self, digest: Digest, offset: int) -> Iterator[Stream]:
        """Open a blob from `offset` on."""
        headers = {"Range": f"bytes={offset}-", "If-Range": f'"{digest}"'} if offset else {}
        with self._open(f"{self._base}/blobs/sha256/{digest}", headers) as (response, pace):
            begins = 0
            if response.status == http.client.PARTIAL_CONTENT:
                begins = _range_start(response.headers.get("Content-Range", ""))
                if begins != offset:
                    raise TransferError(f"asked the server for bytes from {offset}, it sent from {begins}")
            yield Stream(begins, self._pieces(response, pace))

    @contextmanager
    def _open(self, url: str, headers: dict[str, str]) -> Iterator[tuple[urllib3.BaseHTTPResponse, _Pace]]:
        try:
            response = self._pool.request(
                "GET", url, headers=self._headers | headers, preload_content=False, redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise LinkDownError(
                f"cannot reach {url}: {_reason(error)}", hint="check the address and the network"
            ) from error
        # Now: a response that has been read to its end forgets its connection.
        pace = _pace_of(response)
        try:
            if response.status in _PERMANENT:
                raise PermanentTransferError(
                    f"{url}: the server answers {response.status}", hint="check the address and the login"
                )
            if response.status not in {http.client.OK, http.client.PARTIAL_CONTENT}:
                raise TransferError(
                    f"{url}: the server answers {response.status}", retry_after_s=_retry_after_s(response)
                )
            yield response, pace
        finally:
            pace.stop()
            # Not given back to the pool: an aborted body would be read by the next request.
            response.close()

    def _pieces(self, response: urllib3.BaseHTTPResponse, pace: _Pace) -> Iterator[bytes]:
        try:
            # read1 hands over what has come; read would lose it if the connection is cut before its buffer is full.
            while piece := response.read1(READ_BYTES):
                pace.count_bytes += len(piece)
                yield piece
            if pace.is_lost:
                raise pace.error()
            if response.length_remaining:
                raise TransferError(
                    f"the connection was cut {response.length_remaining} bytes before the end"
                )
        except urllib3.exceptions.ReadTimeoutError as error:
            raise StalledError(f"the server sent nothing for {READ_TIMEOUT_S:.0f} s") from error
        except urllib3.exceptions.HTTPError as error:
            if pace.is_lost:
                raise pace.error() from error
            raise TransferError(f"the connection was cut: {_reason(error)}") from error


class _Pace:
    """Hangs up on a server that brings less than the least rate, whatever the reader waits for: a head, a body, its end.

    A read that waits cannot look at the time, and a server that sends a byte now and then never lets it time out.
    """

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._timer: threading.Timer | None = None
        self.count_bytes = 0
        """Bytes that came in this window."""
        self.is_lost = False

    def start(self) -> None:
        """Begin a window."""
        self.stop()
        self.count_bytes = 0
        self._timer = threading.Timer(RATE_WINDOW_S, self._look)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def error(self) -> StalledError:
        """Say why it was hung up."""
        return StalledError(f"the server sent only {self.count_bytes} bytes in {RATE_WINDOW_S:.0f} s")

    def _look(self) -> None:
        if self.count_bytes >= RATE_MIN_BYTES_S * RATE_WINDOW_S:
            self.start()
            return
        self.is_lost = True
        # The plain socket's: under TLS, the one of the reader's layer must not be taken away while it reads.
        with suppress(OSError):
            socket.socket.shutdown(self._line, socket.SHUT_RDWR)


class _Paced:
    """Makes a connection wait no longer for the head of an answer than for so much of its body."""

    sock: socket.socket
    pace: _Pace

    def getresponse(self) -> urllib3.BaseHTTPResponse:
        """Return the answer.

        Raises:
            StalledError: Its head did not come in time.
        """
        self.pace = _Pace(self.sock)
        self.pace.start()
        try:
            response: urllib3.BaseHTTPResponse = super().getresponse()  # type: ignore[misc]  # mixed into a connection
        except Exception as error:
            self.pace.stop()
            if self.pace.is_lost:
                raise self.pace.error() from error
            raise
        self.pace.start()
        return response


class _HttpConnection(_Paced, urllib3.connection.HTTPConnection):  # type: ignore[misc]  # as above
    """A connection with a least rate."""


class _HttpsConnection(_Paced, urllib3.connection.HTTPSConnection):  # type: ignore[misc]  # as above
    """The same with TLS."""


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


def _pace_of(response: urllib3.BaseHTTPResponse) -> _Pace:
    pace = getattr(response.connection, "pace", None)
    assert isinstance(pace, _Pace)
    return pace


def _retry_after_s(response: urllib3.BaseHTTPResponse) -> float:
    """Read how long the server asks to be left alone (RFC 9110, 10.2.3); 0 if it does not say so, or not clearly."""
    asked = response.headers.get("Retry-After", "").strip()
    if asked.isascii() and asked.isdecimal():
        return min(float(asked[:9]), RETRY_AFTER_MAX_S)
    try:
        # By the server's own clock: the device's may be wrong by years.
        until, now = map(email.utils.parsedate_to_datetime, (asked, response.headers.get("Date", "")))
        return max(0.0, min((until - now).total_seconds(), RETRY_AFTER_MAX_S))
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _range_start(header: str) -> int:
    unit, _, rest = header.partition(" ")
    first = rest.partition("-")[0]
    if unit != "bytes" or not first.isdecimal():
        raise TransferError(f"the server sent the range header {header[:80]!r}")
    return int(first)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib3.exceptions.ProtocolError) and len(error.args) > 1:
        error = error.args[1]  # its own words hold the cause's twice
    cause = getattr(error, "reason", None) or error
    return str(cause).rsplit(": ", 1)[-1][:200]
