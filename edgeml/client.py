"""Clients of an agent's local endpoint: arrays in, arrays out, over TCP or a unix socket.

Decides connections: kept alive, opened again when the agent has closed an idle one, bounded by a deadline from the first
byte sent to the last one read. The messages and what a status means are `inference`'s business. Both clients use the
standard library alone, so that a program on the device needs nothing more to ask its agent. The device's supervisor
never imports this file.
"""

from __future__ import annotations

import http.client
import math
import select
import socket
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from .errors import ConfigError, LinkDownError, ManifestError, StalledError, TransferError
from .inference import (
    JSON_LENGTH_HEADER,
    REPLY_BYTES_MAX,
    ModelMetadata,
    Prediction,
    Request,
    Response,
    ServerMetadata,
    feedback_request,
    infer_request,
    model_path,
    read_matched,
    read_message,
    read_prediction,
    read_ready,
)

if TYPE_CHECKING:
    from .inference import Array

__all__ = ["TIMEOUT_S", "AgentUrl", "Client", "Prediction", "link_down", "stalled"]

TIMEOUT_S: Final = 30.0
_CHUNK_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class AgentUrl:
    """Where an agent listens: a host and port with a path before the protocol's, or the path of a unix socket."""

    text: str
    host: str
    port: int | None = None
    path: str = ""
    secure: bool = False
    socket_path: str = ""

    @classmethod
    def parse(cls, text: str) -> AgentUrl:
        """Read a URL.

        Raises:
            ConfigError: It is none of an agent.

        >>> AgentUrl.parse("unix:///run/edgeml/agent.sock").socket_path
        '/run/edgeml/agent.sock'
        """
        parts = urllib.parse.urlsplit(text)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if parts.scheme == "unix" and not parts.netloc and len(parts.path) > 1:
            return cls(text, "localhost", socket_path=urllib.parse.unquote(parts.path))
        if parts.scheme not in {"http", "https"} or not host:
            raise ConfigError(
                f"{text!r} is no URL of an agent",
                hint="for example http://127.0.0.1:8090 or unix:///run/edgeml/agent.sock",
            )
        return cls(text, host, port, parts.path.rstrip("/"), parts.scheme == "https")


class Client:
    """One connection to an agent, made when it is first needed. For one thread at a time.

    Every method raises, by what the caller should do:
        ConfigError: the request is wrong, or there is no such model: change it.
        TransferError: the agent is overloaded or has no model now: ask again later. Its kinds `LinkDownError` (nothing
            answers) and `StalledError` (not in time) say more.
        ArtifactError: the model failed (`BackendError`), or what answers is no agent (`ManifestError`): look at the log.

    Raises:
        ConfigError: The URL is none.
    """

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._url = AgentUrl.parse(url)
        self._timeout_s = timeout_s
        self._connection = _Connection(self._url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        self._connection.close()

    def ready(self, model: str | None = None) -> bool:
        """Whether the agent would answer a request, or one for this model.

        Raises:
            EdgemlError: As the class says; an agent without a model is not ready, which is no error.
        """
        path = "/v2/health/ready" if model is None else model_path(model) + "/ready"
        return read_ready(self._ask(Request("GET", path)))

    def models(self) -> tuple[str, ...]:
        """Names of the models that serve now.

        Raises:
            EdgemlError: As the class says.
        """
        return read_message(self._ask(Request("GET", "/v2")), ServerMetadata).models

    def model(self, name: str | None = None) -> ModelMetadata:
        """Describe the named model, or the only one that serves.

        Raises:
            EdgemlError: As the class says.
        """
        if name is None:
            name = first_of(self.models())
        return read_message(self._ask(Request("GET", model_path(name))), ModelMetadata)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        request_id: str = "",
        outputs: tuple[str, ...] = (),
        timeout_s: float | None = None,
    ) -> Prediction:
        """Ask a model.

        Args:
            model: its name.
            inputs: an array for each of its inputs, by name, of its types and shapes.
            request_id: what `feedback` calls the request; empty: the agent finds a name, which the answer has.
            outputs: names of the outputs that are wanted; none: all.
            timeout_s: how long the answer may take altogether, if not as long as the client's. The agent hears of it
                and does not run what nobody waits for any more.

        Raises:
            EdgemlError: As the class says.
        """
        request = infer_request(model, inputs, request_id, outputs, timeout_s)
        return read_prediction(self._ask(request, timeout_s))

    def feedback(self, model: str, request_id: str, label: int | str) -> bool:
        """Say what an earlier request really showed; False if the agent does not remember it (any more).

        Raises:
            EdgemlError: As the class says.
        """
        return read_matched(self._ask(feedback_request(model, request_id, label)))

    def _ask(self, request: Request, timeout_s: float | None = None) -> Response:
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            return self._connection.ask(request, time.monotonic() + wait_s)
        except TimeoutError as error:
            self.close()
            raise stalled(self._url, wait_s) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise link_down(self._url, error) from error
        except BaseException:
            self.close()  # What is left of the answer must not be taken for the next one.
            raise


