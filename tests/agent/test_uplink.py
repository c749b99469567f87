"""The uplink: what is sent when, and that a row is stored exactly once or counted, whatever the network does."""

import collections
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.buffer import ROWS_PER_BATCH, Buffer, BufferLimits
from agent.uplink import RESEND_FIRST_S, RESEND_MAX_S, Uplink
from edgeml import topics, twin
from edgeml.errors import ManifestError
from edgeml.ids import DeviceId, Digest, ReleaseId, TenantId
from edgeml.telemetry import Counters, DropReason, Event, Stream, Window, decode_batch
from edgeml.testing import FakeClock, LoopbackBroker, Weather
from edgeml.topics import CONTROLLER_USER, Leaf
from edgeml.transport import LinkDown, LinkUp, Message

TENANT, DEVICE = TenantId("acme"), DeviceId("cam-1")
WINDOWS = "em/v1/acme/d/cam-1/tele/windows"
EVENTS = "em/v1/acme/d/cam-1/tele/events"


def window():
    return Window(
        seq=0, release=ReleaseId("m@1"), digest=Digest("ab" * 32), started_at_ms=0, duration_ms=1000, counters=Counters(inferences=5)
    )  # fmt: skip


def event(detail=""):
    return Event(seq=0, kind="note", at_ms=1, detail=detail)


def ack(seq, boot="b1", stream=Stream.WINDOWS):
    return twin.encode(twin.Ack(boot=boot, stream=stream.value, seq=seq))


@pytest.fixture
def buffer():
    made = Buffer(":memory:", "b1")
    yield made
    made.close()


@pytest.fixture
def uplink(buffer):
    return Uplink(buffer, TENANT, DEVICE)


def due(uplink, now_s):
    """(topic, seqs) of what is sent now in its turn."""
    batches = [(one.topic, decode_batch(one.payload)) for one in uplink.due(now_s, link_up=True)]
    return [(topic, [row.seq for row in batch.rows]) for topic, batch in batches if not batch.is_ahead]


def test_nothing_is_sent_when_nothing_waits(uplink):
    assert uplink.due(0.0, link_up=True) == []


def test_nothing_is_sent_while_the_link_is_down(buffer, uplink):
    buffer.append(window())
    assert uplink.due(0.0, link_up=False) == []
    assert due(uplink, 0.0) == [(WINDOWS, [1])]


def test_messages_follow_the_rule_of_their_topic(buffer, uplink):
    buffer.append(window())
    buffer.append(event())
    messages = uplink.due(0.0, link_up=True)
    assert [(one.topic, one.qos, one.retain) for one in messages] == [(EVENTS, 1, False), (WINDOWS, 1, False)]


def test_one_batch_of_a_stream_is_in_flight_and_streams_do_not_wait_for_one_another(buffer, uplink):
    buffer.append(window())
    assert due(uplink, 0.0) == [(WINDOWS, [1])]
    buffer.append(window())
    buffer.append(event())
    assert due(uplink, 1.0) == [(EVENTS, [1])]
    assert due(uplink, 2.0) == []
    uplink.on_ack(ack(1), 3.0)
    assert due(uplink, 3.0) == [(WINDOWS, [2])]


def test_what_is_not_acknowledged_is_sent_again_after_growing_pauses(buffer, uplink):
    buffer.append(window())
    sent_at = [now_s for now_s in range(2000) if due(uplink, float(now_s))]
    pauses = [after - before for before, after in itertools.pairwise(sent_at)]
    assert pauses[:7] == [5, 10, 20, 40, 80, 160, 300]
    assert set(pauses[7:]) == {300}
    assert (RESEND_FIRST_S, RESEND_MAX_S) == (5.0, 300.0)


def test_an_ack_makes_pauses_short_again(buffer, uplink):
    buffer.append(window())
    for now_s in (0.0, 5.0, 15.0):
        assert due(uplink, now_s)
    buffer.append(window())
    uplink.on_ack(ack(1), 16.0)
    assert due(uplink, 16.0) == [(WINDOWS, [2])]
    assert due(uplink, 20.9) == []
    assert due(uplink, 21.0) == [(WINDOWS, [2])]


def test_a_new_link_sends_again_at_once(buffer, uplink):
    buffer.append(window())
    assert due(uplink, 0.0)
    uplink.on_link_up(1.0)
    assert due(uplink, 1.0) == [(WINDOWS, [1])]


def test_after_a_long_time_offline_events_go_before_windows(buffer, uplink):
    for _ in range(2 * ROWS_PER_BATCH):
        buffer.append(window())
    for _ in range(3 * ROWS_PER_BATCH):
        buffer.append(event())
    order, now_s = [], 0.0
    while sent := due(uplink, now_s):
        for topic, seqs in sent:
            order.append((topic, len(seqs)))
            stream = Stream.EVENTS if topic == EVENTS else Stream.WINDOWS
            uplink.on_ack(ack(seqs[-1], stream=stream), now_s)
        now_s += 1.0
    # The last batch of events does not keep windows waiting.
    assert order == [(EVENTS, 100), (EVENTS, 100), (WINDOWS, 100), (EVENTS, 100), (WINDOWS, 100)]
    assert buffer.loss(Stream.EVENTS).sent == 300


