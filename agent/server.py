"""The device's local HTTP endpoint: a subset of the Open Inference Protocol, and feedback.

Decides routes, limits on what is read, and status codes. Where it listens is `listener`'s business; bytes to tensors,
`protocol`'s; answering, that of the `Inference` behind it. Needs the [serve] extra, which is imported when a server is
made.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec, Protocol, TypeVar

from edgeml import __version__
from edgeml.errors import ConfigError, EdgemlError
from edgeml.inference import JSON_LENGTH_HEADER, ModelMetadata, ServerMetadata
from edgeml.manifest import Manifest

from .ipc import TensorBytes
from .line import NO_DEADLINE
from .listener import Exposure, Listener, UnixSocket, parse_listen
from .metrics import METRICS_TYPE
from .misfit import MisfitError
from .protocol import (
    BODY_BYTES_MAX,
    Call,
    decode_call,
    decode_feedback,
    encode_reply,
)
from .refusal import as_json, refuse, report
from .serving import NoModelError, Served

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from .intake import Intake

logger = logging.getLogger(__name__)

OPENAPI: Final = Path(__file__).with_name("openapi.json")
"""Describes the routes; a test compares it with them."""
CONNECTIONS_MAX: Final = 64
LOOP_BYTES_MAX: Final = 128 << 10
"""Requests and answers up to this length are read and written in the event loop; longer ones would hold it up, and get a
thread."""
START_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 3.0
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


class Inference(Protocol):
    """Who answers. Methods are called from several threads."""

    def models(self) -> Sequence[str]:
        """Which models serve now."""
        ...

    def manifest(self, model: str) -> Manifest | None:
        """What serves under this name now; None if nothing does."""
        ...

    def ready(self, model: str) -> bool:
        """Whether a request to this model would be answered."""
        ...

    def infer(self, model: str, tensors: Sequence[TensorBytes], request_id: str, deadline_s: float) -> Served:
        """Answer one request, whose turn must come before the deadline on the monotonic clock. Raises EdgemlError."""
        ...

    async def infer_in_loop(
        self, model: str, tensors: Sequence[TensorBytes], request_id: str, deadline_s: float
    ) -> Served:
        """The same in the endpoint's event loop. Raises EdgemlError."""
        ...

    def misfit(self, model: str, error: MisfitError) -> None:
        """Count a request that was refused before it could be asked."""
        ...

    def feedback(self, model: str, request_id: str, label: int | str) -> bool:
        """Hear what an earlier request really showed; False if it is not remembered. Raises ConfigError."""
        ...


