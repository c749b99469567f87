"""Where the local endpoint listens: a port of this device, or a unix socket.

Decides what an address is, which ones other machines reach, and when the file of a unix socket may be replaced: when
nothing listens on it any more. The endpoint has no notion of who asks, so a port is this device's alone unless told
otherwise, and a unix socket its user's alone.
"""

from __future__ import annotations

import enum
import errno
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from edgeml.errors import ConfigError

UNIX: Final = "unix:"
SOCKET_MODE: Final = 0o600
BACKLOG: Final = 128
_LIVENESS_TIMEOUT_S: Final = 1.0


class Exposure(enum.Enum):
    """Who can reach the endpoint."""

    LOOPBACK = "loopback"
    NETWORK = "network"


@dataclass(frozen=True, slots=True)
class Port:
    """A port of one of this machine's addresses; 0 takes a free one."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A unix socket."""

    path: Path


Address: TypeAlias = Port | UnixSocket


def parse_listen(listen: str, exposure: Exposure) -> Address:
    """Read `host:port` or `unix:path`.

    Raises:
        ConfigError: Neither of these, or a host that this exposure does not allow.

    >>> parse_listen("127.0.0.1:8090", Exposure.LOOPBACK), parse_listen("[::1]:0", Exposure.LOOPBACK)
    (Port(host='127.0.0.1', port=8090), Port(host='::1', port=0))
    """
    if listen.startswith(UNIX):
        path = _path(listen)
        if not path or "\0" in path:
            raise ConfigError(f"{listen!r} names no socket", hint="for example unix:/run/edgeml/agent.sock")
        return UnixSocket(Path(path))
    # Only a device that listens needs it.
    import ipaddress

    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        address = None
    if address is None or not port.isascii() or not port.isdecimal() or int(port) > 0xFFFF:
        raise ConfigError(
            f"{listen!r} is no address to listen on",
            hint="for example 127.0.0.1:8090 or unix:/run/edgeml/agent.sock",
        )
    if exposure is Exposure.LOOPBACK and not address.is_loopback:
        raise ConfigError(
            f"{listen} can be reached from other machines, and the endpoint does not ask who they are",
            hint="listen on 127.0.0.1 and put a proxy that authenticates in front",
        )
    return Port(str(address), int(port))


def absolute_listen(listen: str, folder: Path) -> str:
    """Make the path of a unix socket relative to a folder; anything else stays.

    >>> absolute_listen("unix:agent.sock", Path("/etc/edgeml"))
    'unix:/etc/edgeml/agent.sock'
    """
    path = _path(listen) if listen.startswith(UNIX) else ""
    return f"{UNIX}{folder / path}" if path else listen


class Listener:
    """A socket that listens.

    Raises:
        ConfigError: The address is taken or not this machine's.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._inode: tuple[int, int] | None = None
        if isinstance(address, Port):
            self.socket = _listen_on_port(address)
        else:
            self.socket, self._inode = _listen_on_path(address.path)
        self.url = self._url()

    def close(self) -> None:
        """Stop listening, and remove the socket's file unless it is somebody else's by now."""
        if isinstance(self._address, UnixSocket) and _inode(self._address.path) == self._inode:
            self._address.path.unlink(missing_ok=True)
        self.socket.close()

    def _url(self) -> str:
        if isinstance(self._address, UnixSocket):
            return f"unix://{self._address.path.absolute()}"
        host, port = self.socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listen_on_port(address: Port) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        listener = socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address.host}:{address.port}: {error.strerror}",
            hint="set serve.listen to a free port",
        ) from error
    # asyncio sets this only on sockets that it makes itself; without it every answer waits 40 ms for the client's
    # delayed acknowledgement. Accepted sockets inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _listen_on_path(path: Path) -> tuple[socket.socket, tuple[int, int] | None]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(str(path))
        # Nobody can connect before `listen`, so there is no moment at which others could.
        path.chmod(SOCKET_MODE)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {path}: {error.strerror or error}",
            hint="set serve.listen to a path in a folder that exists and is the agent's",
        ) from error
    except ConfigError:
        listener.close()
        raise
    return listener, _inode(path)


def _remove_stale(path: Path) -> None:
    """Remove the file of a socket on which nothing listens."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(
            f"{path} is there already and is no socket", hint="set serve.listen to another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_LIVENESS_TIMEOUT_S)
        reason = probe.connect_ex(str(path))
    # A full backlog, a missing right, anything but a refusal may be somebody who lives.
    if reason != errno.ECONNREFUSED:
        raise ConfigError(
            f"something listens on {path} already"
            + ("" if reason == 0 else f", or may: {os.strerror(reason)}"),
            hint="stop it first, or set serve.listen to another path",
        )
    path.unlink()


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def socket_path(listen: str) -> Path:
    """Return the path of a unix socket that is written as `unix:PATH` or `unix:///PATH`."""
    return Path(_path(listen))


def _path(listen: str) -> str:
    """Return what follows `unix:`, which may have the two slashes of a URL."""
    path = listen.removeprefix(UNIX)
    return path.removeprefix("//") if path.startswith("///") else path
