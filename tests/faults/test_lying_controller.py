"""A controller, or whoever speaks in its name, that answers pulls as it likes: real mosquitto, real fetching child."""

import random
import threading

import msgspec
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.config import BlobsConfig, BrokerConfig, Over
from edgeml import topics
from edgeml.ids import DeviceId, TenantId, digest_of
from edgeml.pull import Answer, Kind, Status, decode_request, encode_answer
from edgeml.topics import Leaf
from edgeml.twin import Outcome

from .invariants import check

pytestmark = pytest.mark.processes
TENANT, DEVICE = TenantId("default"), DeviceId("cam-1")


class Speaker:
    """Answers pulls out of what a signer has. `habit(asked, answer)` says what is sent instead of an honest answer."""

    def __init__(self, broker, repository):
        self.repository = repository
        self.asked = []
        self.said = []
        self.habit = lambda _asked, _answer: None
        ready = threading.Event()
        self.client = paho.Client(CallbackAPIVersion.VERSION2)
        self.client.on_message = self._on_message
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.connect("127.0.0.1", broker.port)
        self.client.subscribe(topics.device_topic(TENANT, DEVICE, Leaf.PULL))
        self.client.loop_start()
        assert ready.wait(60)

    def _on_message(self, _client, _data, message):
        asked = decode_request(message.payload)
        self.asked.append(asked)
        data = self.repository.content("metadata" if asked.kind is Kind.METADATA else "blobs", asked.name)
        if data is None:
            answer = Answer(asked.id, Status.MISSING, asked.offset)
        else:
            piece = data[asked.offset : asked.offset + asked.length]
            answer = Answer(asked.id, Status.PIECE, asked.offset, len(data), piece)
        said = self.habit(asked, answer)
        for payload in [encode_answer(answer)] if said is None else said:
            self.said.append(payload)
            self.client.publish(topics.device_topic(TENANT, DEVICE, Leaf.DATA, asked.channel), payload, 0)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def speaker(broker, signer, unit):
    """Whoever answers `unit`, which reaches nothing but the broker."""
    made = Speaker(broker, signer)
    unit.config = msgspec.structs.replace(
        unit.config,
        blobs=BlobsConfig(over=Over.MQTT),
        broker=BrokerConfig("127.0.0.1", broker.port, unit.config.broker.password_file),
    )
    unit.installer._fetching._config = unit.config
    yield made
    made.close()


def in_the_middle(habit):
    """Only blobs, and not their beginnings."""
    return lambda asked, answer: habit(answer) if asked.kind is Kind.BLOB and asked.offset > 100_000 else None


def other(answer, **fields):
    values = {name: getattr(answer, name) for name in ("id", "status", "offset", "total_bytes", "piece")}
    return [encode_answer(Answer(**values | fields))]


HARMFUL = {
    "another place": lambda one: other(one, offset=one.offset + 1),
    "a piece too long": lambda one: other(one, piece=one.piece + b"x"),
    "a piece too short": lambda one: other(one, piece=one.piece[:-1]),
    "a flipped bit": lambda one: other(one, piece=bytes([one.piece[0] ^ 1]) + one.piece[1:]),
    "another length": lambda one: other(one, total_bytes=one.total_bytes + 1),
    "no end": lambda one: other(one, total_bytes=1 << 62),
    "no such file": lambda one: other(one, status=Status.MISSING, piece=b""),
    "no pulls": lambda one: other(one, status=Status.OFF, piece=b""),
}


def test_what_is_not_what_was_asked_for_ends_an_attempt_and_the_next_goes_on_from_what_was_signed(
    unit, speaker, signer, large
):
    wanted = signer.release(large, 2)
    unit.suffer(speaker, wanted, [in_the_middle(habit) for habit in HARMFUL.values()])
    before = len(speaker.asked)
    assert unit.settle().outcome is Outcome.COMMITTED
    assert unit.serves() == "sample@2.0.0"
    blob = [one for one in speaker.asked[before:] if one.name == wanted.digest]
    assert min(one.offset for one in blob) >= 100_000 // signer.chunk_bytes * signer.chunk_bytes
    check(unit.storage)


def test_what_answers_nothing_is_passed_over_in_one_attempt(unit, speaker, signer, large):
    chance = random.Random(4)

    def noisy(_asked, answer):
        noise = [
            chance.randbytes(chance.randrange(100)),
            chance.randbytes(26),
            *other(answer, id=answer.id + (1 << 60)),
        ]
        replayed = (
            [one for one in chance.choices(speaker.said, k=2) if len(one) < 9000] if speaker.said else []
        )
        too_long = other(answer, piece=bytes(70_000)) if chance.random() < 0.1 else []
        return [*noise, *replayed, *too_long, encode_answer(answer)]

    speaker.habit = noisy
    signer.chunk_bytes = 16 << 10
    assert unit.install(signer.release(large, 2)).outcome is Outcome.COMMITTED
    assert unit.serves() == "sample@2.0.0"
    assert len(unit.waits) == 1, "one attempt"
    check(unit.storage)


def test_answers_of_an_earlier_attempt_are_not_taken_for_new_ones(unit, speaker, signer, large):
    """Everything of a first attempt is said again in a second one: same files, same places, other requests."""
    wanted = signer.release(large, 2)
    unit.suffer(speaker, wanted, [in_the_middle(HARMFUL["no such file"])])
    old = [one for one in speaker.said if len(one) < 9000]
    assert old
    speaker.habit = lambda _asked, answer: [*old, encode_answer(answer)]
    assert unit.settle().outcome is Outcome.COMMITTED
    assert digest_of(unit.table.path(wanted.digest).read_bytes()) == wanted.digest
    check(unit.storage)
