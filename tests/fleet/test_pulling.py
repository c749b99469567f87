"""Files through a broker: the controller that answers, and the source that asks, in all weathers. Time is a fake clock's."""

import random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeml import mqtt_source, topics
from edgeml.download import fetch
from edgeml.errors import (
    DigestMismatchError,
    LinkDownError,
    PermanentTransferError,
    PostponedError,
    StalledError,
    TransferError,
)
from edgeml.ids import ChannelId, DeviceId, digest_of
from edgeml.manifest import RuntimeFamily
from edgeml.meter import Meter, Terms
from edgeml.metered_source import MeteredSource
from edgeml.mqtt_source import Mailbox, MqttSource
from edgeml.pull import ID_MAX, OFFSET_MAX, PIECE_BYTES_MAX, Answer, Status, decode_answer, encode_answer
from edgeml.pull_window import PIECE_BYTES, WIDTH_MAX
from edgeml.testing import Weather
from edgeml.topics import CONTROLLER_USER, Leaf
from edgeml.transport import Message
from edgeml.trustfacts import SignedFacts, SignedTarget
from fleet.config import PullSettings
from fleet.pulling import STEP_BYTES_MAX
from fleet.pulls import REQUESTS_MAX

from .conftest import TENANT

CHUNK = 64 << 10
DATA = random.Random(3).randbytes(700_001)


class Line:
    """A device's end of the broker. To wait is to let the world go on."""

    def __init__(self, world, name, filters):
        self.world = world
        self.link = world.broker.connect(name, filters)
        self.heard_bytes = 0

    def receive(self, timeout_s):
        arrival = self.link.receive(0)
        if arrival is None and timeout_s > 0:
            self.world.step(min(timeout_s, 0.25))
            arrival = self.link.receive(0)
        self.heard_bytes += len(arrival.payload) if isinstance(arrival, Message) else 0
        return arrival

    def __getattr__(self, name):
        return getattr(self.link, name)


def open_source(world, name="cam-1", meter=None):
    mailbox = Mailbox(TENANT, DeviceId(name), ChannelId("c1"))
    line = Line(world, name, (mailbox.filter,))
    return MqttSource(line, mailbox, meter or Meter(Terms()), world.clock.monotonic_s), line


