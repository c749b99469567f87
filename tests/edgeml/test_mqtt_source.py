"""A source behind a broker whose other end is hostile: nothing that it sends is kept unless it is signed, nothing hangs, all is paid for."""

import random
from collections import deque
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml import topics
from edgeml.download import fetch
from edgeml.errors import DigestMismatchError, EdgemlError, StalledError, TransferError
from edgeml.ids import ChannelId, DeviceId, TenantId, digest_of
from edgeml.manifest import RuntimeFamily
from edgeml.meter import Meter, Terms
from edgeml.mqtt_source import FRAME_BYTES, NONSENSE_BYTES_MAX, SILENCE_MAX_S, Mailbox, MqttSource
from edgeml.pull import Answer, Kind, Status, decode_request, encode_answer
from edgeml.pull_window import PIECE_BYTES, WIDTH_MAX
from edgeml.testing import FakeClock
from edgeml.topics import Leaf
from edgeml.transport import LinkDown, LinkUp, Message
from edgeml.trustfacts import SignedFacts, SignedTarget

CHUNK = 16 << 10
DATA = random.Random(9).randbytes(5 * PIECE_BYTES + 77)
CHUNKS = b"".join(
    bytes.fromhex(digest_of(DATA[start : start + CHUNK])) for start in range(0, len(DATA), CHUNK)
)
BLOBS = {digest_of(DATA): DATA, digest_of(CHUNKS): CHUNKS}
MAILBOX = Mailbox(TenantId("main"), DeviceId("cam-1"), ChannelId("c1"))
TARGET = SignedTarget(
    "digits/1.0.0/v.edgeml",
    digest_of(DATA),
    len(DATA),
    SignedFacts("digits@1.0.0", "v", 1, ("p",), RuntimeFamily.ONNX, CHUNK, digest_of(CHUNKS)),
)


def honest(request):
    data = BLOBS[request.name]
    piece = data[request.offset : request.offset + request.length]
    return Answer(request.id, Status.PIECE, request.offset, len(data), piece)


def changed(request, **fields):
    good = honest(request)
    values = {name: getattr(good, name) for name in ("id", "status", "offset", "total_bytes", "piece")}
    return encode_answer(Answer(**values | fields))


HARMLESS = {
    "lost": lambda _fleet, _request: [],
    "for another request": lambda _fleet, request: [changed(request, id=request.id + 1_000_000)],
    "replayed": lambda fleet, _request: fleet.said[-9:],
    "twice": lambda _fleet, request: [encode_answer(honest(request))] * 2,
    "too long for any piece": lambda _fleet, request: [changed(request, piece=bytes(70_000))],
    "noise": lambda fleet, _request: [fleet.chance.randbytes(fleet.chance.randrange(200))],
    "cut": lambda _fleet, request: [encode_answer(honest(request))[:20]],
    "of another version": lambda _fleet, request: [b"\x07" + encode_answer(honest(request))[1:]],
}
"""What is as if nothing had come."""
HARMFUL = {
    "wrong offset": lambda _fleet, request: [changed(request, offset=request.offset + 1)],
    "a piece too long": lambda _fleet, request: [changed(request, piece=bytes(PIECE_BYTES + 1))],
    "a piece too short": lambda _fleet, request: [changed(request, piece=b"x")],
    "an empty piece": lambda _fleet, request: [changed(request, piece=b"")],
    "endless": lambda _fleet, request: [changed(request, total_bytes=1 << 60, piece=bytes(PIECE_BYTES))],
    "shorter": lambda _fleet, request: [changed(request, total_bytes=request.offset, piece=b"")],
    "missing": lambda _fleet, request: [changed(request, status=Status.MISSING, piece=b"")],
    "other bytes": lambda _fleet, request: [changed(request, piece=bytes(len(honest(request).piece)))],
    "bytes from elsewhere": lambda _fleet, request: [
        changed(request, piece=DATA[: len(honest(request).piece)])
    ],
}
"""What ends an attempt, now or when it is checked."""
HABITS = HARMLESS | HARMFUL


class Fleet:
    """A broker and a fleet behind it in one: answers requests by a list of habits, then honestly."""

    def __init__(self, habits=(), seed=0):
        self.clock = FakeClock()
        self.habits = deque(habits)
        self.chance = random.Random(seed)
        self.inbox = deque()
        self.said = []
        self.wire_bytes = 0
        self.requests = []

    def start(self):
        self.inbox.append(LinkUp())

    def close(self):
        self.inbox.append(LinkDown("closed"))

    def publish(self, message):
        assert message.topic == "em/v1/main/d/cam-1/pull"
        request = decode_request(message.payload)
        assert request.kind is Kind.BLOB
        self.requests.append(request)
        self._count(message)
        habit = HABITS[self.habits.popleft()] if self.habits else None
        for payload in habit(self, request) if habit else [encode_answer(honest(request))]:
            self.say(payload)
        return True

    def say(self, payload, topic=MAILBOX.filter):
        message = Message(topic, payload, 0)
        self.said.append(payload)
        self._count(message)
        self.inbox.append(message)

    def receive(self, timeout_s):
        if self.inbox:
            return self.inbox.popleft()
        self.clock.advance(timeout_s)
        return None

    def _count(self, message):
        self.wire_bytes += FRAME_BYTES + len(message.topic) + len(message.payload)


def source_of(fleet, meter=None):
    return MqttSource(fleet, MAILBOX, meter or Meter(Terms()), fleet.clock.monotonic_s)


