"""The client of an agent's local endpoint for programs that use asyncio.

Decides how many connections there are and how an HTTP answer is read from a stream. It is written over asyncio's own
streams: httpx and its like would bring six packages to a device for one kind of request to one peer. The messages are
`inference`'s business, URLs and errors `client`'s.
"""

from __future__ import annotations

import asyncio
import http
import http.client
import io
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from .client import TIMEOUT_S, AgentUrl, first_of, json_length, link_down, stalled
from .errors import ManifestError
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

CONNECTIONS_MAX: Final = 8
HEAD_BYTES_MAX: Final = 64 << 10


class AsyncClient:
    """Up to `CONNECTIONS_MAX` connections to an agent, for one event loop. Methods may run at the same time.

    Methods and their errors are those of `edgeml.client.Client`. A request that is cancelled takes its connection along.

    Raises:
        ConfigError: The URL is none.
    """

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._url = AgentUrl.parse(url)
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []
        self._places = asyncio.Semaphore(CONNECTIONS_MAX)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close connections that are idle."""
        while self._idle:
            await self._idle.pop().close()

    async def ready(self, model: str | None = None) -> bool:
        """Whether the agent would answer a request, or one for this model."""
        path = "/v2/health/ready" if model is None else model_path(model) + "/ready"
        return read_ready(await self._ask(Request("GET", path)))

    async def models(self) -> tuple[str, ...]:
        """Names of the models that serve now."""
        return read_message(await self._ask(Request("GET", "/v2")), ServerMetadata).models

    async def model(self, name: str | None = None) -> ModelMetadata:
        """Describe the named model, or the only one that serves."""
        if name is None:
            name = first_of(await self.models())
        return read_message(await self._ask(Request("GET", model_path(name))), ModelMetadata)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        request_id: str = "",
        outputs: tuple[str, ...] = (),
        timeout_s: float | None = None,
    ) -> Prediction:
        """Ask a model; arguments as in `edgeml.client.Client.infer`. Waiting for a connection counts as time, too."""
        request = infer_request(model, inputs, request_id, outputs, timeout_s)
        return read_prediction(await self._ask(request, timeout_s))

    async def feedback(self, model: str, request_id: str, label: int | str) -> bool:
        """Say what an earlier request really showed; False if the agent does not remember it (any more)."""
        return read_matched(await self._ask(feedback_request(model, request_id, label)))

    async def _ask(self, request: Request, timeout_s: float | None = None) -> Response:
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(wait_s), self._places:
                return await self._answer(request)
        except TimeoutError as error:
            raise stalled(self._url, wait_s) from error
        except (OSError, EOFError, http.client.HTTPException) as error:
            raise link_down(self._url, error) from error

    async def _answer(self, request: Request) -> Response:
        while self._idle:
            kept = self._idle.pop()
            if kept.over:
                await kept.close()
                continue
            try:
                return await self._exchange(kept, request)
            except (ConnectionResetError, BrokenPipeError, _NoAnswerError):
                if not request.repeatable:
                    raise
                break
        return await self._exchange(await _open(self._url), request)

    async def _exchange(self, connection: _Connection, request: Request) -> Response:
        try:
            response, lives = await connection.exchange(request)
        except BaseException:
            connection.abort()
            raise
        if lives:
            self._idle.append(connection)
        else:
            await connection.close()
        return response


class _NoAnswerError(EOFError):
    """The connection ended before the first byte of an answer."""


class _Connection:
    """A connection that is open."""

    def __init__(self, url: AgentUrl, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._url = url
        self._reader = reader
        self._writer = writer

    @property
    def over(self) -> bool:
        """Whether the peer has closed it."""
        return self._reader.at_eof() or self._writer.is_closing()

    async def exchange(self, request: Request) -> tuple[Response, bool]:
        """Send a request and read its answer; tell whether the connection lives on."""
        host = self._url.host if self._url.port is None else f"{self._url.host}:{self._url.port}"
        lines = [
            f"{request.method} {self._url.path}{request.path} HTTP/1.1",
            f"Host: {host}",
            f"Content-Length: {len(request.body)}",
            *(f"{name}: {value}" for name, value in request.headers.items()),
        ]
        self._writer.write("\r\n".join((*lines, "", "")).encode("ascii") + request.body)
        await self._writer.drain()
        status, headers = await self._head()
        body = await self._body(headers)
        length = json_length(headers.get(JSON_LENGTH_HEADER), len(body))
        ends = headers.get("Connection", "").lower() == "close" or not _is_delimited(headers)
        return Response(status, body, length), not ends

    async def close(self) -> None:
        """Close it."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return  # The peer was faster.

    def abort(self) -> None:
        """Drop it at once; an answer may still be under way."""
        self._writer.transport.abort()

    async def _head(self) -> tuple[int, http.client.HTTPMessage]:
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                raise _NoAnswerError("the connection was closed") from error
            raise http.client.BadStatusLine(error.partial[:40].decode("latin-1")) from error
        except asyncio.LimitOverrunError as error:
            raise http.client.HTTPException("headers without end") from error
        first, _, rest = head.partition(b"\r\n")
        version, _, status = first.partition(b" ")
        if version not in {b"HTTP/1.1", b"HTTP/1.0"} or not status[:3].isdigit():
            raise http.client.BadStatusLine(first[:40].decode("latin-1"))
        return int(status[:3]), http.client.parse_headers(io.BytesIO(rest))

    async def _body(self, headers: http.client.HTTPMessage) -> bytes:
        if headers.get("Transfer-Encoding", "").lower() == "chunked":
            return await self._chunks()
        stated = headers.get("Content-Length")
        if stated is None:
            body = await self._reader.read(REPLY_BYTES_MAX + 1)
            while more := await self._reader.read(max(0, REPLY_BYTES_MAX + 1 - len(body))):
                body += more
            _check_length(len(body))
            return body
        if not stated.isascii() or not stated.isdecimal() or len(stated) > 18:
            raise http.client.HTTPException(f"a length of {stated[:40]!r}")
        _check_length(int(stated))
        return await self._reader.readexactly(int(stated))

    async def _chunks(self) -> bytes:
        body = bytearray()
        while True:
            line = (await self._reader.readuntil(b"\r\n")).partition(b";")[0].strip()
            try:
                size = int(line, 16)
            except ValueError as error:
                raise http.client.HTTPException("a chunk without length") from error
            if not size:
                while await self._reader.readuntil(b"\r\n") != b"\r\n":
                    pass  # Trailers mean nothing here.
                return bytes(body)
            _check_length(len(body) + size)
            body += await self._reader.readexactly(size)
            if await self._reader.readexactly(2) != b"\r\n":
                raise http.client.HTTPException("a chunk without end")


async def _open(url: AgentUrl) -> _Connection:
    if url.socket_path:
        reader, writer = await asyncio.open_unix_connection(url.socket_path, limit=HEAD_BYTES_MAX)
    else:
        port = url.port or (443 if url.secure else 80)
        reader, writer = await asyncio.open_connection(
            url.host, port, ssl=url.secure or None, limit=HEAD_BYTES_MAX
        )
    return _Connection(url, reader, writer)


def _is_delimited(headers: http.client.HTTPMessage) -> bool:
    return "Content-Length" in headers or headers.get("Transfer-Encoding", "").lower() == "chunked"


def _check_length(length: int) -> None:
    if not 0 <= length <= REPLY_BYTES_MAX:
        raise ManifestError(f"an answer of more than {REPLY_BYTES_MAX} bytes")