def publish(world, data=DATA):
    """Put a blob, its chunk list and some metadata where the controller looks."""
    chunks = b"".join(
        bytes.fromhex(digest_of(data[start : start + CHUNK])) for start in range(0, len(data), CHUNK)
    )
    folder = world.published.directory
    (folder / "metadata").mkdir(parents=True, exist_ok=True)
    (folder / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    (folder / "metadata" / "timestamp.json").write_bytes(b"signed")
    for blob in (data, chunks):
        (folder / "blobs" / "sha256" / digest_of(blob)).write_bytes(blob)
    facts = SignedFacts("digits@1.0.0", "v", 1, ("p",), RuntimeFamily.ONNX, CHUNK, digest_of(chunks))
    return SignedTarget("digits/1.0.0/v.edgeml", digest_of(data), len(data), facts)


WEATHERS = [
    Weather(),
    Weather(lost=0.3, seed=1),
    Weather(duplicated=0.5, reordered=0.5, seed=2),
    Weather(lost=0.15, duplicated=0.3, reordered=0.3, delayed=0.2, seed=3),
]


@pytest.mark.parametrize("weather", WEATHERS, ids=lambda one: f"seed {one.seed}")
def test_a_bundle_comes_whole_in_any_weather(make_world, tmp_path, weather):
    world = make_world(weather)
    world.enrol("cam-1")
    target = publish(world)
    source, line = open_source(world)
    assert b"".join(source.metadata("timestamp.json")) == b"signed"
    fetched = fetch(source, target, tmp_path / "store")
    assert fetched.path.read_bytes() == DATA
    assert fetched.received_bytes == len(DATA) + 32 * 11
    if weather == Weather():
        # What it costs besides: the header of each piece.
        assert line.heard_bytes < 1.002 * len(DATA)
        assert (source.asked_again, source.ignored) == (0, 0)
    if weather.lost:
        assert source.asked_again > 0
    if weather.duplicated:
        assert source.ignored > 0


def test_a_cut_link_costs_what_was_under_way(world, tmp_path):
    world.enrol("cam-1")
    target = publish(world)
    source, line = open_source(world)
    got = b""
    with source.blob(target.digest, 5) as stream:
        for count, piece in enumerate(stream.pieces):
            got += piece
            if count in {3, 9}:
                line.cut()
                line.heal()
            if count == 12:
                world.kill_controller()
    assert got == DATA[5:]
    source.close()


def test_a_broker_that_stays_away_and_a_fleet_that_is_silent_are_told_apart(world):
    world.enrol("cam-1")
    target = publish(world)
    source, line = open_source(world)
    with source.blob(target.digest, 0) as stream, pytest.raises(LinkDownError, match="cut"):  # noqa: PT012
        next(stream.pieces)
        line.cut()
        list(stream.pieces)
    line.heal()
    with source.blob(target.digest, 0) as stream, pytest.raises(StalledError, match="sent nothing"):  # noqa: PT012
        next(stream.pieces)
        world.link.cut()
        list(stream.pieces)


def test_a_broker_that_cannot_be_reached_is_a_link_that_is_down(world):
    source, _ = open_source(world, name="No Name")
    began_s = world.clock.monotonic_s()
    with pytest.raises(LinkDownError, match="login refused"):
        list(source.metadata("timestamp.json"))
    assert world.clock.monotonic_s() - began_s < mqtt_source.LINK_TIMEOUT_S + 2


def test_what_is_not_there_is_permanent_and_what_is_no_name_is_never_answered(world):
    world.enrol("cam-1")
    publish(world)
    (world.published.directory / "metadata" / ".lock").write_text("")
    source, _ = open_source(world)
    with pytest.raises(PermanentTransferError, match="no such file"):
        list(source.metadata("2.root.json"))
    with source.blob(digest_of(b"?"), 0) as stream, pytest.raises(PermanentTransferError):
        list(stream.pieces)
    with pytest.raises(StalledError):
        list(source.metadata("../fleet.db"))
    assert world.controller.refused["malformed"] > 0


def test_a_device_that_is_not_enrolled_is_not_answered_and_counted(world):
    publish(world)
    source, line = open_source(world)
    with pytest.raises(StalledError):
        list(source.metadata("timestamp.json"))
    assert world.controller.refused["unknown device"] > 0
    assert line.heard_bytes == 0


def test_a_flipped_byte_is_found_and_nothing_of_that_chunk_is_kept(world, tmp_path):
    world.enrol("cam-1")
    target = publish(world)
    path = world.published.directory / "blobs" / "sha256" / target.digest
    data = bytearray(DATA)
    data[3 * CHUNK + 7] ^= 1
    path.write_bytes(data)
    source, _ = open_source(world)
    with pytest.raises(DigestMismatchError, match="chunk 3"):
        fetch(source, target, tmp_path / "store")
    assert (tmp_path / "store" / f"{target.digest}.part").read_bytes() == DATA[: 3 * CHUNK]


def test_nonsense_on_the_channel_neither_helps_nor_harms_nor_prolongs(world):
    world.enrol("cam-1")
    target = publish(world)
    source, line = open_source(world)
    topic = topics.device_topic(TENANT, DeviceId("cam-1"), Leaf.DATA, ChannelId("c1"))
    with source.blob(target.digest, 0) as stream:
        first = next(stream.pieces)
        for payload in (b"", b"x" * 70_000, encode_answer(Answer(5, Status.MISSING))):
            world.broker.publish(CONTROLLER_USER, Message(topic, payload, 0))
        assert first + b"".join(stream.pieces) == DATA
    assert source.ignored == 3
    with source.blob(target.digest, 0) as stream, pytest.raises(StalledError):  # noqa: PT012
        next(stream.pieces)
        world.link.cut()
        for _ in range(2000):
            line.link.put(Message(topic, b"nonsense"))
        list(stream.pieces)


def configured(world, **settings):
    world.config = msgspec.structs.replace(world.config, pulls=PullSettings(**settings))
    world.kill_controller()


def test_pulls_can_be_off(world):
    configured(world, bytes_per_s=0)
    world.enrol("cam-1")
    publish(world)
    source, _ = open_source(world)
    with pytest.raises(TransferError, match="answers no pulls"):
        list(source.metadata("timestamp.json"))
    assert world.controller.refused["pull"] == 1


@pytest.mark.parametrize(("everyone", "each"), [(50_000, 1 << 30), (1 << 30, 50_000)])
def test_the_rates_of_the_settings_are_kept(world, everyone, each):
    configured(world, bytes_per_s=everyone, device_bytes_per_s=each)
    world.enrol("cam-1")
    target = publish(world)
    source, line = open_source(world)
    began_s = world.clock.monotonic_s()
    with source.blob(target.digest, 0) as stream:
        assert b"".join(stream.pieces) == DATA
    assert line.heard_bytes / (world.clock.monotonic_s() - began_s) < 50_000 * 1.2
    # It waited, and did not ask again and again.
    assert source.asked_again < 10


def test_one_step_of_the_controller_reads_no_more_than_its_share(world):
    configured(world, bytes_per_s=1 << 30, device_bytes_per_s=1 << 30)
    cams = world.enrol(*(f"cam-{index}" for index in range(10)))
    target = publish(world)
    for cam in cams:
        cam.come()
        for identity in range(8):
            asked = {
                "channel": "c1",
                "id": identity,
                "kind": "blob",
                "length": 65536,
                "name": target.digest,
                "offset": 0,
            }
            cam.raw(msgspec.json.encode(asked), Leaf.PULL)
    sent = 0
    for _ in range(4):
        world.step()
        step_bytes = world.controller._pulling.sent_bytes - sent
        sent += step_bytes
        assert 0 < step_bytes <= STEP_BYTES_MAX + 65536
    cams[0].rows(1)
    world.step()
    assert cams[0].acks() == [1]


def test_a_link_that_stays_away_ends_the_attempt_and_the_next_one_goes_on_where_it_ended(world, tmp_path):
    world.enrol("cam-1")
    target = publish(world)
    source, line = open_source(world)
    done = []

    def progress(verified, _all):
        done.append(verified)
        if verified == 4 * CHUNK:
            line.cut()

    with pytest.raises(LinkDownError):
        fetch(source, target, tmp_path, progress)
    # What was under way had come already.
    assert 4 * CHUNK < max(done) <= 4 * CHUNK + WIDTH_MAX * PIECE_BYTES < len(DATA)
    source.close()
    again, line = open_source(world)
    assert fetch(again, target, tmp_path).path.read_bytes() == DATA
    assert line.heard_bytes < 1.002 * (len(DATA) - max(done))


def test_a_days_allowance_ends_a_fetch_and_little_is_paid_for_twice(world, tmp_path):
    world.enrol("cam-1")
    target = publish(world)
    heard, days = 0, 0
    while True:
        days += 1
        assert days < 12
        meter = Meter(Terms(allowance_bytes=150_000, wait_s=3600.0))
        source, line = open_source(world, meter=meter)
        stopped = None
        try:
            fetched = fetch(MeteredSource(source, meter), target, tmp_path)
        except PostponedError as error:
            stopped = error
        source.close()
        assert meter.taken_bytes > line.heard_bytes, "requests cost something, too"
        assert meter.taken_bytes <= 150_000 + 2 * PIECE_BYTES
        heard += line.heard_bytes
        if stopped is None:
            break
        assert stopped.wait_s == 3600.0
    assert fetched.path.read_bytes() == DATA
    assert days == pytest.approx(len(DATA) / 150_000, abs=2)
    assert heard < len(DATA) + days * PIECE_BYTES


REQUESTS = st.fixed_dictionaries(
    {
        "channel": st.sampled_from(["c1", "c2", "+", "a/b"]),
        "id": st.integers(-1, ID_MAX),
        "kind": st.sampled_from(["blob", "metadata", "key"]),
        "length": st.integers(0, PIECE_BYTES_MAX + 1),
        "name": st.sampled_from([digest_of(DATA), digest_of(b"?"), "timestamp.json", "../fleet.db"]),
        "offset": st.one_of(st.integers(-1, OFFSET_MAX), st.just(OFFSET_MAX), st.integers(0, 2 * len(DATA))),
    }
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(REQUESTS.map(msgspec.json.encode), st.binary(max_size=2000)), max_size=20))
def test_whatever_a_device_asks_for_the_controller_goes_on_and_answers_only_what_is_published(
    world, payloads
):
    if not world.cams:
        world.enrol("cam-1")
        publish(world)
    line = Line(world, "cam-1", ("em/v1/main/d/cam-1/data/c1", "em/v1/main/d/cam-1/data/c2"))
    line.start()
    for payload in payloads:
        line.publish(Message("em/v1/main/d/cam-1/pull", payload, 0))
    for _ in range(8):
        world.step()
    while (arrival := line.receive(0)) is not None:
        if isinstance(arrival, Message):
            answer = decode_answer(arrival.payload)
            assert len(answer.piece) <= PIECE_BYTES_MAX
            assert answer.piece in (
                DATA[answer.offset : answer.offset + len(answer.piece)],
                b"signed"[answer.offset :][: len(answer.piece)],
            )
    line.close()


