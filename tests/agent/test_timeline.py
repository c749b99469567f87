"""Rows that wait when the clock is set: dated again, except those that were sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.buffer import Buffer
from agent.timeline import JUMP_MS, SETTINGS_MAX, Timeline
from agent.windows import ReleaseKey, Windows
from edgeml.ids import Digest, ReleaseId
from edgeml.telemetry import Event, Stream
from edgeml.testing import FakeClock
from edgeml.twin import Ack

EVENTS, WINDOWS = Stream.EVENTS, Stream.WINDOWS
NOW_MS = 1_790_000_000_000
KEY = ReleaseKey(ReleaseId("m@1"), Digest("ab" * 32))


class Clock:
    """Both clocks, each to be set."""

    def __init__(self, wall_ms):
        self.wall_ms, self.mono_s = wall_ms, 1000.0

    def now_ms(self):
        return self.wall_ms

    def monotonic_s(self):
        return self.mono_s

    def pass_s(self, seconds):
        self.wall_ms += round(seconds * 1000)
        self.mono_s += seconds


def note(buffer, clock, kind="note"):
    buffer.append(Event(seq=0, kind=kind, at_ms=clock.now_ms()))


def times(buffer):
    batch = buffer.pending(EVENTS)
    return [] if batch is None else [row.at_ms for row in batch.events]


@pytest.mark.parametrize("jump_ms", [NOW_MS, -3_600_000, 3_600_000, JUMP_MS])
def test_rows_that_wait_are_dated_by_the_clock_that_was_set(jump_ms):
    clock = Clock(NOW_MS if jump_ms < 0 else 5_000)
    buffer = Buffer(":memory:", "b1", clock=clock)
    note(buffer, clock)
    clock.pass_s(10)
    note(buffer, clock)
    began_ms = clock.wall_ms - 10_000
    clock.wall_ms += jump_ms
    clock.pass_s(7)
    note(buffer, clock)
    assert times(buffer) == [began_ms + jump_ms, began_ms + jump_ms + 10_000, clock.wall_ms]
    buffer.close()


def test_a_clock_that_runs_a_little_fast_was_not_set():
    clock = Clock(NOW_MS)
    buffer = Buffer(":memory:", "b1", clock=clock)
    note(buffer, clock)
    clock.wall_ms += JUMP_MS - 1
    assert times(buffer) == [NOW_MS]
    buffer.close()


def test_there_and_back_again_gives_each_row_its_own_time():
    clock = Clock(NOW_MS)
    buffer = Buffer(":memory:", "b1", clock=clock)
    for jump_ms in (0, 86_400_000, -172_800_000, 86_400_000):
        clock.wall_ms += jump_ms
        note(buffer, clock)
        clock.pass_s(1)
    assert times(buffer) == [NOW_MS, NOW_MS + 1000, NOW_MS + 2000, NOW_MS + 3000]
    buffer.close()


def test_a_row_that_was_sent_says_the_same_when_it_is_sent_again():
    clock = Clock(0)
    buffer = Buffer(":memory:", "b1", clock=clock)
    note(buffer, clock)
    buffer.send(EVENTS, buffer.pending(EVENTS))
    note(buffer, clock)
    clock.wall_ms = NOW_MS
    assert times(buffer) == [0, NOW_MS]
    buffer.send(EVENTS, buffer.pending(EVENTS))
    clock.wall_ms = NOW_MS + 50_000_000
    assert times(buffer) == [0, NOW_MS]
    buffer.acknowledge(Ack(boot="b1", stream="events", seq=1))
    assert times(buffer) == [NOW_MS]
    buffer.close()


def test_rows_of_an_earlier_life_keep_their_time(tmp_path):
    clock = Clock(5)
    buffer = Buffer(tmp_path / "telemetry.db", "b1", clock=clock)
    note(buffer, clock)
    buffer.close()
    again = Buffer(tmp_path / "telemetry.db", "b2", clock=clock)
    clock.wall_ms = NOW_MS
    assert times(again) == [5]
    again.close()


@pytest.mark.parametrize(("before_ms", "after_ms"), [(1_000, NOW_MS), (NOW_MS, NOW_MS - 7_200_000)])
def test_a_window_closed_across_a_jump_is_as_long_as_it_was_and_ends_now(before_ms, after_ms):
    clock = Clock(before_ms)
    buffer = Buffer(":memory:", "b1", clock=clock)
    windows = Windows(60.0)
    windows.due(clock.mono_s)
    windows.answered(KEY, 10.0, 1, "r", slow=False)
    clock.pass_s(30)
    clock.wall_ms = after_ms
    clock.pass_s(30)
    assert windows.due(clock.mono_s)
    [closed] = windows.close(clock.now_ms(), clock.mono_s, {})
    assert (closed.started_at_ms, closed.duration_ms) == (clock.wall_ms - 60_000, 60_000)
    buffer.append(closed)
    [sent] = buffer.pending(WINDOWS).windows
    assert sent.started_at_ms == clock.wall_ms - 60_000
    buffer.close()


@given(jumps=st.lists(st.integers(-(10**9), 10**9), max_size=2 * SETTINGS_MAX))
def test_what_is_remembered_is_bounded_and_new_rows_are_never_moved(jumps):
    timeline, offset = Timeline(), 0
    for seq, jump in enumerate(jumps, 1):
        offset += jump
        timeline.dated(EVENTS, seq, offset)
        timeline.sent(EVENTS, seq, offset)
        assert abs(timeline.shift_ms(EVENTS, seq, offset)) < JUMP_MS
    assert len(timeline._spans[EVENTS]) <= SETTINGS_MAX
    assert len(timeline._sent[EVENTS]) <= SETTINGS_MAX


def test_the_shared_fake_clock_has_what_a_buffer_needs():
    clock = FakeClock()
    buffer = Buffer(":memory:", "b1", clock=clock)
    note(buffer, clock)
    assert times(buffer) == [clock.now_ms()]
    buffer.close()