def read(source, offset=0):
    with source.blob(TARGET.digest, offset) as stream:
        return b"".join(stream.pieces)


@given(st.lists(st.sampled_from(sorted(HARMLESS)), max_size=12), st.integers(0, len(DATA)), st.integers())
def test_what_answers_nothing_costs_time_and_no_byte_is_wrong(habits, offset, seed):
    # Each habit may be the only answer to a piece once; a piece is asked for often enough in a minute of silence.
    fleet = Fleet([one for habit in habits for one in (habit, "twice")], seed)
    assert read(source_of(fleet), offset) == DATA[offset:]


@given(st.lists(st.sampled_from(sorted(HABITS)), max_size=30), st.integers())
def test_whatever_it_sends_only_signed_chunks_are_kept_and_an_honest_fleet_goes_on_from_there(
    tmp_path_factory, habits, seed
):
    store = tmp_path_factory.mktemp("store")
    fleet = Fleet(habits, seed)
    began_s = fleet.clock.monotonic_s()
    with suppress(DigestMismatchError, TransferError):
        fetch(source_of(fleet), TARGET, store)
    assert fleet.clock.monotonic_s() - began_s < (len(habits) + 2) * SILENCE_MAX_S, "it ends"
    kept = store / f"{TARGET.digest}.part"
    if kept.exists():
        verified = len(kept.read_bytes()) // CHUNK * CHUNK
        assert kept.read_bytes()[:verified] == DATA[:verified]
    for _ in range(2):
        # A beginning of a chunk that was kept unverified may be found wrong once.
        with suppress(TransferError):
            fetch(source_of(Fleet()), TARGET, store)
    assert fetch(source_of(Fleet()), TARGET, store).path.read_bytes() == DATA


@given(st.lists(st.sampled_from(sorted(HABITS)), max_size=30), st.integers(), st.integers(0, 6))
def test_every_byte_that_comes_or_goes_is_paid_for_once(habits, seed, pieces):
    meter = Meter(Terms())
    fleet = Fleet(habits, seed)
    source = source_of(fleet, meter)
    read_bytes = 0
    with suppress(EdgemlError), source.blob(TARGET.digest, 0) as stream:
        for _, piece in zip(range(pieces), stream.pieces, strict=False):
            read_bytes += len(piece)
    source.close()
    assert meter.taken_bytes + read_bytes == fleet.wire_bytes


@pytest.mark.parametrize("habit", sorted(HARMFUL))
def test_an_answer_that_is_wrong_ends_the_attempt_and_nothing_of_it_is_kept(tmp_path, habit):
    fleet = Fleet(["twice", "twice", habit])
    with pytest.raises((DigestMismatchError, TransferError)):
        fetch(source_of(fleet), TARGET, tmp_path)
    kept = (tmp_path / f"{TARGET.digest}.part").read_bytes()
    assert kept == DATA[: len(kept)]


def test_more_nonsense_than_sense_is_hung_up_on_soon(tmp_path):
    meter = Meter(Terms())
    fleet = Fleet()
    source = source_of(fleet, meter)
    with source.blob(TARGET.digest, 0) as stream, pytest.raises(TransferError, match="answer nothing"):  # noqa: PT012
        next(stream.pieces)
        for _ in range(40):
            fleet.say(bytes(60_000))
        list(stream.pieces)
    assert meter.taken_bytes < NONSENSE_BYTES_MAX + PIECE_BYTES + 70_000


def test_the_topic_of_another_channel_is_not_listened_to():
    """Even if it answers what is asked: it is another process' answer."""
    fleet = Fleet(["twice", "lost", "lost"])
    source = source_of(fleet)
    other = topics.device_topic(MAILBOX.tenant, MAILBOX.device, Leaf.DATA, ChannelId("c2"))
    with source.blob(TARGET.digest, 0) as stream:
        first = next(stream.pieces)
        second = next(stream.pieces)
        for request in fleet.requests:
            fleet.say(changed(request, piece=bytes(PIECE_BYTES)), other)
        assert first + second + b"".join(stream.pieces) == DATA
    assert source.ignored >= len({one.id for one in fleet.requests[:4]})


def test_what_comes_before_anything_is_asked_for_is_paid_for_too():
    meter = Meter(Terms())
    fleet = Fleet()
    fleet.say(b"early")
    assert read(source_of(fleet, meter)) == DATA
    assert meter.taken_bytes + len(DATA) == fleet.wire_bytes


def test_a_fleet_that_says_nothing_is_given_up_after_a_minute():
    fleet = Fleet(["lost"] * 100)
    began_s = fleet.clock.monotonic_s()
    with pytest.raises(StalledError, match="sent nothing"):
        read(source_of(fleet))
    assert SILENCE_MAX_S <= fleet.clock.monotonic_s() - began_s < SILENCE_MAX_S + 20
    assert len(fleet.requests) < 6


@pytest.mark.parametrize("left_bytes", [1, PIECE_BYTES, 3 * PIECE_BYTES])
def test_no_more_is_asked_for_than_may_be_taken(left_bytes):
    meter = Meter(Terms(allowance_bytes=left_bytes))
    fleet = Fleet()
    with source_of(fleet, meter).blob(TARGET.digest, 0) as stream:
        next(stream.pieces)
        meter.count(PIECE_BYTES)
        with suppress(StopIteration):
            next(stream.pieces)
    assert len(fleet.requests) <= 1 + max(1, -(-left_bytes // PIECE_BYTES)) < WIDTH_MAX