class _Connection:
    """A connection that is opened when needed, and again when the agent has closed it."""

    def __init__(self, url: AgentUrl) -> None:
        self._url = url
        self._http = http.client.HTTPConnection(url.host, url.port)
        self._tls = _tls_context() if url.secure else None
        self._socket: _Deadlined | None = None

    def ask(self, request: Request, deadline_s: float) -> Response:
        """Send a request and read its answer, on a fresh connection if the kept one proves to be dead."""
        if self._socket is not None and select.select([self._socket], [], [], 0)[0]:
            self.close()  # Nothing is expected, so what can be read is the end, or rubbish.
        kept = self._socket is not None
        try:
            return self._try(request, deadline_s)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self.close()
            if not kept or not request.repeatable:
                raise
        return self._try(request, deadline_s)

    def close(self) -> None:
        """Close it."""
        self._http.close()
        self._socket = None

    def _try(self, request: Request, deadline_s: float) -> Response:
        if self._socket is None:
            self._socket = _connect(self._url, deadline_s, self._tls)
            self._http.sock = self._socket
        self._socket.deadline_s = deadline_s
        self._http.request(
            request.method, self._url.path + request.path, request.body or None, dict(request.headers)
        )
        answer = self._http.getresponse()
        body = bytearray()
        while part := answer.read1(_CHUNK_BYTES):
            body += part
            if len(body) > REPLY_BYTES_MAX:
                raise ManifestError(f"an answer of more than {REPLY_BYTES_MAX} bytes")
        answer.close()
        if answer.length:
            raise http.client.IncompleteRead(b"", answer.length)
        if answer.will_close:
            self.close()
        return Response(
            answer.status, bytes(body), json_length(answer.headers.get(JSON_LENGTH_HEADER), len(body))
        )


class _Deadlined(socket.socket):
    """A socket whose every wait ends at one deadline."""

    deadline_s: float = math.inf

    def recv_into(self, *given: Any, **named: Any) -> int:
        self._limit()
        return super().recv_into(*given, **named)

    def sendall(self, *given: Any, **named: Any) -> None:
        self._limit()
        super().sendall(*given, **named)

    def _limit(self) -> None:
        self.settimeout(None if math.isinf(self.deadline_s) else left_s(self.deadline_s))


class _DeadlinedTls(ssl.SSLSocket, _Deadlined):
    """The same over TLS."""

    def recv_into(self, *given: Any, **named: Any) -> int:
        self._limit()
        return ssl.SSLSocket.recv_into(self, *given, **named)

    def sendall(self, *given: Any, **named: Any) -> None:
        self._limit()
        ssl.SSLSocket.sendall(self, *given, **named)


def left_s(deadline_s: float) -> float:
    """Seconds until a deadline.

    Raises:
        TimeoutError: It has passed.
    """
    left = deadline_s - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def json_length(stated: str | None, body_bytes: int) -> int:
    """How much of a body is JSON: all of it if nothing is stated.

    Raises:
        ManifestError: What is stated cannot be.

    >>> json_length(None, 7), json_length("3", 7)
    (7, 3)
    """
    if stated is None:
        return body_bytes
    if not stated.isascii() or not stated.isdecimal() or len(stated) > 10 or int(stated) > body_bytes:
        raise ManifestError(f"the agent's answer is not an answer: {JSON_LENGTH_HEADER} is {stated[:40]!r}")
    return int(stated)


def first_of(models: tuple[str, ...]) -> str:
    """Return the model that serves.

    Raises:
        TransferError: None does.
        ConfigError: Several do.
    """
    if not models:
        raise TransferError(
            "the agent has no model now", hint="assign or flash a release, or try again later"
        )
    if len(models) > 1:
        raise ConfigError(f"the agent has several models: {', '.join(models)}", hint="name the one you mean")
    return models[0]


def link_down(url: AgentUrl, error: Exception) -> LinkDownError:
    """Say that nothing answers, and why."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return LinkDownError(
        f"no agent answers at {url.text}: {reason}",
        hint="start one with serve.listen set: edgeml agent run -c agent.toml",
    )


def stalled(url: AgentUrl, wait_s: float) -> StalledError:
    """Say that the answer took too long."""
    return StalledError(f"the agent at {url.text} did not answer within {wait_s:g} s")


def _connect(url: AgentUrl, deadline_s: float, tls: ssl.SSLContext | None) -> _Deadlined:
    if url.socket_path:
        local = _Deadlined(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            local.settimeout(left_s(deadline_s))
            local.connect(url.socket_path)
        except BaseException:
            local.close()
            raise
        return local
    port = url.port or (443 if tls else 80)
    plain = socket.create_connection((url.host, port), timeout=left_s(deadline_s))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls is None:
        return _Deadlined(fileno=plain.detach())
    try:
        wrapped = tls.wrap_socket(plain, server_hostname=url.host)
    except BaseException:
        plain.close()
        raise
    assert isinstance(wrapped, _DeadlinedTls)
    return wrapped


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.sslsocket_class = _DeadlinedTls
    return context
