"""Row 29: a broker that comes back to a whole fleet. What decides when a device asks again is the real function."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.mqtt import RECONNECT_MAX_S, RECONNECT_MIN_S, reconnect_delay_s

DEVICES = 500


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_a_pause_is_bounded_however_often_it_failed(failures, drawn):
    assert RECONNECT_MIN_S <= reconnect_delay_s(failures, drawn) <= RECONNECT_MAX_S


def test_pauses_grow():
    means = [sum(reconnect_delay_s(failures, one / 100) for one in range(101)) / 101 for failures in range(6)]
    assert means == sorted(means)
    assert means[5] > 5 * means[0]


@pytest.mark.parametrize("away_s", [0, 30, 600])
def test_a_dropped_fleet_does_not_come_back_at_once(away_s):
    """Every device is dropped in the same instant; the broker is there again after a while."""
    back = []
    for number in range(DEVICES):
        drawn = random.Random(number)
        now, failures = 0.0, 0
        while True:
            now += reconnect_delay_s(failures, drawn.random())
            if now >= away_s:
                break
            failures += 1
        back.append(now)
    busiest = max(sum(second <= one < second + 1 for one in back) for second in range(int(max(back)) + 1))
    assert busiest < DEVICES / (3 if away_s == 0 else 8), "bands, not a spread"
    assert max(back) <= away_s + RECONNECT_MAX_S
