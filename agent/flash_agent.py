"""Offline delivery to a running agent: a parcel over its unix socket.

Decides the order, which is the parcel's, and what an answer means. The agent looks into its inbox by itself.
"""

from __future__ import annotations

import http.client
import socket
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import msgspec

from edgeml import atomic
from edgeml.errors import ConfigError, IncompatibleError, LinkDownError, StorageError
from edgeml.ids import Digest, digest_of

from .flash import INBOX, ROOT, TRUST, Flashed, Parcel, pack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT_S: Final = 60.0
PIECE_BYTES: Final = 256 << 10
ANSWER_BYTES_MAX: Final = 64 << 10
_FULL: Final = (500, 507)


class _Look(msgspec.Struct, frozen=True):
    root_sha256: Digest | None = None


class _Refusal(msgspec.Struct, frozen=True):
    error: str = ""


def flash_agent(
    bundle: Path, socket_path: Path, repository: Path, now_ms: int, anchor: bytes | None = None
) -> Flashed:
    """Put a signed bundle into the inbox of a running agent; show progress on a terminal's standard error.

    Args:
        bundle: the .edgeml file.
        socket_path: where the agent listens.
        repository: the fleet's repository with the signed metadata.
        now_ms: wall time, for expiry.
        anchor: root metadata that the agent is thought to trust; None for any of the repository's.

    Raises:
        ConfigError: A path is missing, or the agent takes nothing over this socket.
        TrustError: The bundle is not a signed release, or its metadata has expired.
        IncompatibleError: The agent trusts another fleet.
        LinkDownError: No agent listens there.
        StorageError: The agent could not store it.
    """
    from edgeml.roots import read_roots

    roots = read_roots(repository)
    digest = _anchor_of(socket_path)
    known = roots.with_digest(digest) if digest is not None else None
    if digest is not None and known is None and anchor is not None and digest_of(anchor) == digest:
        known = anchor
    if digest is not None and known is None:
        raise IncompatibleError(
            f"the agent on {socket_path} trusts another fleet",
            hint="use that fleet's repository; or name the root that the agent was given: --anchor",
        )
    chosen = roots.choose(known, anchor, f"the agent on {socket_path}")
    with tempfile.TemporaryDirectory() as directory:
        trust = Path(directory) / TRUST
        atomic.write_bytes(trust / ROOT, chosen)
        parcel = pack(bundle, repository, trust, now_ms)
    _send(socket_path, parcel)
    return Flashed(parcel.target, f"unix://{socket_path} {INBOX}/{parcel.name}", root_installed=False)


def _anchor_of(socket_path: Path) -> Digest | None:
    """Ask whose releases the agent takes; None if it takes any fleet's first one."""
    answer = _ask(socket_path, "GET", "/inbox")
    try:
        return msgspec.json.decode(answer, type=_Look).root_sha256
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"what listens on {socket_path} is no agent", hint="give the socket of serve.listen"
        ) from error


def _send(socket_path: Path, parcel: Parcel) -> None:
    import click

    sizes = [len(one) if isinstance(one, bytes) else one.stat().st_size for _, one in parcel.files]
    with click.progressbar(
        length=sum(sizes), label="sending", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        for (relative, content), size in zip(parcel.files, sizes, strict=True):
            path = f"/inbox/{parcel.name}/{relative}"
            if isinstance(content, bytes):
                _ask(socket_path, "PUT", path, content, size)
                bar.update(size)
                continue
            with content.open("rb") as file:
                _ask(socket_path, "PUT", path, _pieces(file, bar.update), size)


def _pieces(file: IO[bytes], on_sent: Callable[[int], None]) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece
        on_sent(len(piece))


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _ask(
    socket_path: Path, method: str, path: str, body: bytes | Iterator[bytes] = b"", length: int = 0
) -> bytes:
    connection = _Connection(socket_path)
    try:
        headers = {"Content-Length": str(length)} if method == "PUT" else {}
        connection.request(method, path, body or None, headers)
        response = connection.getresponse()
        answer = response.read(ANSWER_BYTES_MAX)
    except (OSError, http.client.HTTPException) as error:
        raise LinkDownError(
            f"no agent takes anything on {socket_path}: {error}", hint="is it running? edgeml agent status"
        ) from error
    finally:
        connection.close()
    if response.status < http.HTTPStatus.BAD_REQUEST:
        return answer
    try:
        reason = msgspec.json.decode(answer, type=_Refusal).error
    except msgspec.MsgspecError:
        reason = f"status {response.status}"
    if response.status == http.HTTPStatus.NOT_FOUND:
        raise ConfigError(
            f"the agent on {socket_path} has no inbox for others",
            hint="flash to its storage directory instead",
        )
    if response.status in _FULL:
        raise StorageError(f"the agent could not store it: {reason}", hint="check the space on the device")
    raise ConfigError(f"the agent refuses it: {reason}")
