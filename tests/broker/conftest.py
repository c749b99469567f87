"""Real brokers in child processes, and clients that remember what they received."""

from __future__ import annotations

import os
import queue
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edgeml.ids import DeviceId
from edgeml.port import free_port
from fleet import broker, config, mosquitto
from fleet.broker import BrokerKind, Launch
from fleet.config import FleetConfig, FleetHome
from fleet.tokens import controller_token, token_hash

from ..waiting import PATIENCE_S, wait_for

TENANT = "acme"
DEVICES = ("cam-a", "cam-b")


@dataclass
class RunningBroker:
    kind: BrokerKind
    home: FleetHome
    config: FleetConfig
    launch: Launch
    tokens: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    clients: list[Client] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.config.broker.port

    def start(self) -> None:
        self.process = subprocess.Popen(self.launch.command, stdin=subprocess.DEVNULL)
        wait_for(self._listens, "the broker")

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "the broker ended"
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=0.5).close()
            return True
        return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        for client in self.clients:
            client.close()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def reload_logins(self, tokens: dict[str, str]) -> None:
        self.tokens = tokens | {"controller": controller_token(self.home)}
        hashes = {
            DeviceId(name): (token_hash(token), mosquitto.hash_token(token)) for name, token in tokens.items()
        }
        broker.write_logins(self.home, hashes)
        if self.process is not None and self.kind is BrokerKind.MOSQUITTO:
            self.process.send_signal(signal.SIGHUP)

    def client(self, user: str, client_id: str = "", will: tuple[str, bytes] | None = None) -> Client:
        client = Client(
            self.port, user, self.tokens[user], client_id or f"{user}-{os.urandom(4).hex()}", will
        )
        self.clients.append(client)
        return client


class Client:
    """A paho client with an inbox of (topic, payload)."""

    def __init__(
        self, port: int, user: str, token: str, client_id: str, will: tuple[str, bytes] | None = None
    ) -> None:
        self.inbox: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.accepted: bool | None = None
        self.lost = threading.Event()
        self._answered = threading.Event()
        self._granted = threading.Event()
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
        )
        if user:
            client.username_pw_set(user, token)
        if will is not None:
            client.will_set(will[0], will[1], 1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = lambda *_: self._granted.set()
        client.on_message = lambda _client, _data, message: self.inbox.put(
            (message.topic, bytes(message.payload))
        )
        client.connect("127.0.0.1", port, keepalive=30)
        client.loop_start()
        self.paho = client
        assert self._answered.wait(PATIENCE_S), "no answer to the login"

    def _on_connect(self, _client, _data, _flags, reason, _properties) -> None:
        self.accepted = not reason.is_failure
        self._answered.set()

    def _on_disconnect(self, *_arguments) -> None:
        self.lost.set()

    def subscribe(self, *filters: str) -> None:
        self._granted.clear()
        self.paho.subscribe([(one, 1) for one in filters])
        assert self._granted.wait(PATIENCE_S), "no answer to the subscription"

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.paho.publish(topic, payload, 1, retain).wait_for_publish(PATIENCE_S)

    def take(self, timeout_s: float = PATIENCE_S) -> tuple[str, bytes] | None:
        try:
            return self.inbox.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def take_until(self, payload: bytes, timeout_s: float = PATIENCE_S) -> list[bytes]:
        """Payloads up to and including this one."""
        seen: list[bytes] = []
        until = time.monotonic() + timeout_s
        while payload not in seen:
            arrived = self.take(max(0.01, until - time.monotonic()))
            assert arrived is not None, f"{payload!r} did not arrive; {seen} did"
            seen.append(arrived[1])
        return seen

    def drop(self) -> None:
        """Vanish without a goodbye."""
        sock = self.paho.socket()
        assert sock is not None
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        self.paho.loop_stop()

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()


def make_broker(kind: str, directory: Path) -> RunningBroker:
    home = FleetHome(directory)
    config.create(home)
    home.settings.write_text(
        f'tenant = "{TENANT}"\n[broker]\nport = {free_port()}\nkind = "{kind}"\n[http]\nport = {free_port()}\n'
    )
    settings = config.load(home)
    running = RunningBroker(BrokerKind(kind), home, settings, broker.prepare(home, settings), {})
    running.reload_logins({name: f"token-of-{name}" for name in DEVICES})
    return running


@pytest.fixture(scope="session")
def need_mosquitto() -> None:
    if mosquitto.find() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("mosquitto must be installed where CI=true")
        pytest.skip("mosquitto is not installed")


@pytest.fixture(scope="module", params=["mosquitto", "amqtt"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningBroker]:
    """Each broker in turn, as `fleet serve` starts it."""
    if request.param == "mosquitto":
        request.getfixturevalue("need_mosquitto")
    started = make_broker(request.param, tmp_path_factory.mktemp(request.param))
    started.start()
    yield started
    started.stop()
