"""Row 44: a device with a valid login sends nonsense, and in others' names. `fleet serve` on mosquitto, clients beside it.

Nothing of it is stored but what it may say, nothing takes much memory, the controller's process stays the same one, and
others' rows are stored and acknowledged in order meanwhile.
"""

import json
import os
import random
import signal
import zlib

import paho.mqtt.client as paho
import pytest
import sqlalchemy as sa
from paho.mqtt.enums import CallbackAPIVersion

from edgeml import topics, twin
from edgeml.ids import DeviceId, ModelName, TenantId, digest_of
from edgeml.telemetry import BATCH_BYTES_MAX, Stream
from edgeml.topics import Leaf
from edgeml.twin import Presence
from fleet import schema

from ..waiting import PATIENCE_S, wait_for
from .served import Served, memory_bytes

pytestmark = [pytest.mark.processes, pytest.mark.broker]
HONEST = ("cam-1", "cam-2")
NOT_AUTHORIZED = 135
"""MQTT 5's word for what an access list denies; MQTT 3.1.1 has none, there it is confirmed and thrown away."""
GROWN_BYTES_MAX = 64 << 20


@pytest.fixture
def served(tmp_path):
    # What comes fast is another row's business (45).
    made = Served(
        tmp_path, batches_per_s=1000.0, batches_burst=100_000, messages_per_s=1000.0, messages_burst=100_000
    )
    made.enrol(*HONEST, "cam-bad")
    made.start()
    yield made
    made.close()


def row(seq=1, **changes):
    """A window as JSON would have it."""
    counters = {"inferences": 1, **changes.pop("counters", {})}
    return {
        "seq": seq, "release": "m@1", "digest": "a" * 64, "started_at_ms": 0, "duration_ms": 1000, "counters": counters,
        **changes,
    }  # fmt: skip


def batch(*rows, **changes):
    return {"boot": "b1", "windows": list(rows), **changes}


def packed(value):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return zlib.compress(text)


def deep(levels):
    return b'{"boot":"b1","windows":[' + b"[" * levels + b"]" * levels + b"]}"