class Server:
    """The endpoint, in a thread with an event loop of its own."""

    def __init__(
        self,
        inference: Inference,
        listen: str,
        exposure: Exposure = Exposure.LOOPBACK,
        metrics: Callable[[], str] | None = None,
        intake: Intake | None = None,
    ) -> None:
        """Prepare it.

        Args:
            inference: who answers.
            listen: `host:port`, of which port 0 takes a free one, or `unix:` and the path of a socket.
            exposure: what `host` may be.
            metrics: writes the text that Prometheus reads; called from several threads. None: there is no such page.
            intake: takes flashed releases, on a unix socket only, whose file's rights say who may.

        Raises:
            ConfigError: The extra is not installed, or `listen` is not valid or not allowed.
        """
        try:
            import uvicorn

            from .http_host import HttpHost
        except ImportError as error:
            raise ConfigError(
                "the local endpoint needs starlette and uvicorn", hint="pip install 'edgeml-fleet[serve]'"
            ) from error
        self._address = parse_listen(listen, exposure)
        self._server = HttpHost(
            uvicorn.Config(
                make_app(inference, metrics, intake if isinstance(self._address, UnixSocket) else None),
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS_MAX,
                timeout_graceful_shutdown=1,
            )
        )
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens, for example `http://127.0.0.1:8090` or `unix:///run/agent.sock`; only after `start`."""
        assert self._listener is not None
        return self._listener.url

    def start(self) -> None:
        """Bind the address and serve.

        Raises:
            ConfigError: The address is taken or not this machine's.
        """
        self._listener = Listener(self._address)
        self._thread = threading.Thread(
            target=self._serve, args=(self._listener.socket,), name="http", daemon=True
        )
        self._thread.start()
        logger.info("serving on %s", self.url)

    def stop(self) -> None:
        """Finish the requests under way, for a second at most, and stop listening."""
        self._server.end()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_S)
        if self._listener is not None:
            self._listener.close()

    def _serve(self, listener: socket.socket) -> None:
        self._server.run(sockets=[listener])


def make_app(
    inference: Inference, metrics: Callable[[], str] | None = None, intake: Intake | None = None
) -> Starlette:
    """Make the ASGI application."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    endpoints = _Endpoints(inference)
    model = "/v2/models/{name}"
    # In the order in which they are looked through; requests for inference come far more often than all others.
    routes = []
    for path in (model, model + "/versions/{version}"):
        routes += [
            Route(path + "/infer", endpoints.infer, methods=["POST"]),
            Route(path, endpoints.model),
            Route(path + "/ready", endpoints.model_ready),
        ]
    routes += [
        Route(model + "/feedback", endpoints.feedback, methods=["POST"]),
        Route("/v2/health/live", endpoints.live),
        Route("/v2/health/ready", endpoints.ready),
        Route("/v2", endpoints.server),
        Route("/openapi.json", _openapi),
    ]
    if metrics is not None:
        routes.append(Route("/metrics", _metrics_page(metrics)))
    if intake is not None:
        from . import intake_route

        routes += intake_route.routes(intake)
    handlers = {HTTPException: refuse, EdgemlError: report}
    return Starlette(routes=routes, exception_handlers=handlers)  # type: ignore[arg-type]  # its stub wants handlers of Exception


