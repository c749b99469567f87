"""How much of the network is left today, by clocks that may be wrong."""

from hypothesis import given
from hypothesis import strategies as st

from agent.allowance import DAY_MS, DAY_S, Spent, left_bytes, today, wait_s

SPENTS = st.builds(Spent, st.integers(0, 30_000), st.integers(0, 1 << 40))
WALLS = st.integers(0, 30_000 * DAY_MS)
SINCES = st.floats(0, 3 * DAY_S)


def test_a_later_day_begins_anew_and_the_same_day_does_not():
    assert today(Spent(20_000, 5), 20_000 * DAY_MS + 7, 10.0) == Spent(20_000, 5)
    assert today(Spent(20_000, 5), 20_001 * DAY_MS, 10.0) == Spent(20_001, 0)


def test_a_device_that_wakes_in_1970_gets_no_new_allowance_each_time():
    spent = Spent(20_000, 5)
    for _ in range(3):
        spent = today(spent, 1000, 60.0)
        assert spent == Spent(20_000, 5)
        # The clock is set from the network.
        spent = today(spent, 20_000 * DAY_MS + 1, 90.0)
        assert spent == Spent(20_000, 5)


def test_a_clock_that_stands_in_the_past_or_was_once_in_the_future_does_not_block_for_ever():
    assert today(Spent(29_999, 5), 20_000 * DAY_MS, DAY_S) == Spent(20_000, 0)


@given(SPENTS, WALLS, SINCES)
def test_what_was_spent_is_forgotten_only_with_a_later_day_or_after_24_hours(spent, wall_ms, since_s):
    after = today(spent, wall_ms, since_s)
    if after.spent_bytes < spent.spent_bytes:
        assert wall_ms // DAY_MS > spent.day or since_s >= DAY_S
    assert today(after, wall_ms, 0.0) == after


@given(SPENTS, WALLS, st.floats(0, DAY_S))
def test_after_the_wait_it_is_another_day_and_the_wait_is_a_day_at_most(spent, wall_ms, since_s):
    pause_s = wait_s(spent, wall_ms, since_s)
    assert 0 <= pause_s <= DAY_S
    later = today(spent, wall_ms + round(pause_s * 1000), since_s + pause_s + 1e-3)
    assert later.spent_bytes == 0 or spent.spent_bytes == 0


@given(SPENTS, st.none() | st.integers(0, 1 << 40))
def test_what_is_left_is_never_below_nothing(spent, budget):
    left = left_bytes(spent, budget)
    assert left is None if budget is None else left == max(budget - spent.spent_bytes, 0)
