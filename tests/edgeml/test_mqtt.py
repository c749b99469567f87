"""The transport over paho, against a broker that does what a test tells it to."""

import contextlib
import logging
import queue
import socket
import struct
import threading
import time

import pytest

from edgeml import mqtt
from edgeml.mqtt import RECONNECT_MAX_S, Login, PahoTransport
from edgeml.transport import LinkDown, LinkUp, Message

from ..waiting import PATIENCE_S

CONNECT, PUBLISH, PUBACK, SUBSCRIBE, DISCONNECT = 1, 3, 4, 8, 14


class ScriptedBroker:
    """Accepts one connection after the other; `answers` says how."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.packets = queue.Queue()
        self.connack = 0
        self.suback = 1
        self.confirms = True
        self.connection = None
        self.accepted = 0
        self._stopped = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while not self._stopped:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connection = connection
            self.accepted += 1
            with contextlib.suppress(OSError):
                self._talk(connection)
            connection.close()

    def _talk(self, connection):
        with connection.makefile("rb") as stream:
            while head := stream.read(1):
                length, shift = 0, 0
                while True:
                    byte = stream.read(1)[0]
                    length |= (byte & 0x7F) << shift
                    shift += 7
                    if not byte & 0x80:
                        break
                body = stream.read(length)
                kind = head[0] >> 4
                self.packets.put((kind, head[0] & 0x0F, body))
                if kind == CONNECT:
                    connection.sendall(bytes([0x20, 2, 0, self.connack]))
                elif kind == SUBSCRIBE:
                    filters = body.count(b"em/")
                    connection.sendall(bytes([0x90, 2 + filters]) + body[:2] + bytes([self.suback]) * filters)
                elif kind == PUBLISH and self.confirms:
                    (size,) = struct.unpack("!H", body[:2])
                    connection.sendall(b"\x40\x02" + body[2 + size : 4 + size])
                elif kind == DISCONNECT:
                    return

    def send(self, topic, payload):
        body = struct.pack("!H", len(topic)) + topic.encode() + payload
        self.connection.sendall(bytes([0x31, len(body)]) + body)

    def cut(self):
        self.connection.shutdown(socket.SHUT_RDWR)

    def stop(self):
        self._stopped = True
        self.listener.close()
        if self.connection is not None:
            self.connection.close()

    def next(self, kind):
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            found, flags, body = self.packets.get(timeout=PATIENCE_S)
            if found == kind:
                return flags, body
        raise AssertionError("no such packet")


@pytest.fixture
def broker():
    started = ScriptedBroker()
    yield started
    started.stop()


@pytest.fixture
def make(broker, monkeypatch):
    monkeypatch.setattr(mqtt.random, "randint", lambda *_: 0)
    made = []

    def make_transport(subscriptions=("em/v1/t/d/cam-1/desired",), will=None, **more):
        login = Login(
            host="127.0.0.1", port=broker.port, username="cam-1", password="secret", client_id="cam-1"
        )
        made.append(PahoTransport(login, subscriptions=subscriptions, will=will, **more))
        made[-1].start()
        return made[-1]

    yield make_transport
    for transport in made:
        transport.close()


def up(transport):
    assert transport.receive(PATIENCE_S) == LinkUp()
    return transport


def test_link_is_up_only_after_the_subscription_is_answered(broker, make):
    transport = up(make())
    assert transport.connected
    _, body = broker.next(CONNECT)
    assert b"cam-1" in body
    assert b"secret" in body
    assert broker.next(SUBSCRIBE)[1].endswith(b"em/v1/t/d/cam-1/desired\x01")


def test_without_subscriptions_the_login_is_enough(make):
    assert up(make(subscriptions=())).connected


def test_will_is_left_with_the_broker(broker, make):
    up(make(will=Message("em/v1/t/d/cam-1/state", b"gone", 1, retain=True)))
    _, body = broker.next(CONNECT)
    assert b"em/v1/t/d/cam-1/state\x00\x04gone" in body
    assert body[7] & 0x3C == 0x2C, "will flag, QoS 1, retain"
    assert body[7] & 0x02, "clean session: the broker's queue is never relied upon"


def test_refused_login_is_told_and_tried_again(broker, make):
    broker.connack = 5
    transport = make()
    arrival = transport.receive(PATIENCE_S)
    assert isinstance(arrival, LinkDown)
    assert "refused" in arrival.reason
    assert not transport.connected
    broker.connack = 0
    while arrival != LinkUp():
        arrival = transport.receive(RECONNECT_MAX_S)
        assert arrival is not None
    assert broker.accepted >= 2


def test_message_comes_out_of_the_inbox(broker, make):
    transport = up(make())
    broker.send("em/v1/t/d/cam-1/desired", b"payload")
    assert transport.receive(PATIENCE_S) == Message("em/v1/t/d/cam-1/desired", b"payload", 0, retain=True)
    assert transport.receive(0.0) is None


def test_arrivals_that_found_no_room_are_asked_for_again(broker, make, caplog):
    transport = up(make(inbox_max=3))
    broker.next(SUBSCRIBE)
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            broker.send("em/v1/t/d/cam-1/desired", b"old")
        assert transport.publish(Message("em/v1/t/d/cam-1/state", b"x"))
        until = time.monotonic() + PATIENCE_S
        while not transport._overflowed and time.monotonic() < until:
            time.sleep(0.01)
    assert len(caplog.records) == 1
    assert [transport.receive(PATIENCE_S).payload for _ in range(3)] == [b"old"] * 3
    while (arrival := transport.receive(0.05)) is None or isinstance(arrival, Message):
        pass
    assert arrival == LinkDown("more arrived than could be taken in")
    assert broker.next(SUBSCRIBE)[1].endswith(b"em/v1/t/d/cam-1/desired\x01")
    assert transport.receive(PATIENCE_S) == LinkUp()
    broker.send("em/v1/t/d/cam-1/desired", b"new")
    assert transport.receive(PATIENCE_S).payload == b"new"


def test_bytes_that_wait_are_bounded_too_and_room_that_is_made_is_used(broker, make, monkeypatch):
    monkeypatch.setattr(mqtt, "INBOX_BYTES_MAX", 250)
    transport = up(make())
    for _ in range(3):
        broker.send("em/v1/t/d/cam-1/desired", b"x" * 100)
    until = time.monotonic() + PATIENCE_S
    while not transport._overflowed and time.monotonic() < until:
        time.sleep(0.01)
    assert [len(transport.receive(PATIENCE_S).payload) for _ in range(2)] == [100, 100]
    while (arrival := transport.receive(0.05)) is None or isinstance(arrival, Message):
        pass
    assert arrival == LinkDown("more arrived than could be taken in")
    assert transport.receive(PATIENCE_S) == LinkUp()
    for _ in range(5):
        broker.send("em/v1/t/d/cam-1/desired", b"y" * 100)
        assert transport.receive(PATIENCE_S).payload == b"y" * 100


def test_who_is_not_admitted_takes_no_place_in_the_inbox(broker, make):
    asked = []

    def admits(topic, payload_bytes):
        asked.append((topic, payload_bytes))
        return payload_bytes < 10

    transport = up(make(admits=admits))
    broker.send("em/v1/t/d/cam-1/desired", b"x" * 100)
    broker.send("em/v1/t/d/cam-1/desired", b"short")
    assert transport.receive(PATIENCE_S).payload == b"short"
    assert asked == [("em/v1/t/d/cam-1/desired", 100), ("em/v1/t/d/cam-1/desired", 5)]


def test_lost_link_refuses_messages_and_comes_back_by_itself(broker, make):
    transport = up(make())
    broker.cut()
    assert isinstance(transport.receive(PATIENCE_S), LinkDown)
    assert not transport.publish(Message("em/v1/t/d/cam-1/state", b"x"))
    assert transport.receive(PATIENCE_S) == LinkUp()
    assert transport.publish(Message("em/v1/t/d/cam-1/state", b"x"))


def test_what_was_not_confirmed_is_not_sent_again_on_a_new_link(broker, make):
    """Whoever said it says it again; paho's own copies would add up, one more after each cut."""
    broker.confirms = False
    transport = up(make())
    assert transport.publish(Message("em/v1/t/d/cam-1/state", b"old"))
    assert broker.next(PUBLISH)[1].endswith(b"old")
    broker.cut()
    assert isinstance(transport.receive(PATIENCE_S), LinkDown)
    assert transport.receive(PATIENCE_S) == LinkUp()
    assert transport.publish(Message("em/v1/t/d/cam-1/state", b"new"))
    assert broker.next(PUBLISH)[1].endswith(b"new")