class _Endpoints:
    """What the routes do. Whatever may take time is done in a thread."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    async def server(self, _request: Request) -> Response:
        models = tuple(self._inference.models())
        return as_json(ServerMetadata("edgeml", __version__, ("binary_tensor_data", "feedback"), models))

    async def live(self, _request: Request) -> Response:
        return as_json({"live": True})

    async def ready(self, _request: Request) -> Response:
        models = self._inference.models()
        ready = bool(models) and all(self._inference.ready(model) for model in models)
        return as_json({"ready": ready}, 200 if ready else 503)

    async def model(self, request: Request) -> Response:
        return as_json(ModelMetadata.of(self._manifest(request)))

    async def model_ready(self, request: Request) -> Response:
        manifest = self._manifest(request)
        ready = self._inference.ready(manifest.model)
        return as_json({"name": manifest.model, "ready": ready}, 200 if ready else 503)

    async def infer(self, request: Request) -> Response:
        manifest = self._manifest(request)
        body = await _body(request)
        length = _json_length(request, len(body))
        arrived_s = time.monotonic()
        if len(body) > LOOP_BYTES_MAX:
            return await _in_thread(self._answer, manifest, body, length, arrived_s)
        async with _foreseen():
            call = self._call(body, length, manifest)
            deadline_s = _deadline_s(call, arrived_s)
            served = await self._inference.infer_in_loop(
                manifest.model, call.tensors, call.request_id, deadline_s
            )
            if sum(len(one.data) for one in served.answer.outputs) <= LOOP_BYTES_MAX:
                return _reply(served, call)
        return await _in_thread(_reply, served, call)

    async def feedback(self, request: Request) -> Response:
        model = self._manifest(request).model
        feedback = decode_feedback(await _body(request))
        if not await _in_thread(self._inference.feedback, model, feedback.id, feedback.label):
            message = f"no recent request has the id {feedback.id!r}"
            return as_json({"error": message, "matched": False}, 404)
        return as_json({"matched": True})

    def _answer(self, manifest: Manifest, body: bytes, json_length: int, arrived_s: float) -> Response:
        call = self._call(body, json_length, manifest)
        deadline_s = _deadline_s(call, arrived_s)
        return _reply(self._inference.infer(manifest.model, call.tensors, call.request_id, deadline_s), call)

    def _call(self, body: bytes, json_length: int, manifest: Manifest) -> Call:
        try:
            return decode_call(body, json_length, manifest)
        except MisfitError as error:
            self._inference.misfit(manifest.model, error)
            raise

    def _manifest(self, request: Request) -> Manifest:
        """Find the model that the path names."""
        from starlette.exceptions import HTTPException

        name = request.path_params["name"]
        manifest = self._inference.manifest(name)
        if manifest is None:
            models = self._inference.models()
            if not models:
                raise NoModelError("no model serves on this device", hint="assign or flash a release")
            raise HTTPException(404, f"no such model here; there are: {', '.join(models)}")
        if request.path_params.get("version", manifest.version) != manifest.version:
            raise HTTPException(404, f"no such version here; {manifest.release} is")
        return manifest


async def _openapi(_request: Request) -> Response:
    from starlette.responses import Response

    # Read when it is asked for: a device keeps no document in memory that nobody reads.
    return Response(await _in_thread(OPENAPI.read_bytes), media_type="application/json")


def _metrics_page(metrics: Callable[[], str]) -> Callable[[Request], Awaitable[Response]]:
    async def page(_request: Request) -> Response:
        from starlette.responses import Response

        return Response(await _in_thread(metrics), media_type=METRICS_TYPE)

    return page


async def _in_thread(
    function: Callable[_Given, _Result], *given: _Given.args, **named: _Given.kwargs
) -> _Result:
    """Run what may take time. What it does not foresee is logged and becomes a 500, and the connection lives on."""
    from starlette.concurrency import run_in_threadpool

    async with _foreseen():
        return await run_in_threadpool(function, *given, **named)


@asynccontextmanager
async def _foreseen() -> AsyncIterator[None]:
    from starlette.exceptions import HTTPException

    try:
        yield
    except (EdgemlError, HTTPException):
        raise
    except Exception as error:
        logger.exception("a request failed")
        raise HTTPException(500, "internal error; the device's log has more") from error


def _deadline_s(call: Call, arrived_s: float) -> float:
    return arrived_s + call.timeout_us / 1e6 if call.timeout_us else NO_DEADLINE


def _reply(served: Served, call: Call) -> Response:
    from starlette.responses import Response

    reply = encode_reply(served, call)
    if not reply.json_length:
        return Response(reply.body, media_type="application/json")
    headers = {JSON_LENGTH_HEADER: str(reply.json_length)}
    return Response(reply.body, media_type="application/octet-stream", headers=headers)


async def _body(request: Request) -> bytes:
    """Read a body, but not more than BODY_BYTES_MAX, and none that is compressed: it could inflate to anything."""
    from starlette.exceptions import HTTPException

    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise HTTPException(
            415, f"a body in {encoding[:40]} is not read; send it as it is", {"Accept-Encoding": "identity"}
        )
    parts = []
    length = 0
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated[:20]) > BODY_BYTES_MAX:
        raise HTTPException(413, f"a body of {stated} bytes; at most {BODY_BYTES_MAX} are read")
    async for part in request.stream():
        length += len(part)
        if length > BODY_BYTES_MAX:
            raise HTTPException(413, f"a body of more than {BODY_BYTES_MAX} bytes")
        parts.append(part)
    return b"".join(parts)


def _json_length(request: Request, body_length: int) -> int:
    stated = request.headers.get(JSON_LENGTH_HEADER)
    if stated is None:
        return body_length
    if not stated.isascii() or not stated.isdecimal() or len(stated) > 10:
        raise ConfigError(f"{JSON_LENGTH_HEADER} is {stated[:40]!r}, not a length")
    return int(stated)
