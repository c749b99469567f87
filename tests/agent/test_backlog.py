"""A backlog: the newest goes ahead of it, and it goes at its own pace."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.ahead import EVERY_S, ROWS_MAX
from agent.buffer import ROWS_PER_BATCH, Buffer
from agent.pace import SAVED_MAX, TOKEN_BYTES, Pace
from agent.uplink import Uplink
from edgeml import twin
from edgeml.ids import DeviceId, Digest, ReleaseId, TenantId, digest_of
from edgeml.telemetry import Batch, Counters, Event, Stream, Window, decode_batch, encode_batch

BACKLOG = 5 * ROWS_PER_BATCH
TOPICS = {stream: f"em/v1/acme/d/cam-1/tele/{stream.value}" for stream in Stream}


def window():
    return Window(0, ReleaseId("m@1"), Digest("ab" * 32), 0, 1000, Counters(inferences=5))


def event(detail=""):
    return Event(0, "note", 1, detail)


@pytest.fixture
def buffer():
    made = Buffer(":memory:", "b1")
    yield made
    made.close()


def uplink_of(buffer, pace=None):
    return Uplink(buffer, TenantId("acme"), DeviceId("cam-1"), pace)


def append(buffer, *rows):
    for row in rows:
        buffer.append(row)
    buffer.flush()


def sent(uplink, now_s):
    """What is sent now: [(stream, whether ahead, seqs)]."""
    found = []
    for message in uplink.due(now_s, link_up=True):
        batch = decode_batch(message.payload)
        stream = next(one for one, topic in TOPICS.items() if topic == message.topic)
        found.append((stream, batch.is_ahead, [row.seq for row in batch.in_turn().rows]))
    return found


def acknowledge(uplink, stream, seq, now_s):
    uplink.on_ack(twin.encode(twin.Ack(boot="b1", stream=stream.value, seq=seq)), now_s)


def answer(uplink, found, now_s):
    """Acknowledge what came in its turn."""
    for stream, ahead, seqs in found:
        if not ahead:
            acknowledge(uplink, stream, seqs[-1], now_s)


def ahead_of(found, stream):
    return [seqs for one, ahead, seqs in found if ahead and one is stream]


def test_the_newest_of_each_stream_go_first_then_the_oldest(buffer):
    append(buffer, *[window() for _ in range(BACKLOG)], event())
    found = sent(uplink_of(buffer), 0.0)
    assert found == [
        (Stream.WINDOWS, True, list(range(BACKLOG - ROWS_MAX + 1, BACKLOG + 1))),
        (Stream.EVENTS, False, [1]),
        (Stream.WINDOWS, False, list(range(1, ROWS_PER_BATCH + 1))),
    ]


def test_windows_do_not_wait_for_a_backlog_of_events(buffer):
    append(buffer, *[event() for _ in range(BACKLOG)], window(), window())
    uplink = uplink_of(buffer, Pace(1.0))
    assert ahead_of(sent(uplink, 0.0), Stream.WINDOWS) == [[1, 2]]
    append(buffer, window())
    assert sent(uplink, EVERY_S - 0.1) == []
    assert ahead_of(sent(uplink, EVERY_S), Stream.WINDOWS) == [[3]]
    assert ahead_of(sent(uplink, 2 * EVERY_S), Stream.WINDOWS) == []


def test_what_is_new_goes_ahead_once(buffer):
    append(buffer, *[window() for _ in range(BACKLOG)])
    uplink = uplink_of(buffer, Pace(0.01))
    sent(uplink, 0.0)
    seen = []
    for turn in range(1, 20):
        append(buffer, window())
        seen += ahead_of(sent(uplink, turn * EVERY_S), Stream.WINDOWS)
    assert seen == [[BACKLOG + turn] for turn in range(1, 20)]


def test_nothing_goes_ahead_where_nothing_waits(buffer):
    uplink = uplink_of(buffer, Pace(1.0))
    for turn in range(100):
        append(buffer, window(), event())
        found = sent(uplink, float(turn))
        assert [ahead for _, ahead, _ in found] == [False, False]
        answer(uplink, found, float(turn))


def test_rows_of_earlier_lives_and_samples_do_not_go_ahead(tmp_path):
    first = Buffer(tmp_path / "telemetry.db", "b0")
    append(first, *[window() for _ in range(BACKLOG)])
    first.close()
    buffer = Buffer(tmp_path / "telemetry.db", "b1")
    uplink = uplink_of(buffer)
    assert ahead_of(sent(uplink, 0.0), Stream.WINDOWS) == []
    append(buffer, window())
    assert ahead_of(sent(uplink, EVERY_S), Stream.WINDOWS) == [[1]]
    buffer.close()


def test_what_goes_ahead_leaves_the_account_alone_and_a_new_link_sends_it_again(buffer):
    append(buffer, *[window() for _ in range(BACKLOG)])
    uplink = uplink_of(buffer, Pace(0.001, tokens=-50.0))
    uplink.on_link_up(0.0)
    found = sent(uplink, 0.0)
    assert [ahead for _, ahead, _ in found] == [True]
    assert (buffer.loss(Stream.WINDOWS).sent, buffer.held(Stream.WINDOWS)) == (0, BACKLOG)
    assert sent(uplink, 1.0) == []
    uplink.on_link_up(2.0)
    assert sent(uplink, 2.0) == found


def test_a_fleet_that_does_not_know_them_gets_no_more_over_this_link(buffer):
    append(buffer, *[window() for _ in range(BACKLOG)])
    uplink = uplink_of(buffer, Pace(0.001, tokens=-50.0))
    uplink.on_link_up(0.0)
    [message] = uplink.due(0.0, link_up=True)
    refusal = twin.Ack(boot="", stream="windows", seq=-1, refused=digest_of(message.payload))
    uplink.on_ack(twin.encode(refusal), 1.0)
    append(buffer, window())
    assert sent(uplink, 100.0) == []
    assert buffer.loss(Stream.WINDOWS).dropped == 0
    uplink.on_link_up(200.0)
    assert len(sent(uplink, 200.0)) == 1


def test_a_fleet_of_before_finds_no_rows_in_it():
    """Its `rows` are those of a batch without the new fields: it refuses, and acknowledges nothing."""
    batch = decode_batch(encode_batch(Batch("b1", windows=(window(),)).ahead()))
    assert batch.rows == ()
    assert batch.in_turn().windows == (window(),)


@pytest.mark.parametrize("rate", [1.0, 10.0, 40.0])
def test_a_backlog_goes_at_its_pace(buffer, rate):
    append(buffer, *[window() for _ in range(BACKLOG)])
    uplink = uplink_of(buffer, Pace(rate))
    uplink.on_link_up(0.0)
    times = []
    for turn in itertools.count():
        now_s = turn * 0.2
        found = sent(uplink, now_s)
        answer(uplink, found, now_s)
        times += [now_s for _, ahead, _ in found if not ahead]
        if not buffer.held(Stream.WINDOWS):
            break
    # The last batch is no backlog any more; one was saved up, and one is owed for.
    assert times[:2] == [0.0, pytest.approx(0.2, abs=0.81)]
    expected_s = (BACKLOG - 3 * ROWS_PER_BATCH) / rate
    assert times[-2] == pytest.approx(expected_s, abs=ROWS_PER_BATCH / rate * 0.05 + 1.0)


def test_live_rows_of_a_busy_device_are_paid_for_by_themselves(buffer):
    """Sixteen windows a second with a pace of one: the backlog still shrinks."""
    append(buffer, *[window() for _ in range(BACKLOG)])
    uplink = uplink_of(buffer, Pace(1.0))
    uplink.on_link_up(0.0)
    held = []
    for second in range(1, 200):
        append(buffer, *[window() for _ in range(16)])
        answer(uplink, sent(uplink, float(second)), float(second))
        held.append(buffer.held(Stream.WINDOWS))
    assert held[-1] <= BACKLOG - 150 * 1.0 + ROWS_PER_BATCH
    assert max(held) <= BACKLOG + ROWS_PER_BATCH


def test_what_was_produced_without_a_link_is_not_paid_for(buffer):
    uplink = uplink_of(buffer, Pace(0.001, tokens=-50.0))
    uplink.on_link_up(0.0)
    sent(uplink, 0.0)
    append(buffer, *[window() for _ in range(BACKLOG)])
    uplink.on_link_up(60.0)
    assert [ahead for _, ahead, _ in sent(uplink, 60.0)] == [True]


def test_links_that_break_again_and_again_do_not_make_it_faster(buffer):
    append(buffer, *[window() for _ in range(BACKLOG)])
    uplink = uplink_of(buffer, Pace(1.0))
    rows = 0
    for second in range(100):
        uplink.on_link_up(float(second))
        rows += sum(len(seqs) for _, ahead, seqs in sent(uplink, float(second)) if not ahead)
    assert rows <= SAVED_MAX + 100 + ROWS_PER_BATCH


@given(
    rate=st.floats(0.1, 100.0),
    steps=st.lists(
        st.tuples(st.floats(0.0, 50.0), st.integers(1, 100), st.integers(1, 64 << 10)),
        min_size=1,
        max_size=60,
    ),
)
def test_no_more_goes_than_was_saved_and_came_and_one_batch(rate, steps):
    pace, now_s, spent = Pace(rate), 0.0, 0.0
    for pause_s, rows, size_bytes in steps:
        now_s += pause_s
        pace = pace.at(now_s, 0)
        if pace.ready:
            cost = max(rows, size_bytes / TOKEN_BYTES)
            pace = pace.spent(rows, size_bytes)
            spent += cost
            assert spent <= SAVED_MAX + rate * now_s + cost + 1e-6
        # Nothing waits for ever: what is owed is paid in a known time.
        assert pace.at(now_s + 101.0 / rate, 0).ready


def test_a_clock_that_stands_still_or_a_count_that_starts_over_takes_nothing():
    pace = Pace(10.0, tokens=-5.0, at_s=100.0, produced=50)
    assert pace.at(100.0, 50).tokens == -5.0
    assert pace.at(99.0, 0).tokens == -5.0
