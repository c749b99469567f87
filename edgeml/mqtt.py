"""The Transport over paho-mqtt.

Decides the client's settings: MQTT 3.1.1, clean session, QoS up to 1, a small in-flight window, jittered reconnects.
paho's own queue is never used as one: while the link is down, `publish` refuses, and what must not be lost waits in
SQLite. One client per process (paho's select loop dies near 340 clients).
"""

from __future__ import annotations

import logging
import queue
import random
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from .deferral import deferred
from .tls import TlsFiles, client_context, load_identity
from .transport import Arrival, LinkDown, LinkUp, Message
from .wire import WireMeter

# paho wants two functions of it, and only where PySocks is installed; an HTTP client and a mail parser come with it, 1.3 MB.
with deferred("urllib.request"):
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion

logger = logging.getLogger(__name__)

INBOX_MAX: Final = 10_000
INBOX_BYTES_MAX: Final = 64 << 20
"""What may wait for a receiver that is busy; payloads are up to 64 KiB, so that their number alone is no bound."""
IN_FLIGHT_MAX: Final = 20
RECONNECT_MIN_S: Final = 1.0
RECONNECT_FIRST_S: Final = 5.0
"""The longest first pause: a fleet that lost its broker in one instant comes back over so long."""
RECONNECT_MAX_S: Final = 60.0


