"""Row 45: one device sends a thousand times of what it may. It is turned away, counted and shown; others go on."""

import random
import subprocess
import threading

import paho.mqtt.client as paho
import pytest
import sqlalchemy as sa
from paho.mqtt.enums import CallbackAPIVersion

from agent.buffer import Buffer
from agent.uplink import Uplink
from edgeml import topics, twin
from edgeml.ids import DeviceId, ReleaseId, TenantId
from edgeml.telemetry import Counters, Event, Stream, Window, decode_batch
from edgeml.testing import FakeClock
from edgeml.topics import Leaf
from fleet import mosquitto, schema
from fleet.config import BrokerSettings, FleetConfig, FleetHome, QuotaSettings, create
from fleet.doorkeeper import Doorkeeper

from ..waiting import wait_for
from .served import Served, free_port, memory_bytes

HONEST = ("cam-1", "cam-2", "cam-3")
BATCHES = 25
FLOOD_MIN = 3000
PIECE = 7000
"""Characters of an event; 8192 are allowed."""


@pytest.fixture
def served(tmp_path):
    made = Served(tmp_path, batches_per_s=1.0, batches_burst=40)
    made.enrol(*HONEST, "noisy")
    made.start()
    yield made
    made.close()


class Flood:
    """Sends as fast as the broker takes it, until told to stop: well-formed batches, each of them new."""

    def __init__(self, peer):
        self.peer = peer
        noise = random.Random(45)
        self.details = [f"{noise.getrandbits(4 * PIECE):0{PIECE}x}" for _ in range(20)]
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        seq = 0
        while not self.stopped.is_set():
            for _ in range(100):
                seq += 1
                last = self.peer.send(self.peer.batch(seq, self.details[seq % 20]), Stream.EVENTS)
            last.wait_for_publish(60)

    def stop(self):
        self.stopped.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


def stored(served, table, device):
    with served.store.read() as connection:
        return connection.scalar(
            sa.select(sa.func.count()).select_from(table).where(table.c.device == device)
        )