def test_rows_sent_again_are_sent_once(buffer, uplink):
    for _ in range(5):
        buffer.append(window())
    assert due(uplink, 0.0)
    buffer.append(window())
    uplink.on_link_up(1.0)
    assert due(uplink, 1.0) == [(WINDOWS, [1, 2, 3, 4, 5, 6])]
    uplink.on_link_up(2.0)
    assert due(uplink, 2.0)
    assert buffer.loss(Stream.WINDOWS).sent == 6


def test_what_was_sent_is_known_in_the_next_life(tmp_path):
    path = tmp_path / "telemetry.db"
    first = Buffer(path, "b1")
    first.append(window())
    first.append(window())
    assert due(Uplink(first, TENANT, DEVICE), 0.0)
    first._connection.close()
    second = Buffer(path, "b2")
    second.append(window())
    uplink = Uplink(second, TENANT, DEVICE)
    assert due(uplink, 0.0) == [(WINDOWS, [1, 2])]
    assert second.loss(Stream.WINDOWS).sent == 2
    uplink.on_ack(ack(2), 1.0)
    assert due(uplink, 1.0) == [(WINDOWS, [1])]
    assert second.loss(Stream.WINDOWS).sent == 3
    second.close()


@pytest.mark.parametrize(
    "late", [ack(1, boot="b0"), ack(1, stream=Stream.EVENTS), ack(0)], ids=["boot", "stream", "seq"]
)
def test_an_ack_of_something_else_leaves_the_batch_in_flight(buffer, uplink, late):
    buffer.append(window())
    assert due(uplink, 0.0)
    uplink.on_ack(late, 1.0)
    assert due(uplink, 1.0) == []
    assert due(uplink, 5.0) == [(WINDOWS, [1])]


def test_an_ack_of_part_of_a_batch_leaves_the_rest_to_be_sent_again(buffer, uplink):
    for _ in range(3):
        buffer.append(window())
    assert due(uplink, 0.0) == [(WINDOWS, [1, 2, 3])]
    uplink.on_ack(ack(2), 1.0)
    assert due(uplink, 1.0) == []
    assert due(uplink, 5.0) == [(WINDOWS, [3])]


@pytest.mark.parametrize("payload", [b"", b"{}", b"\xff", b"[" * 1000, b'{"boot":"b1","stream":"windows"}'])
def test_an_ack_that_makes_no_sense_is_refused_and_changes_nothing(buffer, uplink, payload):
    buffer.append(window())
    assert due(uplink, 0.0)
    with pytest.raises(ManifestError):
        uplink.on_ack(payload, 1.0)
    assert buffer.held(Stream.WINDOWS) == 1


def test_rows_evicted_while_in_flight_are_not_sent_again():
    buffer = Buffer(":memory:", "b1", BufferLimits(rows_max=10))
    uplink = Uplink(buffer, TENANT, DEVICE)
    for _ in range(10):
        buffer.append(window())
    assert due(uplink, 0.0) == [(WINDOWS, list(range(1, 11)))]
    for _ in range(30):
        buffer.append(window())
    assert due(uplink, 5.0) == [(WINDOWS, list(range(31, 41)))]
    uplink.on_ack(ack(10), 6.0)
    assert buffer.held(Stream.WINDOWS) == 10
    uplink.on_ack(ack(40), 7.0)
    assert due(uplink, 7.0) == []
    assert buffer.loss(Stream.WINDOWS).dropped == 30
    buffer.close()


class ModelController:
    """Stores rows by their key and acknowledges the highest of each boot and stream, as the fleet does."""

    def __init__(self, broker):
        self.broker = broker
        self.stored = {stream: collections.Counter() for stream in Stream}
        self.high = {}
        self.link = None
        self.start()

    def start(self):
        self.link = self.broker.connect(CONTROLLER_USER, topics.up_filters(TENANT))
        self.link.start()

    def step(self, crash_before_ack):
        while (arrival := self.link.receive(0)) is not None:
            if not isinstance(arrival, Message):
                continue
            stream = topics.parse(arrival.topic).stream
            batch = decode_batch(arrival.payload)
            for row in batch.ahead_windows + batch.ahead_events:
                # Once: it comes again in its turn.
                self.stored[stream][batch.boot, row.seq] = 1
            if batch.is_ahead:
                continue
            for row in batch.rows:
                if not self.stored[stream][batch.boot, row.seq]:
                    self.stored[stream][batch.boot, row.seq] += 1
            self.high[batch.boot, stream] = max(self.high.get((batch.boot, stream), 0), batch.rows[-1].seq)
            if crash_before_ack:
                self.link.cut()
                self.start()
                return
            answer = ack(self.high[batch.boot, stream], batch.boot, stream)
            self.link.publish(Message(topics.device_topic(TENANT, DEVICE, Leaf.ACK), answer))