def test_a_file_that_cannot_be_read_is_counted_and_the_controller_goes_on(world):
    _, other = world.enrol("cam-1", "cam-2")
    target = publish(world)
    path = world.published.directory / "blobs" / "sha256" / target.digest
    path.unlink()
    path.mkdir()
    source, _ = open_source(world)
    with source.blob(target.digest, 0) as stream, pytest.raises(StalledError):
        list(stream.pieces)
    assert world.controller.refused["pull"] > 0
    other.come()
    other.rows(1)
    world.step()
    assert other.acks() == [1]


def test_a_device_that_floods_does_not_keep_anothers_release_from_it(world):
    """It asks for everything, on new channels, with nonsense between, at each step of the controller."""
    greedy, _ = world.enrol("greedy", "cam-1")
    target = publish(world)
    greedy.come()
    source, _ = open_source(world)
    chance, asked = random.Random(1), 0
    step = world.step

    def flooded(seconds=0.25):
        nonlocal asked
        for _ in range(50):
            asked += 1
            fields = {
                "channel": f"c{asked}",
                "id": asked,
                "kind": "blob",
                "length": 65536,
                "name": target.digest,
            }
            greedy.raw(
                msgspec.json.encode(fields) if chance.random() < 0.8 else chance.randbytes(500), Leaf.PULL
            )
        step(seconds)
        assert world.controller._pulling._pulls.count <= 2 * REQUESTS_MAX

    world.step = flooded
    began_s = world.clock.monotonic_s()
    with source.blob(target.digest, 0) as stream:
        assert b"".join(stream.pieces) == DATA
    assert asked > 300
    # Its own rate is 256 KiB/s, as if it were alone.
    assert world.clock.monotonic_s() - began_s < 2 * len(DATA) / PullSettings().device_bytes_per_s
    assert world.controller.refused["pull"] > 0
    assert world.controller.refused["malformed"] > 0