SKETCH = {"monitor": "a" * 64, "rows": 1, "counts": [[1]], "sums": [0], "squares": [0]}
POISON = {
    "no compression": b'{"boot":"b1"}',
    "nothing inside": packed(b""),
    "no JSON": packed(b"\xff\xfe\x00"),
    "cut": packed(batch(row()))[:-3],
    "NaN": packed(batch(row(counters={"wrong": float("nan")}))),
    "NaN as a time": packed(batch(row(started_at_ms=float("nan")))),
    "infinity": packed(batch(row(duration_ms=float("inf")))),
    "a text as a number": packed(batch(row(duration_ms="1"))),
    "a fraction as a count": packed(batch(row(counters={"wrong": 0.5}))),
    "negative": packed(batch(row(counters={"wrong": -1}))),
    "beyond 64 bits": packed(batch(row(counters={"wrong": 1 << 64}))),
    "beyond what adds up": packed(batch(row(counters={"wrong": (1 << 63) - 1}))),
    "a number of 100,000 digits": packed(b'{"boot":"b1","windows":[{"seq":' + b"9" * 100_000 + b"}]}"),
    "1e400": packed(b'{"boot":"b1","windows":[{"seq":1e400}]}'),
    "500 levels": packed(deep(500)),
    "100,000 levels": packed(deep(100_000)),
    "levels in a field that nobody knows": packed(
        b'{"boot":"b1","later":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    ),
    "a bomb": packed(b" " * (60 << 20)),
    "longer than a batch": b"x" * (BATCH_BYTES_MAX + 1),
    "NUL in a text": packed(batch(row(), boot="b\0")),
    "half a surrogate": packed(b'{"boot":"\\ud800","windows":[]}'),
    "rows out of order": packed(batch(row(2), row(1))),
    "no release": packed(batch(row(release="../../etc/passwd"))),
    "no digest": packed(batch(row(digest="a" * 63))),
    "a sketch of NaN": packed(batch(row(sketch=SKETCH | {"sums": [float("nan")]}))),
    "a sketch that overflows": packed(batch(row(sketch=SKETCH | {"squares": [1 << 70]}))),
    "a sketch without its columns": packed(batch(row(sketch=SKETCH | {"counts": [[1], [2]]}))),
    "events among windows": packed({"boot": "b1", "events": [{"seq": 1, "kind": "x", "at_ms": 1}]}),
    "a loss that cannot be": packed(batch(row(), loss={"produced": 1, "dropped": -1})),
}


def mutated(lot):
    """A good batch in which some characters are others, compressed well."""
    text = bytearray(json.dumps(batch(row(lot.randrange(1 << 40)))).encode())
    for _ in range(lot.randint(1, 3)):
        place = lot.randrange(len(text))
        text[place : place + lot.randint(0, 2)] = lot.choices(
            b'0123456789abcdef{}[]",:-. \x00\xff', k=lot.randint(0, 2)
        )
    return packed(bytes(text))


def count(served, device):
    table = schema.windows
    with served.store.read() as connection:
        return connection.scalar(
            sa.select(sa.func.count()).select_from(table).where(table.c.device == device)
        )


def malformed(served):
    return served.status()["controller"]["refused"].get("malformed", 0)


def test_nonsense_is_refused_and_told_and_others_are_stored_meanwhile(served):
    bad, cams = served.peer("cam-bad"), [served.peer(name) for name in HONEST]
    controller = served.pid("controller")
    for cam in cams:
        cam.send(cam.batch(0))
        assert cam.acknowledged(0) == 0
    before_bytes = memory_bytes(controller)
    for seq, payload in enumerate(POISON.values(), 1):
        bad.send(payload)
        for cam in cams:
            cam.send(cam.batch(seq))
        assert [cam.acknowledged(seq) for cam in cams] == [seq] * 2
    refused = set()
    while len(refused) < len(POISON):
        refused.add(bad.acks.get(timeout=PATIENCE_S).refused)
    assert refused == {digest_of(payload) for payload in POISON.values()}, (
        "a device is told, and sends it no more"
    )
    assert count(served, "cam-bad") == 0
    # Any bytes at all: each is refused or a row, and none is neither.
    lot = random.Random(44)
    mutants = {mutated(lot) for _ in range(300)}
    for payload in mutants:
        bad.send(payload)

    def decided():
        refused = malformed(served) - len(POISON)
        return refused if refused + count(served, "cam-bad") == len(mutants) else None

    answered = wait_for(decided, "each of them to be refused or stored")
    assert 0.5 * len(mutants) < answered < 0.98 * len(mutants), "most are nonsense, some are not"
    assert [count(served, name) for name in HONEST] == [len(POISON) + 1] * 2
    assert served.pid("controller") == controller, "it never died"
    assert memory_bytes(controller) - before_bytes < GROWN_BYTES_MAX
    assert served.words().count("cam-bad: malformed") <= 3, "said now and then, not once a message"


def test_retained_nonsense_outlives_a_controller_and_stops_none(served):
    """What a device says of itself is kept by the broker, and told to every controller that starts."""
    bad, cam = served.peer("cam-bad"), served.peer("cam-1")
    nest = b'{"session":' + b"[" * 3000 + b"]" * 3000 + b"}"
    for leaf, tail in ((Leaf.STATE, None), (Leaf.REPORTED, ModelName("m"))):
        topic = topics.device_topic(bad.tenant, bad.name, leaf, tail)
        bad.client.publish(topic, nest[: topics.RULES[leaf].bytes_max], 1, retain=True).wait_for_publish(10)
    cam.send(cam.batch(1))
    assert cam.acknowledged(1) == 1
    assert served.words().count("cam-bad: malformed") == 1
    first = served.status()["controller"]["started_at_ms"]
    os.kill(served.pid("controller"), signal.SIGKILL)

    def another():
        now = served.status()["controller"]
        return now["started_at_ms"] > first and now["connected"]

    wait_for(another, "another controller")
    cam.send(cam.batch(2))
    assert cam.acknowledged(2) == 2
    assert served.words().count("cam-bad: malformed") == 2, "the new one has heard it, too"
    assert served.devices()["cam-bad"]["quarantine"] is None


def test_the_broker_denies_every_other_topic_and_others_hear_nothing(served):
    tenant, bad, victim = TenantId(served.config.tenant), DeviceId("cam-bad"), DeviceId("cam-1")
    cam = served.peer(victim)
    heard = []
    cam.client.on_message = lambda _client, _data, message: heard.append(message.topic)
    wish = twin.encode(
        twin.Desired(generation=99, deployment="d", release="m@9", target="m/9/v.edgeml", digest="a" * 64)
    )
    offline = twin.encode(Presence(online=False, session="s"))
    topic = topics.device_topic
    denied = {
        topic(TenantId("other"), bad, Leaf.TELEMETRY, Stream.WINDOWS): packed(batch(row())),
        topic(TenantId("other"), victim, Leaf.STATE): offline,
        topic(tenant, victim, Leaf.TELEMETRY, Stream.WINDOWS): packed(batch(row())),
        topic(tenant, victim, Leaf.STATE): offline,
        topic(tenant, victim, Leaf.DESIRED, ModelName("m")): wish,
        topic(tenant, victim, Leaf.ACK): twin.encode(twin.Ack(boot="b1", stream="windows", seq=99)),
        topic(tenant, bad, Leaf.DESIRED, ModelName("m")): wish,
        topics.controller_topic(tenant, served.config.controller): offline,
        "$SYS/broker/uptime": b"0",
        "em/v1": b"x",
    }
    said = answers(served, bad, {**denied, topic(tenant, bad, Leaf.TELEMETRY, Stream.WINDOWS): cam.batch(5)})
    own = said.pop(topic(tenant, bad, Leaf.TELEMETRY, Stream.WINDOWS))
    assert own == 0, "its own topic is heard"
    assert said == dict.fromkeys(denied, NOT_AUTHORIZED)
    wait_for(lambda: count(served, "cam-bad") == 1, "its own row")
    assert count(served, "cam-1") == 0
    assert heard == []
    status = served.status()
    assert status["controller"]["refused"] == {}, "the controller has heard nothing of it"
    assert status["controller"]["connected"]


def answers(served, name, messages):
    """Publish as this device, over MQTT 5; the broker's reason code for each topic."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5)
    client.username_pw_set(name, (served.directory / name / "token").read_text())
    reasons, sent = {}, {}
    client.on_publish = lambda _client, _data, mid, reason, _properties: reasons.update({mid: reason.value})
    client.connect("127.0.0.1", served.config.broker.port)
    client.loop_start()
    try:
        wait_for(client.is_connected, "the login")
        for topic, payload in messages.items():
            sent[client.publish(topic, payload, 1).mid] = topic
        wait_for(lambda: len(reasons) == len(messages), "the broker's answers")
    finally:
        client.disconnect()
        client.loop_stop()
    return {sent[mid]: reason for mid, reason in reasons.items()}