def test_window_of_unconfirmed_messages_is_bounded(broker, make):
    broker.confirms = False
    transport = up(make())
    taken = sum(transport.publish(Message("em/v1/t/d/cam-1/state", b"x")) for _ in range(500))
    assert taken == mqtt.IN_FLIGHT_MAX * 5
    assert transport.unconfirmed == taken


def test_confirmed_messages_make_room(broker, make):
    transport = up(make())
    for _ in range(mqtt.IN_FLIGHT_MAX * 5 + 50):
        until = time.monotonic() + PATIENCE_S
        while not transport.publish(Message("em/v1/t/d/cam-1/state", b"x")):
            assert time.monotonic() < until
            time.sleep(0.005)
    until = time.monotonic() + PATIENCE_S
    while transport.unconfirmed:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_retain_and_qos_are_sent_as_asked(broker, make):
    transport = up(make())
    transport.publish(Message("em/v1/t/d/cam-1/reported", b"x", 1, retain=True))
    flags, _ = broker.next(PUBLISH)
    assert flags == 0b0011


def test_closing_twice_says_goodbye_once(broker, make):
    transport = up(make())
    transport.close()
    transport.close()
    broker.next(DISCONNECT)


def test_password_is_in_no_representation():
    login = Login(host="h", port=1, username="u", password="secret", client_id="c")
    assert "secret" not in repr(login)
    assert "secret" not in f"{login}"


def test_a_broker_that_is_not_there_is_said_once_with_its_address(caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        # Bound and not listening: connections are refused for as long as the test runs.
        login = Login(host="127.0.0.1", port=port, username="cam-1", password="secret", client_id="cam-1")
        transport = PahoTransport(login, subscriptions=())
        with caplog.at_level(logging.WARNING):
            transport.start()
            first = transport.receive(10.0)
            second = transport.receive(RECONNECT_MAX_S)
        transport.close()
    assert isinstance(first, LinkDown)
    assert isinstance(second, LinkDown), "it goes on trying"
    assert f"127.0.0.1:{port}" in first.reason
    said = [record.getMessage() for record in caplog.records if "cannot reach" in record.getMessage()]
    assert len(said) == 1
    assert "secret" not in caplog.text
