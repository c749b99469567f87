"""What amqtt must be kept from doing: each override is still needed, and works.

A failure of a `still_needed` test is good news: amqtt has changed, and the override can go. A failure of the others is
not: the override no longer works with this amqtt.
"""

import asyncio
import gc
import struct
from collections import deque
from contextlib import asynccontextmanager

import pytest
from amqtt.broker import Broker

from edgeml.ids import TenantId
from edgeml.port import free_port
from fleet import amqtt_broker, broker
from fleet.amqtt_broker import TriedOutBroker
from fleet.config import BrokerSettings, FleetConfig, FleetHome
from fleet.tokens import token_hash

from ..waiting import PATIENCE_S

# amqtt leaves the sockets of refused logins to the garbage collector.
pytestmark = [pytest.mark.broker, pytest.mark.filterwarnings("ignore::ResourceWarning")]
TENANT = TenantId("acme")
SECRET = b"for cam-b only"
DESIRED_B = "em/v1/acme/d/cam-b/desired/digits"
DESIRED_OF_B = "em/v1/acme/d/cam-b/desired/+"


def text(value: str) -> bytes:
    return struct.pack("!H", len(value)) + value.encode()


def packet(kind: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([kind, len(body)]) + body


def connect(user: str, *, keepalive_s: int = 60, will_topic: str = "", clean: bool = True) -> bytes:
    flags = 0xC0 | (0x02 if clean else 0) | (0x2C if will_topic else 0)
    will = text(will_topic) + text("a will") if will_topic else b""
    return packet(
        0x10,
        text("MQTT")
        + bytes([4, flags])
        + struct.pack("!H", keepalive_s)
        + text(user)
        + will
        + text(user)
        + text("t"),
    )


def subscribe(topic: str) -> bytes:
    return packet(0x82, b"\x00\x01" + text(topic) + b"\x01")


def publish_retained(topic: str, payload: bytes) -> bytes:
    return packet(0x31, text(topic) + payload)


@pytest.fixture
def config(tmp_path):
    home = FleetHome(tmp_path)
    tokens = broker.tokens_path(home)
    tokens.parent.mkdir()
    tokens.write_text("".join(f"{user}:{token_hash('t')}\n" for user in ("controller", "cam-a", "cam-b")))
    plain = FleetConfig(tenant=TENANT, broker=BrokerSettings(port=free_port()))
    yield amqtt_broker.settings(plain, home) | {"timeout_disconnect_delay": 0}
    gc.collect()


@asynccontextmanager
async def started(broker: Broker):
    await broker.start()
    try:
        yield
    finally:
        await broker.shutdown()
        await asyncio.sleep(0.05)


async def speak(config, *packets: bytes):
    port = int(config["listeners"]["default"]["bind"].rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for one in packets:
        writer.write(one)
        await asyncio.sleep(0.05)
    return reader, writer


async def listen(reader, seconds: float) -> bytes:
    """What comes first, whenever that is, and all within `seconds` after it."""
    heard = await asyncio.wait_for(reader.read(4096), PATIENCE_S)
    until = asyncio.get_running_loop().time() + seconds
    while (left := until - asyncio.get_running_loop().time()) > 0:
        try:
            piece = await asyncio.wait_for(reader.read(4096), left)
        except TimeoutError:
            break
        if not piece:
            break
        heard += piece
    return heard


async def close(*writers) -> None:
    for writer in writers:
        writer.close()
    await asyncio.sleep(0.05)


async def heard_by_a_device_that_subscribed_to_nothing(broker: Broker, config) -> bytes:
    async with started(broker):
        _, owner = await speak(config, connect("cam-b"), subscribe(DESIRED_OF_B))
        _, controller = await speak(config, connect("controller"), publish_retained(DESIRED_B, SECRET))
        await asyncio.sleep(0.1)
        reader, nosy = await speak(config, connect("cam-a"))
        heard = await listen(reader, 0.3)
        await close(owner, controller, nosy)
    return heard


def test_retained_leak_override_is_still_needed(config):
    async def run() -> bytes:
        return await heard_by_a_device_that_subscribed_to_nothing(Broker(config), config)

    assert SECRET in asyncio.run(run())


def test_retained_messages_of_others_are_not_delivered_at_connect(config):
    async def run() -> bytes:
        return await heard_by_a_device_that_subscribed_to_nothing(TriedOutBroker(config, TENANT), config)

    heard = asyncio.run(run())
    assert SECRET not in heard
    assert heard == b"\x20\x02\x00\x00"


async def silent_client_is_closed(broker: Broker, config) -> bool:
    async with started(broker):
        reader, writer = await speak(config, connect("cam-a", keepalive_s=1))
        assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
        try:
            closed = await asyncio.wait_for(reader.read(1), 3.0) == b""
        except TimeoutError:
            closed = False
        await close(writer)
    return closed


def test_keepalive_override_is_still_needed(config):
    async def run() -> bool:
        return await silent_client_is_closed(Broker(config), config)

    assert asyncio.run(run()) is False


def test_silent_client_is_closed_after_its_keepalive(config):
    async def run() -> bool:
        return await silent_client_is_closed(TriedOutBroker(config, TENANT), config)

    assert asyncio.run(run()) is True


async def subscribe_during_a_broadcast(broker: Broker, config) -> None:
    async with started(broker):
        _, owner = await speak(config, connect("cam-b"), subscribe(DESIRED_OF_B))
        await broker._shutdown_broadcast_loop()
        await broker._broadcast_message(None, DESIRED_B, b"x")
        walk = asyncio.ensure_future(broker._run_broadcast(deque()))
        await asyncio.sleep(0)
        broker._subscriptions.setdefault("em/v1/acme/d/cam-a/desired/+", [])
        await close(owner)
        await walk


def test_broadcast_override_is_still_needed(config):
    async def run() -> None:
        await subscribe_during_a_broadcast(Broker(config), config)

    with pytest.raises(RuntimeError, match="changed size"):
        asyncio.run(run())


def test_message_survives_a_subscription_made_meanwhile(config):
    async def run() -> None:
        await subscribe_during_a_broadcast(TriedOutBroker(config, TENANT), config)

    asyncio.run(run())


@pytest.mark.parametrize(
    "hello",
    [connect("cam-a", will_topic=DESIRED_B), connect("cam-a", clean=False), connect("cam-z")],
    ids=["will on a foreign topic", "a session that is kept", "unknown device"],
)
def test_login_that_amqtt_would_misuse_is_refused(config, hello):
    async def run() -> bytes:
        async with started(TriedOutBroker(config, TENANT)):
            reader, writer = await speak(config, hello)
            answer = await listen(reader, 0.3)
            await close(writer)
        return answer

    assert asyncio.run(run()) == b"\x20\x02\x00\x05"


def test_login_file_is_read_again_when_it_changes(config, tmp_path):
    async def run() -> list[bytes]:
        answers = []
        async with started(TriedOutBroker(config, TENANT)):
            for _ in range(2):
                reader, writer = await speak(config, connect("cam-z"))
                answers.append(await listen(reader, 0.2))
                await close(writer)
                (tmp_path / "broker" / "tokens").write_text(f"cam-z:{token_hash('t')}\n")
        return answers

    assert asyncio.run(run()) == [b"\x20\x02\x00\x05", b"\x20\x02\x00\x00"]


def test_huge_packet_is_not_read(config):
    async def run() -> bool:
        async with started(TriedOutBroker(config, TENANT)):
            # PUBLISH with a remaining length of 200 MB, of which only the topic follows.
            topic = text("em/v1/acme/d/cam-a/birth")
            reader, writer = await speak(
                config, connect("cam-a"), bytes([0x30, 0x80, 0x84, 0xAF, 0x5F]) + topic
            )
            await reader.readexactly(4)
            closed = await asyncio.wait_for(reader.read(1), 3.0) == b""
            await close(writer)
        return closed

    assert asyncio.run(run()) is True