def reconnect_delay_s(failures: int, drawn: float) -> float:
    """Say how long to wait before the next attempt to connect.

    Args:
        failures: attempts that have failed since the link was up; 0 right after it broke.
        drawn: a random number in [0, 1]; devices that were dropped together draw different ones.

    >>> [reconnect_delay_s(failures, 1.0) for failures in range(6)]
    [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    >>> reconnect_delay_s(0, 0.0), reconnect_delay_s(9, 0.0)
    (1.0, 1.0)
    """
    longest_s = min(RECONNECT_FIRST_S * 2.0 ** min(failures, 16), RECONNECT_MAX_S)
    return RECONNECT_MIN_S + drawn * (longest_s - RECONNECT_MIN_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Where and as whom to connect, and how the connection is kept."""

    host: str
    port: int
    username: str
    password: str
    """Empty: the certificate says who it is."""
    client_id: str
    tls: TlsFiles | None = None
    """None: plain TCP."""
    keepalive_s: int = 30
    """After so much silence each side shows that it is there."""

    def __repr__(self) -> str:
        """Leave the password out: this may reach a log."""
        return f"Login({self.username}@{self.host}:{self.port})"


class PahoTransport:
    """A paho client with an inbox. Threads: paho's loop fills the inbox, one consumer empties it."""

    def __init__(
        self,
        login: Login,
        *,
        subscriptions: tuple[str, ...],
        will: Message | None = None,
        admits: Callable[[str, int], bool] | None = None,
        inbox_max: int = INBOX_MAX,
        meter: WireMeter | None = None,
    ) -> None:
        """Say with whom to talk; nothing is connected yet. `meter` counts what the link costs."""
        self._login = login
        self._meter = meter or WireMeter()
        self._subscriptions = subscriptions
        self._admits = admits
        """Whether a message may take a place in the inbox, by its topic and length; asked in paho's thread."""
        self._inbox_bytes = 0
        self._inbox: queue.Queue[Arrival] = queue.Queue(inbox_max)
        self._connected = threading.Event()
        self._closed = False
        self._unreachable = False
        self._failures = 0
        """Attempts to connect that have failed since the link was up."""
        self._overflowed = False
        self._unconfirmed = 0
        self._count = threading.Lock()
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=login.client_id, protocol=paho.MQTTv311, clean_session=True
        )
        # Without TLS an empty password is still a login, which the broker refuses and says so.
        if login.password or login.tls is None:
            client.username_pw_set(login.username, login.password)
        self._context = client_context(login.tls) if login.tls is not None else None
        if self._context is not None:
            self._meter.meter_handshakes(self._context)
            client.tls_set_context(self._context)
        client.max_inflight_messages_set(IN_FLIGHT_MAX)
        if will is not None:
            client.will_set(will.topic, will.payload, will.qos, will.retain)
        client.on_pre_connect = self._on_pre_connect
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        self._client = client

    @property
    def connected(self) -> bool:
        """Whether the link is up and subscribed."""
        return self._connected.is_set()

    @property
    def unconfirmed(self) -> int:
        """Messages handed over and not yet confirmed."""
        return self._unconfirmed

    def start(self) -> None:
        """Begin to connect in paho's thread."""
        self._draw_delay()
        self._client.connect_async(self._login.host, self._login.port, self._login.keepalive_s)
        self._client.loop_start()

    def reload_identity(self) -> None:
        """Connect again with the key and certificate that are on disk now.

        Raises:
            ConfigError: They cannot be used; the link stays as it is.
        """
        if self._context is None or self._login.tls is None:
            return
        load_identity(self._context, self._login.tls.identity)
        connection = self._client.socket()
        if isinstance(connection, socket.socket):
            with suppress(OSError):
                # Below TLS, whose state is another thread's; paho's thread reads the end, and connects again.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def publish(self, message: Message) -> bool:
        """Hand over a message while the link is up and the window has room."""
        if not self.connected or self._unconfirmed >= IN_FLIGHT_MAX * 5:
            return False
        with self._count:
            self._unconfirmed += 1
        info = self._client.publish(message.topic, message.payload, message.qos, message.retain)
        # If the link died between the check and the call, paho has queued QoS 1 and forgets it before it connects again.
        return bool(info.rc == paho.MQTT_ERR_SUCCESS)

    def receive(self, timeout_s: float) -> Arrival | None:
        """Return the next arrival, or None after the timeout."""
        try:
            arrival = self._inbox.get(timeout=timeout_s) if timeout_s > 0 else self._inbox.get_nowait()
        except queue.Empty:
            if self._overflowed:
                self._hear_everything_again()
            return None
        with self._count:
            self._inbox_bytes -= _length(arrival)
        return arrival

    def close(self) -> None:
        """Disconnect and stop paho's thread."""
        if not self._closed:
            self._closed = True
            self._client.disconnect()
            self._client.loop_stop()

    def _on_pre_connect(self, client: paho.Client, _data: Any) -> None:
        self._meter.attempt()
        # paho would send again whatever was not confirmed, after each cut one more copy of what is said again anyway.
        with client._out_message_mutex:  # noqa: SLF001 - it has no other way; test_mqtt sees if this one ends
            client._out_messages.clear()  # noqa: SLF001
            client._inflight_messages = 0  # noqa: SLF001

    def _on_socket_open(self, _client: paho.Client, _data: Any, connection: Any) -> None:
        self._meter.watch(connection)

    def _on_socket_close(self, _client: paho.Client, _data: Any, _connection: Any) -> None:
        self._meter.look()

    def _on_connect(
        self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        if reason.is_failure:
            logger.warning("broker %s:%s refused the login: %s", self._login.host, self._login.port, reason)
            self._failures += 1
            self._put(LinkDown(f"login refused: {reason}"))
            return
        with self._count:
            self._unconfirmed = 0
        if self._subscriptions:
            client.subscribe([(topic, 1) for topic in self._subscriptions])
        else:
            self._up()

    def _on_subscribe(
        self, _client: paho.Client, _data: Any, _mid: int, reasons: list[Any], _properties: Any
    ) -> None:
        refused = [
            topic for topic, reason in zip(self._subscriptions, reasons, strict=False) if reason.is_failure
        ]
        if refused:
            logger.error("the broker refused the subscription to %s", ", ".join(refused))
        self._up()

    def _up(self) -> None:
        self._unreachable = False
        self._failures = 0
        self._connected.set()
        self._put(LinkUp())

    def _on_connect_fail(self, _client: paho.Client, _data: Any) -> None:
        reason = f"cannot reach the broker at {self._login.host}:{self._login.port}"
        if not self._unreachable:
            # Once, not at every attempt: a device may be without its broker for weeks.
            logger.warning("%s; trying again and again (check its address, and that it runs)", reason)
        self._unreachable = True
        self._failures += 1
        self._draw_delay()
        self._put(LinkDown(reason))

    def _on_disconnect(
        self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        self._connected.clear()
        self._draw_delay()
        self._put(LinkDown(str(reason)))

    def _draw_delay(self) -> None:
        # paho only doubles one delay, the same for all; with both ends alike it waits for what was drawn.
        delay_s = reconnect_delay_s(self._failures, random.random())
        self._client.reconnect_delay_set(delay_s, delay_s)  # type: ignore[arg-type]  # it waits for fractions, too

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        if self._admits is None or self._admits(message.topic, len(message.payload)):
            self._put(Message(message.topic, bytes(message.payload), message.qos, message.retain))

    def _on_publish(
        self, _client: paho.Client, _data: Any, _mid: int, _reason: Any, _properties: Any
    ) -> None:
        with self._count:
            self._unconfirmed = max(0, self._unconfirmed - 1)

    def _put(self, arrival: Arrival) -> None:
        length = _length(arrival)
        with self._count:
            fits = not self._inbox.full() and self._inbox_bytes + length <= INBOX_BYTES_MAX
            if fits:
                self._inbox_bytes += length
                self._inbox.put_nowait(arrival)
        if fits:
            return
        if not self._overflowed:
            logger.warning(
                "more than %d arrivals or %d bytes wait; the next ones are dropped and asked for again",
                self._inbox.maxsize,
                INBOX_BYTES_MAX,
            )
        self._overflowed = True

    def _hear_everything_again(self) -> None:
        """Make up for dropped arrivals, once there is room: as if the link had been lost and had come back.

        Subscribing again makes the broker send what is retained again; the rest is sent again by its sender, for want
        of an acknowledgement of its own.
        """
        self._overflowed = False
        self._put(LinkDown("more arrived than could be taken in"))
        if not self.connected:
            return
        if self._subscriptions:
            self._client.subscribe([(topic, 1) for topic in self._subscriptions])
        else:
            self._put(LinkUp())


def _length(arrival: Arrival) -> int:
    return len(arrival.payload) if isinstance(arrival, Message) else 0