@pytest.mark.processes
def test_others_are_served_while_one_device_floods(served):
    cams = [served.peer(name) for name in HONEST]
    noisy = served.peer("noisy")
    for cam in (*cams, noisy):
        cam.send(cam.batch(0))
        assert cam.acknowledged(0) == 0
    before_bytes = memory_bytes(served.pid("controller"))
    flood = Flood(noisy)
    try:
        wait_for(lambda: noisy.sent >= FLOOD_MIN // 2, "the flood to rise")
        for seq in range(1, BATCHES + 1):
            for cam in cams:
                cam.send(cam.batch(seq))
            assert [cam.acknowledged(seq) for cam in cams] == [seq] * 3, "in order, each by itself"
        wait_for(lambda: noisy.sent >= FLOOD_MIN, "the flood to be one")
        grown_bytes = memory_bytes(served.pid("controller")) - before_bytes
    finally:
        flood.stop()
    assert [stored(served, schema.windows, name) for name in HONEST] == [BATCHES + 1] * 3

    def counted():
        shown = served.devices()["noisy"]["over_quota"]
        taken = stored(served, schema.events, "noisy") + 1
        return shown if shown and shown["messages"] + taken == noisy.sent else None

    shown = wait_for(counted, f"all of {noisy.sent} messages to be taken in or counted")
    assert shown["messages"] >= 0.9 * noisy.sent
    assert shown["payload_bytes"] > PIECE / 3 * shown["messages"], "they were not small"
    assert grown_bytes < 64 << 20, "what was turned away took no room"
    assert {name: served.devices()[name]["over_quota"] for name in HONEST} == dict.fromkeys(HONEST)
    status = served.status()
    assert status["controller"]["refused"] == {"over quota": shown["messages"]}
    assert [one["device"] for one in status["devices"] if one["over_quota"]] == ["noisy"]
    assert f'turned_away_messages_total{{device="noisy"}} {shown["messages"]}\n' in served.metrics()
    assert f"{shown['messages']}, " in served.edgeml("fleet", "device", "list")
    assert served.words().count("noisy: over quota") == 1, "said once a minute, not once a message"


@pytest.mark.broker
def test_the_broker_keeps_only_so_many_bytes_for_a_controller_that_hears_nothing(tmp_path, monkeypatch):
    """A controller that is stopped: what waits for it is bounded by bytes, and the rest is dropped."""
    if mosquitto.find() is None:
        pytest.skip("mosquitto is not installed")
    monkeypatch.setattr(mosquitto, "QUEUED_BYTES_MAX", 4 << 20)
    home, config = FleetHome(tmp_path), FleetConfig(broker=BrokerSettings(free_port()))
    create(home)
    mosquitto.write_settings(home, config)
    mosquitto.passwords_path(home).write_text(
        "".join(f"{user}:{mosquitto.hash_token('t')}\n" for user in ("controller", "noisy"))
    )
    broker = subprocess.Popen(mosquitto.command(mosquitto.find(), home))
    clients = []

    def connected(user, subscribed):
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=user, protocol=paho.MQTTv311)
        client.username_pw_set(user, "t")
        client.max_inflight_messages_set(200)
        ready = threading.Event()
        client.on_subscribe = lambda *_: ready.set()

        def answers():
            try:
                client.connect("127.0.0.1", config.broker.port)
            except OSError:
                return False
            return True

        wait_for(answers, "the broker")
        client.loop_start()
        clients.append(client)
        if subscribed:
            wait_for(client.is_connected, "the login")
            client.subscribe([(one, 1) for one in topics.up_filters(TenantId(config.tenant))])
            assert ready.wait(60)
        return client

    try:
        controller = connected("controller", subscribed=True)
        # It reads no more, but its connection stays.
        controller.loop_stop()
        noisy = connected("noisy", subscribed=False)
        wait_for(noisy.is_connected, "the login")
        before_bytes = memory_bytes(broker.pid)
        payload = random.Random(1).randbytes(60_000)
        topic = topics.device_topic(TenantId(config.tenant), DeviceId("noisy"), Leaf.TELEMETRY, Stream.EVENTS)
        for _ in range(8):
            for _ in range(100):
                last = noisy.publish(topic, payload, 1)
            last.wait_for_publish(60)
        sent_bytes = 800 * len(payload)
        assert memory_bytes(broker.pid) - before_bytes < sent_bytes / 2
        assert broker.poll() is None
    finally:
        for client in clients:
            client.disconnect()
            client.loop_stop()
        broker.terminate()
        broker.wait(60)


@pytest.mark.parametrize("seconds_offline", [86_400, 30 * 86_400])
def test_a_device_that_was_away_for_long_hands_over_everything_at_its_quota(seconds_offline):
    """A device's own uplink against the default quota: a window a minute, and an event an hour, for days and weeks."""
    clock, quota = FakeClock(), QuotaSettings()
    doorkeeper = Doorkeeper(quota, clock)
    buffer = Buffer(":memory:", "b1")
    windows, events = seconds_offline // 60, seconds_offline // 3600
    for _ in range(windows):
        buffer.append(Window(0, ReleaseId("m@1"), "a" * 64, 0, 60_000, Counters(inferences=5)))
    for _ in range(events):
        buffer.append(Event(0, "note", 1, ""))
    uplink = Uplink(buffer, TenantId("main"), DeviceId("cam-1"))
    uplink.on_link_up(clock.monotonic_s())
    taken = sent = 0
    for _ in range(20_000):
        clock.advance(0.05)
        for message in uplink.due(clock.monotonic_s(), link_up=True):
            sent += 1
            if doorkeeper.admits(message.topic, len(message.payload)):
                taken += 1
                stream = topics.parse(message.topic).stream
                batch = decode_batch(message.payload)
                if not batch.rows:
                    # Copies of the newest, sent ahead: nobody acknowledges them.
                    continue
                ack = twin.Ack(boot=batch.boot, stream=stream.value, seq=batch.rows[-1].seq)
                uplink.on_ack(twin.encode(ack), clock.monotonic_s())
        if not any(buffer.held(stream) for stream in Stream):
            break
    losses = {stream: buffer.loss(stream) for stream in Stream}
    assert {stream: loss.acknowledged for stream, loss in losses.items() if loss.produced} == {
        Stream.WINDOWS: windows,
        Stream.EVENTS: events,
    }
    assert sum(loss.dropped for loss in losses.values()) == 0
    assert sent - taken <= 0.1 * sent, "it hardly sends in vain"
    buffer.close()
