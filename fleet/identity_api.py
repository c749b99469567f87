"""Enrolment and renewal over HTTPS, and who a peer is by its certificate.

Decides the routes, their limits, and how a refusal is told. Served only by the TLS listener. Who is let in is decided
in `admission`.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from fastapi import FastAPI, HTTPException, Request, Response
from starlette.concurrency import run_in_threadpool
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from edgeml.clock import Clock
from edgeml.errors import ArtifactError, ConfigError, EdgemlError
from edgeml.identity import (
    CA_PATH,
    ENROL_PATH,
    MESSAGE_BYTES_MAX,
    RENEW_PATH,
    EnrolRequest,
    RenewAnswer,
    RenewRequest,
)

from .admission import Admission
from .peer import Peer, origin_of, read_peer

_PEER: Final = "edgeml.peer"


def peer_of(request: Request) -> Peer | None:
    """Return who connected with a certificate; None without one."""
    found = request.scope.get(_PEER)
    return found if isinstance(found, Peer) else None


class PeerProtocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]  # chosen at run time
    """uvicorn's protocol, which tells the application who connected."""

    app: Any

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Read the peer's certificate once a connection."""
        super().connection_made(transport)
        peer, app = read_peer(transport.get_extra_info("peercert")), self.app
        if peer is not None:

            async def with_peer(scope: Any, receive: Any, send: Any) -> None:
                scope[_PEER] = peer
                await app(scope, receive, send)

            self.app = with_peer


def add_routes(app: FastAPI, admission: Admission, clock: Clock) -> None:
    """Add enrolment and renewal to the application."""

    @app.get(CA_PATH)
    def certificate_authority() -> Response:
        """The authority's certificate; whoever fetches it compares its fingerprint."""
        return Response(admission.authority.pem, media_type="application/x-pem-file")

    @app.post(ENROL_PATH)
    async def enrol(request: Request) -> Response:
        """Ask to become a device."""
        asked = _decode(await _body(request), EnrolRequest)
        origin = origin_of(request.client.host if request.client else "")
        return await _answer(lambda: admission.enrol(asked, origin, clock.now_ms()))

    @app.post(RENEW_PATH)
    async def renew(request: Request) -> Response:
        """Ask for a new certificate, with the one of before."""
        peer = peer_of(request)
        if peer is None:
            raise HTTPException(401, "connect with the device's certificate")
        asked = _decode(await _body(request), RenewRequest)
        return await _answer(
            lambda: RenewAnswer(
                certificate=admission.renew(peer.device, peer.serial, asked.csr, clock.now_ms())
            )
        )


async def _body(request: Request) -> bytes:
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > MESSAGE_BYTES_MAX:
            raise HTTPException(413, "the request is too long")
    return data


def _decode(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise HTTPException(400, "the request cannot be read") from error


async def _answer(work: Any) -> Response:
    try:
        answer = await run_in_threadpool(work)
    except (ArtifactError, ConfigError) as error:
        return _json(403, {"error": error.message, "hint": error.hint})
    except EdgemlError as error:
        return _json(503, {"error": error.message, "hint": error.hint})
    return _json(200, answer)


def _json(status: int, content: Any) -> Response:
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json")
