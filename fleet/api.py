"""Serves devices their signed metadata and bundles, and the operator a read-only view.

Decides who may read what over HTTP: a device with its token reads the repository, the operator with theirs reads the
fleet's status. Nothing can be changed here, but for devices that enrol themselves (`identity_api`). What is served to
devices is signed, so they trust none of it for having come from here; ranges and `If-Range` let them go on where a
download was cut.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import socket
import ssl
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, Final

import click
import msgspec
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBasic, HTTPBasicCredentials, HTTPBearer

from edgeml import __version__
from edgeml.clock import Clock, SystemClock
from edgeml.errors import EdgemlError
from edgeml.ids import is_digest, is_name

from . import authority, devices, identities, metrics, overview, tls_files
from .admission import Admission
from .config import FleetHome, database_url, find_home, load
from .identity_api import PeerProtocol, add_routes, peer_of
from .lifeline import Lifeline
from .store import Store
from .tokens import operator_token, token_hash

CONCURRENT_REQUESTS_MAX: Final = 200
KEEP_ALIVE_S: Final = 5
LIFELINE_EVERY_S: Final = 1.0
_LIMITS: Final[dict[str, Any]] = {
    "log_level": "warning",
    "access_log": False,
    "server_header": False,
    "limit_concurrency": CONCURRENT_REQUESTS_MAX,
    "timeout_keep_alive": KEEP_ALIVE_S,
    "timeout_graceful_shutdown": 2,
}
_METADATA_NAME: Final = re.compile(r"(?:[0-9]{1,10}\.)?[a-z][a-z0-9_-]{0,60}\.json", re.ASCII)
_device_login = HTTPBasic(realm="edgeml devices", auto_error=False)
_operator_login = HTTPBearer(auto_error=False)


def make_app(home: FleetHome, store: Store, operator: str) -> FastAPI:
    """Build the application.

    Args:
        home: the fleet's directory, of which `repository` is served.
        store: where device logins and the fleet's status are.
        operator: the operator's token.
    """
    # The interactive pages load scripts from elsewhere; the description itself stays.
    app = FastAPI(title="edgeml fleet", version=__version__, docs_url=None, redoc_url=None)

    def device(
        request: Request, login: Annotated[HTTPBasicCredentials | None, Depends(_device_login)]
    ) -> str:
        peer = peer_of(request)
        if peer is not None:
            with store.read() as connection:
                if identities.is_valid(connection, peer.device, peer.serial):
                    return peer.device
            raise HTTPException(403, "this certificate was revoked")
        if login is None:
            raise HTTPException(
                401, "a device's login is needed", {"WWW-Authenticate": 'Basic realm="edgeml devices"'}
            )
        known = None
        if is_name(login.username):
            with store.read() as connection:
                known = devices.token_sha256(connection, login.username)
        # Compared also for an unknown name, so that it takes as long as a known one.
        if not hmac.compare_digest(known or token_hash(""), token_hash(login.password)) or known is None:
            raise HTTPException(401, "unknown device or wrong token", {"WWW-Authenticate": "Basic"})
        return login.username

    def is_operator(login: Annotated[HTTPAuthorizationCredentials | None, Depends(_operator_login)]) -> None:
        given = login.credentials if login else ""
        if not hmac.compare_digest(token_hash(operator), token_hash(given)):
            raise HTTPException(401, "the operator's token is needed", {"WWW-Authenticate": "Bearer"})

    @app.get("/metadata/{name}", dependencies=[Depends(device)], response_class=FileResponse)
    def metadata(name: str) -> FileResponse:
        """Signed metadata, never cached."""
        if not _METADATA_NAME.fullmatch(name):
            raise HTTPException(404, "no such metadata")
        return _file(home.repository / "metadata" / name, "application/json", {"Cache-Control": "no-cache"})

    @app.get("/blobs/sha256/{digest}", dependencies=[Depends(device)], response_class=FileResponse)
    def blob(digest: str) -> FileResponse:
        """Content by its digest: it never changes, so its digest is its entity tag."""
        if not is_digest(digest):
            raise HTTPException(404, "no such blob")
        headers = {"ETag": f'"{digest}"', "Cache-Control": "private, max-age=31536000, immutable"}
        return _file(home.repository / "blobs" / "sha256" / digest, "application/octet-stream", headers)

    @app.get("/healthz")
    def healthz() -> Response:
        """Whether the server answers."""
        return Response(b"ok\n", media_type="text/plain")

    @app.get("/api/status", dependencies=[Depends(is_operator)])
    def status() -> Response:
        """Devices and the controller."""
        return _json(overview.status(store, SystemClock().now_ms()))

    @app.get("/metrics", dependencies=[Depends(is_operator)])
    def page() -> Response:
        """Devices and the controller, for Prometheus."""
        view = overview.status(store, SystemClock().now_ms())
        return Response(metrics.render(view), media_type=metrics.METRICS_TYPE)

    @app.get("/api/rollouts", dependencies=[Depends(is_operator)])
    def rollouts() -> Response:
        """Every rollout, newest first."""
        return _json(overview.rollouts(store))

    @app.get("/api/drift", dependencies=[Depends(is_operator)])
    def drift() -> Response:
        """What drifts."""
        return _json(overview.drift(store, SystemClock().now_ms()))

    return app


def _file(path: Path, media_type: str, headers: dict[str, str]) -> FileResponse:
    if not path.is_file():
        raise HTTPException(404, "there is no such file")
    return FileResponse(path, headers=headers, media_type=media_type)


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def server_of(home: FleetHome) -> uvicorn.Config:
    """Say how the plain listener serves a fleet.

    Raises:
        ConfigError, StorageError, StateError: The fleet cannot be opened.
    """
    app = make_app(home, Store(database_url(home, load(home))), operator_token(home))
    return uvicorn.Config(app, **_LIMITS)


def tls_server_of(home: FleetHome, clock: Clock) -> uvicorn.Config:
    """Say how the TLS listener serves a fleet: a device's certificate is asked for, and needed but for enrolment.

    Raises:
        ConfigError, StorageError, StateError: The fleet cannot be opened.
    """
    config = load(home)
    store = Store(database_url(home, config))
    app = make_app(home, store, operator_token(home))
    add_routes(app, Admission(home, config, store, authority.load(home.authority)), clock)
    made = uvicorn.Config(
        app,
        http=PeerProtocol,
        ssl_certfile=tls_files.server_path(home),
        ssl_ca_certs=str(tls_files.authority_path(home)),
        ssl_cert_reqs=ssl.CERT_OPTIONAL,
        **_LIMITS,
    )
    made.load()
    assert made.ssl is not None
    made.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return made


def serve(config: uvicorn.Config, listener: socket.socket) -> None:
    """Serve on a bound socket, until SIGTERM or until the parent dies."""
    server = uvicorn.Server(config)
    lifeline = Lifeline()

    def watch() -> None:
        while not server.should_exit:
            if lifeline.cut:
                server.should_exit = True
            threading.Event().wait(LIFELINE_EVERY_S)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()
    server.run(sockets=[listener])


@click.command()
@click.option("--dir", "directory", required=True)
@click.option("--tls", is_flag=True)
def main(directory: str, *, tls: bool) -> None:
    """Serve a fleet's directory; `edgeml fleet serve` starts it."""
    logging.basicConfig(level=logging.WARNING, format="http: %(message)s")
    home = find_home(directory)
    try:
        config = load(home)
        host, port = (config.tls.host, config.tls.http_port) if tls else (config.http.host, config.http.port)
        made = tls_server_of(home, SystemClock()) if tls else server_of(home)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        serve(made, socket.create_server((host, port), family=family, backlog=512))
    except EdgemlError as error:
        # One line for people; the trace would say nothing that they can use.
        click.echo(f"error: {error.message}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"error: cannot listen: {os.strerror(error.errno or 0)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