class ModelDevice:
    """Buffer and uplink with a link; keeps an account of every row that was flushed."""

    def __init__(self, broker, clock, path, limits):
        self.broker, self.clock, self.path, self.limits = broker, clock, path, limits
        self.lives = 0
        self.produced = {stream: set() for stream in Stream}
        self.begin()

    def begin(self):
        self.lives += 1
        self.boot = f"boot-{self.lives}"
        self.buffer = Buffer(self.path, self.boot, self.limits)
        self.uplink = Uplink(self.buffer, TENANT, DEVICE)
        self.link = self.broker.connect(str(DEVICE), topics.down_filters(TENANT, DEVICE))
        self.up = False
        self.link.start()

    def append(self, rows):
        for row in rows:
            stream = Stream.WINDOWS if isinstance(row, Window) else Stream.EVENTS
            self.produced[stream].add((self.boot, self.buffer.append(row)))

    def kill(self):
        for stream, seq, _ in self.buffer._unwritten:
            self.produced[stream].discard((self.boot, seq))
        self.buffer._connection.close()
        self.link.cut()
        self.begin()

    def step(self):
        while (arrival := self.link.receive(0)) is not None:
            match arrival:
                case LinkUp():
                    self.up = True
                    self.uplink.on_link_up(self.clock.monotonic_s())
                case LinkDown():
                    self.up = False
                case Message():
                    self.uplink.on_ack(arrival.payload, self.clock.monotonic_s())
        for message in self.uplink.due(self.clock.monotonic_s(), link_up=self.up):
            self.link.publish(message)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["rows", "rows", "rows", "wait", "wait", "cut", "heal", "heal", "kill", "crash", "restart broker"]
        ),
        st.integers(0, 40),
    ),
    min_size=5,
    max_size=60,
)


@given(
    steps=STEPS,
    weather=st.builds(
        Weather,
        duplicated=st.sampled_from([0.0, 0.5]),
        reordered=st.sampled_from([0.0, 0.7]),
        delayed=st.sampled_from([0.0, 0.5]),
        lost=st.sampled_from([0.0, 0.4]),
        seed=st.integers(0, 99),
    ),
    limits=st.sampled_from([BufferLimits(), BufferLimits(rows_max=60)]),
)
@settings(max_examples=60)
def test_every_row_is_stored_exactly_once_or_counted_as_dropped(tmp_path_factory, steps, weather, limits):
    clock = FakeClock()
    broker = LoopbackBroker(TENANT, weather)
    controller = ModelController(broker)
    device = ModelDevice(broker, clock, tmp_path_factory.mktemp("device") / "telemetry.db", limits)
    for step, number in steps:
        match step:
            case "rows":
                device.append([window() if index % 3 else event() for index in range(number)])
            case "wait":
                clock.advance(number)
            case "cut":
                device.link.cut()
            case "heal":
                device.link.heal()
            case "kill":
                device.kill()
            case "restart broker":
                broker.restart_empty()
                controller.link.heal()
        device.step()
        controller.step(crash_before_ack=step == "crash")
        check_nothing_acknowledged_is_lost(device, controller)
    broker.weather = Weather()
    controller.link.heal()
    device.link.heal()
    for _ in range(4 * len(steps) + 200):
        device.step()
        controller.step(crash_before_ack=False)
        clock.advance(RESEND_MAX_S)
        if not any(map(device.buffer.held, Stream)):
            break
    for stream in Stream:
        loss = device.buffer.loss(stream)
        assert device.buffer.held(stream) == 0
        assert loss.produced == len(device.produced[stream]) == loss.acknowledged + loss.dropped
        assert loss.acknowledged <= loss.sent <= loss.produced
        assert set(controller.stored[stream]) <= device.produced[stream]
        missing = device.produced[stream] - set(controller.stored[stream])
        # No row is too long, refused or broken here: want of room is the only reason there can be.
        assert loss.dropped == loss.reasons.count(DropReason.EVICTED)
        # A row whose ack was lost may be stored, and be dropped for want of room afterwards: never the other way round.
        assert len(missing) <= loss.dropped
        if limits.rows_max == BufferLimits().rows_max:
            assert not missing
    assert broker.refused == []
    device.buffer.close()


def check_nothing_acknowledged_is_lost(device, controller):
    """What left the buffer as acknowledged is in the controller's store."""
    for stream in Stream:
        assert device.buffer.loss(stream).acknowledged <= len(controller.stored[stream])
