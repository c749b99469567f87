"""Where signed metadata and blobs come from: a server, or a directory (USB stick, LAN share, the fleet's own disk).

Decides the layout (`metadata/NAME.json`, `blobs/sha256/HEX`) and how transport failures are told apart: retry, or
never again. Nothing read here is trusted; `edgeml.trust` and `edgeml.download` check every byte.
"""

from __future__ import annotations

import base64
import http.client
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import urllib3

from .errors import LinkDownError, PermanentTransferError, StalledError, TransferError
from .ids import Digest, is_digest

READ_BYTES: Final = 64 << 10
CONNECT_TIMEOUT_S: Final = 10.0
READ_TIMEOUT_S: Final = 20.0
RATE_WINDOW_S: Final = 60.0
RATE_MIN_BYTES_S: Final = 32.0
"""A server slower than this over a whole window is as good as gone; it must not hold a device for ever."""
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


class HttpSource:
    """A repository behind HTTP(S), with ranges."""

    def __init__(self, base_url: str, username: str = "", password: str = "") -> None:
        self._base = base_url.rstrip("/")
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S), retries=False, maxsize=2
        )
        self._headers = {"User-Agent": "edgeml", "Accept-Encoding": "identity"}
        if username:
            login = base64.b64encode(f"{username}:{password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {login}"

    def metadata(self, name: str) -> Iterator[bytes]:
        """Yield a metadata file."""
        with self._open(f"{self._base}/metadata/{name}", {}) as response:
            yield from self._pieces(response)

    @contextmanager
    def blob(self, digest: Digest, offset: int) -> Iterator[Stream]:
        """Open a blob from `offset` on."""
        headers = {"Range": f"bytes={offset}-", "If-Range": f'"{digest}"'} if offset else {}
        with self._open(f"{self._base}/blobs/sha256/{digest}", headers) as response:
            begins = 0
            if response.status == http.client.PARTIAL_CONTENT:
                begins = _range_start(response.headers.get("Content-Range", ""))
                if begins != offset:
                    raise TransferError(f"asked the server for bytes from {offset}, it sent from {begins}")
            yield Stream(begins, self._pieces(response))

    @contextmanager
    def _open(self, url: str, headers: dict[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
        try:
            response = self._pool.request(
                "GET", url, headers=self._headers | headers, preload_content=False, redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise LinkDownError(
                f"cannot reach {url}: {_reason(error)}", hint="check the address and the network"
            ) from error
        try:
            if response.status in _PERMANENT:
                raise PermanentTransferError(
                    f"{url}: the server answers {response.status}", hint="check the address and the login"
                )
            if response.status not in {http.client.OK, http.client.PARTIAL_CONTENT}:
                raise TransferError(f"{url}: the server answers {response.status}")
            yield response
        finally:
            # Not given back to the pool: an aborted body would be read by the next request.
            response.close()

    def _pieces(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        since_s, count = time.monotonic(), 0
        try:
            # read1 hands over what has come; read would lose it if the connection is cut before its buffer is full.
            while piece := response.read1(READ_BYTES):
                yield piece
                count += len(piece)
                if time.monotonic() - since_s >= RATE_WINDOW_S:
                    if count < RATE_MIN_BYTES_S * RATE_WINDOW_S:
                        raise StalledError(f"the server sent only {count} bytes in {RATE_WINDOW_S:.0f} s")
                    since_s, count = time.monotonic(), 0
            if response.length_remaining:
                raise TransferError(
                    f"the connection was cut {response.length_remaining} bytes before the end"
                )
        except urllib3.exceptions.ReadTimeoutError as error:
            raise StalledError(f"the server sent nothing for {READ_TIMEOUT_S:.0f} s") from error
        except urllib3.exceptions.HTTPError as error:
            raise TransferError(f"the connection was cut: {_reason(error)}") from error


def _range_start(header: str) -> int:
    unit, _, rest = header.partition(" ")
    first = rest.partition("-")[0]
    if unit != "bytes" or not first.isdecimal():
        raise TransferError(f"the server sent the range header {header[:80]!r}")
    return int(first)


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", None) or error
    return str(cause).rsplit(": ", 1)[-1][:200]
