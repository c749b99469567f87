"""Who may do what, on the real brokers, for every rule of the topic table."""

import socket
import struct
import time

import pytest

from edgeml import topics
from edgeml.ids import ChannelId, DeviceId, ModelName, TenantId
from edgeml.telemetry import Stream
from edgeml.topics import RULES, Direction, Leaf, Tail

from ..waiting import wait_for

pytestmark = pytest.mark.broker
TENANT = TenantId("acme")
CHANNEL = ChannelId("a1b2")
OWNER, OTHER, CONTROLLER = "cam-a", "cam-b", "controller"


def topic_of(leaf: Leaf, device: str = OWNER) -> str:
    tails = {
        Tail.NOTHING: None,
        Tail.STREAM: Stream.WINDOWS,
        Tail.MODEL: ModelName("digits"),
        Tail.CHANNEL: CHANNEL,
    }
    return topics.device_topic(TENANT, DeviceId(device), leaf, tails[RULES[leaf].tail])


def right_writer(leaf: Leaf) -> str:
    return OWNER if RULES[leaf].direction is Direction.UP else CONTROLLER


def right_reader(leaf: Leaf) -> str:
    return CONTROLLER if RULES[leaf].direction is Direction.UP else OWNER


def filter_of(leaf: Leaf) -> str:
    """What the right reader subscribes to."""
    if RULES[leaf].tail is Tail.CHANNEL:
        return topic_of(leaf)
    down = RULES[leaf].direction is Direction.DOWN
    filters = topics.down_filters(TENANT, DeviceId(OWNER)) if down else topics.up_filters(TENANT)
    return next(one for one in filters if f"/{leaf.value}" in one)


@pytest.mark.parametrize(
    ("user", "token"), [("", ""), ("cam-a", "wrong"), ("cam-z", "token-of-cam-a"), ("controller", "")]
)
def test_login_without_the_right_token_is_refused(running, user, token):
    client = type(running.client("cam-a"))(running.port, user, token, f"x-{user}-{len(token)}")
    try:
        assert client.accepted is False
    finally:
        client.close()


@pytest.mark.parametrize("leaf", list(Leaf), ids=lambda leaf: leaf.value)
def test_only_the_right_role_can_publish(running, leaf):
    reader = running.client(right_reader(leaf))
    reader.subscribe(filter_of(leaf))
    for writer in (OTHER, OWNER, CONTROLLER):
        running.client(writer).publish(topic_of(leaf), f"{leaf.value} by {writer}".encode())
    end = f"end of {leaf.value}".encode()
    running.client(right_writer(leaf)).publish(topic_of(leaf), end)
    seen = set(reader.take_until(end)) - {end}
    assert seen == {f"{leaf.value} by {right_writer(leaf)}".encode()}


@pytest.mark.parametrize("leaf", list(Leaf), ids=lambda leaf: leaf.value)
def test_only_the_right_role_receives(running, leaf):
    readers = {role: running.client(role) for role in (OTHER, OWNER, CONTROLLER)}
    for reader in readers.values():
        for wanted in (topic_of(leaf), filter_of(leaf), "#", "em/v1/+/d/+/+", f"em/v1/{TENANT}/d/{OWNER}/#"):
            reader.subscribe(wanted)
    secret = f"secret {leaf.value}".encode()
    running.client(right_writer(leaf)).publish(topic_of(leaf), secret, retain=RULES[leaf].retain)
    assert readers[right_reader(leaf)].take_until(secret)
    time.sleep(0.2)
    for role, reader in readers.items():
        if role != right_reader(leaf):
            received = [reader.take(0.01) for _ in range(reader.inbox.qsize() + 1)]
            assert secret not in [one[1] for one in received if one]


def test_retained_desired_is_not_delivered_to_another_device(running):
    running.client(CONTROLLER).publish(topic_of(Leaf.DESIRED), b"for cam-a only", retain=True)
    nosy = running.client(OTHER)
    assert nosy.take(0.4) is None
    for wanted in (topic_of(Leaf.DESIRED), filter_of(Leaf.DESIRED), "#", "em/#"):
        nosy.subscribe(wanted)
    assert nosy.take(0.4) is None
    owner = running.client(OWNER)
    owner.subscribe(filter_of(Leaf.DESIRED))
    assert owner.take() == (topic_of(Leaf.DESIRED), b"for cam-a only")
    running.client(CONTROLLER).publish(topic_of(Leaf.DESIRED), b"", retain=True)


def test_last_will_on_a_foreign_topic_is_not_published(running):
    owner = running.client(OWNER)
    owner.subscribe(filter_of(Leaf.DESIRED))
    thief = running.client(OTHER, will=(topic_of(Leaf.DESIRED), b"stolen"))
    if thief.accepted:
        thief.drop()
    running.client(CONTROLLER).publish(topic_of(Leaf.DESIRED), b"end")
    time.sleep(0.5)
    assert b"stolen" not in owner.take_until(b"end")
    late = running.client(OWNER)
    late.subscribe(filter_of(Leaf.DESIRED))
    assert late.take(0.3) is None


def test_own_last_will_reaches_the_controller(running):
    controller = running.client(CONTROLLER)
    controller.subscribe(*topics.up_filters(TENANT))
    running.client(OTHER, will=(topic_of(Leaf.STATE, OTHER), b"gone")).drop()
    assert b"gone" in controller.take_until(b"gone")


def test_device_that_is_added_while_the_broker_runs_can_log_in(running):
    tokens = {name: token for name, token in running.tokens.items() if name != CONTROLLER}
    running.reload_logins(tokens | {"cam-new": "fresh"})
    wait_for(lambda: running.client("cam-new").accepted, "the new device to be let in")
    assert running.client(OWNER).accepted


def test_packet_longer_than_any_of_ours_ends_the_connection_and_not_the_broker(running):
    client = running.client(OWNER)
    client.paho.publish(topic_of(Leaf.BIRTH), b"x" * (1 << 20), 1)
    assert client.lost.wait(60)
    assert running.client(OWNER).accepted


def connect_packet(user: str, token: str, client_id: str, keepalive_s: int) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("!H", len(value)) + value.encode()

    body = (
        text("MQTT")
        + bytes([4, 0xC2])
        + struct.pack("!H", keepalive_s)
        + text(client_id)
        + text(user)
        + text(token)
    )
    return bytes([0x10, len(body)]) + body


def test_silent_client_is_disconnected_by_mosquitto(running):
    if running.kind.value != "mosquitto":
        pytest.skip("amqtt's keepalive is tested in test_amqtt_overrides, without its grace of 15 s")
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall(connect_packet(OWNER, running.tokens[OWNER], "silent", 1))
        connection.settimeout(12)  # mosquitto looks about every five seconds
        assert connection.recv(4) == bytes([0x20, 2, 0, 0])
        started = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - started > 0.9


def test_second_connection_of_a_client_id_takes_over_on_mosquitto_only(running):
    # Whoever takes over is the same user: the token decides, and the session in the payload tells the lives apart.
    first = running.client(OWNER, client_id="same")
    second = running.client(OWNER, client_id="same")
    assert second.accepted
    taken_over = first.lost.wait(1.0)
    assert taken_over == (running.kind.value == "mosquitto"), (
        "amqtt has learnt to take over: say so in the documents"
    )
