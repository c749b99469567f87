"""What each purpose may take of a day: by importance, never more than there is, and the link always has its part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.allowance import DAY_S
from agent.ration import (
    BUDGET_MIN_BYTES,
    CONNECTION_BYTES,
    KEEPALIVE_FRACTION,
    KEEPALIVE_MAX_S,
    PING_BYTES,
    PURPOSE_OF,
    Day,
    Purpose,
    dial_wait_s,
    is_used_up,
    keepalive_s,
    last_bytes,
    longest_bytes,
    message_bytes,
    reserve_bytes,
    room_bytes,
)
from edgeml.telemetry import PRIORITIES

MIB = 1 << 20
budgets = st.integers(BUDGET_MIN_BYTES, 1 << 40)
days = st.builds(
    lambda budget, used, left: Day(budget, int(budget * used), left),
    budgets,
    st.floats(0.0, 2.0),
    st.floats(0.0, DAY_S),
)


@given(days)
def test_what_matters_more_may_take_more_and_nobody_takes_what_is_not_there(day):
    rooms = [room_bytes(purpose, day) for purpose in Purpose]
    assert rooms == sorted(rooms, reverse=True)
    assert rooms[0] == day.left_bytes
    assert rooms[-1] >= 0


@given(days)
def test_only_the_link_may_take_the_reserve(day):
    for purpose in Purpose:
        if purpose is not Purpose.LINK and (room := room_bytes(purpose, day)):
            assert day.left_bytes - room >= reserve_bytes(day.budget_bytes)


@given(days, st.floats(0.0, DAY_S))
def test_later_in_the_day_nobody_may_take_less(day, later):
    after = Day(day.budget_bytes, day.used_bytes, min(later, day.left_s))
    for purpose in Purpose:
        assert room_bytes(purpose, after) >= room_bytes(purpose, day)


@given(budgets)
def test_the_longest_message_can_be_paid_by_half_of_a_new_day(budget):
    for stream in PRIORITIES:
        purpose = PURPOSE_OF[stream]
        longest = longest_bytes(purpose, budget)
        assert longest > 0
        assert message_bytes(longest) <= room_bytes(purpose, Day(budget, 0, DAY_S)) // 2 + message_bytes(0)


@given(budgets)
def test_a_silent_link_fits_into_a_part_of_the_reserve(budget):
    pings = DAY_S / keepalive_s(budget)
    if keepalive_s(budget) < KEEPALIVE_MAX_S:
        assert pings * PING_BYTES <= budget * KEEPALIVE_FRACTION
    assert pings * PING_BYTES + last_bytes(budget) < reserve_bytes(budget) + CONNECTION_BYTES
    assert not is_used_up(Day(budget, int(pings * PING_BYTES) + CONNECTION_BYTES, 0.0))


@given(days, st.lists(st.floats(0.0, 7200.0), max_size=300))
def test_connections_within_the_reserve_never_use_up_more_than_there_is(day, waits):
    """Whatever a link does that breaks at once, again and again, its day ends within the budget."""
    used, left, since = day.used_bytes, day.left_s, 0.0
    start = used
    for wait in waits:
        left, since = left - wait, since + wait
        if left <= 0:
            break
        now = Day(day.budget_bytes, used, left)
        if dial_wait_s(now, since) <= 0.0:
            used, since = used + CONNECTION_BYTES, 0.0
    assert used <= max(day.budget_bytes - last_bytes(day.budget_bytes), start)


@given(days, st.floats(0.0, DAY_S), st.integers(0, 1 << 30))
def test_cheaper_attempts_come_sooner_and_never_at_the_price_of_the_day(day, since_s, cost):
    wait_s = dial_wait_s(day, since_s, cost)
    assert 0.0 <= wait_s <= dial_wait_s(day, since_s)
    if day.left_bytes - last_bytes(day.budget_bytes) < CONNECTION_BYTES:
        assert wait_s == day.left_s


def test_when_nothing_is_left_there_is_no_new_link_before_tomorrow():
    assert dial_wait_s(Day(MIB, MIB, 5000.0), 1e9) == 5000.0
    assert is_used_up(Day(MIB, MIB, 5000.0))


@pytest.mark.parametrize(
    ("used", "wait_s"), [(0, 0.0), (3 * MIB // 4 - 1, 0.0), (3 * MIB // 4, DAY_S / 2 / 18)]
)
def test_within_the_reserve_connections_are_spread_over_the_rest_of_the_day(used, wait_s):
    assert dial_wait_s(Day(MIB, used, DAY_S / 2), 0.0) == pytest.approx(wait_s)
    assert dial_wait_s(Day(MIB, used, DAY_S / 2), wait_s + 1) == 0.0
