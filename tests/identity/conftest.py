"""A fleet with its real HTTPS server, and a clock that a test may set."""

import contextlib
import socket
import threading
import time

import pytest
import uvicorn

from agent.enrolment import Wish
from edgeml.identity import parse_invitation
from edgeml.port import free_port
from edgeml.testing import FakeClock
from fleet import api, founding, tls_files
from fleet.admission import Admission
from fleet.config import FleetHome, database_url, load
from fleet.store import Store

from ..waiting import wait_for

HOUR_MS = 3_600_000
PROFILE = "generic-x86-64"


class Fleet:
    """A founded fleet that listens for devices over TLS."""

    def __init__(self, directory, kind="amqtt"):
        self.home = FleetHome(directory / "fleet")
        founding.found(self.home)
        self.port = free_port()
        self.home.settings.write_text(
            f'[broker]\nport = {free_port()}\nkind = "{kind}"\n[http]\nport = {free_port()}\n'
            f"[tls]\nbroker_port = {free_port()}\nhttp_port = {self.port}\n"
        )
        self.config = load(self.home)
        self.store = Store(database_url(self.home, self.config))
        self.clock = FakeClock(time.time_ns() // 1_000_000)
        self.authority = tls_files.prepare(self.home, self.config, self.store, self.clock.now_ms())
        self.admission = Admission(self.home, self.config, self.store, self.authority)

    def invitation(self, device="", life_ms=HOUR_MS):
        return self.admission.invite(PROFILE, device, life_ms, self.clock.now_ms())

    def wish(self, directory, invitation=None, device="cam-1", profile=""):
        return Wish(invitation or self.invitation(), device, profile, directory)

    def without_claim(self):
        return parse_invitation(f"127.0.0.1:{self.port}#{self.authority.fingerprint}")

    @contextlib.contextmanager
    def served(self, port=None):
        server = uvicorn.Server(api.tls_server_of(self.home, self.clock))
        listener = socket.create_server(("127.0.0.1", port or self.port))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started, "the server")
        try:
            yield self
        finally:
            server.should_exit = True
            thread.join(60)
            listener.close()


@pytest.fixture
def fleet(tmp_path):
    made = Fleet(tmp_path)
    with made.served():
        yield made
    made.store.close()


@pytest.fixture(scope="session")
def make_fleet():
    return Fleet
