"""What is sampled: the hardest and some by lot, never more than the budget in any 24 hours, the same for the same seed."""

import random
from bisect import bisect_left
from collections import Counter
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.selection import DAY_S, Budget, Lane, LaneRules, Limits, Select, Verdict, lanes
from edgeml.telemetry import Why

LIMITS = Limits(bytes_per_day=1_000_000, rows_per_hour=1e9, row_bytes_max=65_536, confidence_max=0.8)


def lane(why=Why.UNCERTAIN, per_day=1e9, interval_s=60.0, seed=0, confidence_max=0.8):
    return Lane(LaneRules(why, per_day, interval_s, 1000, confidence_max), random.Random(seed), 0.0)


def offer(one, item, confidence):
    if one.wants(confidence):
        one.put(item)


def test_the_least_sure_of_its_time_is_taken():
    one = lane()
    for index, confidence in enumerate([0.7, 0.4, 0.6, 0.9, None, 0.41]):
        offer(one, index, confidence)
    assert one.candidate(59.0) is None
    assert one.candidate(60.0) == 1
    assert one.settle(10, 60.0) is Verdict.TAKEN
    assert one.candidate(1000.0) is None
    offer(one, 9, 0.79)
    assert one.candidate(119.0) is None
    assert one.candidate(120.0) == 9


@pytest.mark.parametrize("confidence", [0.8, 0.99, None])
def test_sure_answers_and_those_without_confidence_are_no_hard_ones(confidence):
    one = lane()
    offer(one, "x", confidence)
    assert one.candidate(1e6) is None


def test_by_lot_every_request_of_a_slot_is_as_likely():
    taken = Counter()
    one = lane(Why.RANDOM, interval_s=1.0)
    for slot in range(1, 5001):
        for index in range(10):
            offer(one, index, None)
        taken[one.candidate(float(slot))] += 1
        assert one.settle(1, float(slot)) is Verdict.TAKEN
    # Multinomial: four standard deviations of 500.
    assert sorted(taken) == list(range(10))
    assert all(abs(count - 500) < 4 * 21.3 for count in taken.values())


def test_the_same_seed_takes_the_same():
    def taken(seed):
        one = lane(Why.RANDOM, interval_s=1.0, seed=seed)
        found = []
        for slot in range(1, 50):
            for index in range(10):
                offer(one, index, None)
            found.append(one.candidate(float(slot)))
            one.settle(1, float(slot))
        return found

    assert taken(1) == taken(1) != taken(2)


def test_a_row_longer_than_a_row_or_a_burst_may_be_is_never_taken_and_stops_nothing():
    one = lane(per_day=4000.0)
    offer(one, "x", 0.1)
    assert one.settle(501, 60.0) is Verdict.TOO_LONG
    assert one.candidate(1e6) is None
    offer(one, "y", 0.1)
    assert one.settle(500, 60.0) is Verdict.WAIT
    assert one.candidate(120.0) == "y"
    assert one.settle(500, DAY_S) is Verdict.TAKEN


def test_a_device_that_starts_has_nothing_to_spend():
    budget = Budget(8000, 0.0)
    assert not budget.pay(1, 0.0)
    assert budget.pay(1000, DAY_S)
    assert not budget.pay(1, DAY_S)


@given(
    gaps=st.lists(st.floats(0.0, 40_000.0), min_size=1, max_size=80),
    sizes=st.lists(st.integers(1, 12_000), min_size=1, max_size=80),
    restarts=st.sets(st.integers(0, 79)),
)
@settings(max_examples=100)
def test_no_24_hours_cost_more_than_the_budget_whatever_restarts(gaps, sizes, restarts):
    per_day = 80_000
    now_s, paid, budget = 0.0, [], Budget(per_day, 0.0)
    for index, (gap, size) in enumerate(zip(gaps, sizes, strict=False)):
        now_s += gap
        if index in restarts:
            budget = Budget(per_day, now_s)
        # As long as it pays: that is when the most goes.
        while budget.pay(size, now_s):
            paid.append((now_s, size))
    times_s = [at_s for at_s, _ in paid]
    up_to = [0, *accumulate(size for _, size in paid)]
    for first_s in {*times_s}:
        day = bisect_left(times_s, first_s), bisect_left(times_s, first_s + DAY_S)
        assert up_to[day[1]] - up_to[day[0]] <= per_day + 1e-6


@pytest.mark.parametrize("select", Select)
def test_a_busy_time_uses_the_budget_and_keeps_it(select):
    source = random.Random(7)
    made = lanes(select, LIMITS, random.Random(1), 0.0)
    days, taken = Counter(), Counter()
    for step in range(3 * 24 * 60):
        now_s = step * 60.0
        for _ in range(5):
            confidence = source.random()
            for one in made:
                offer(one, confidence, confidence)
        for one in made:
            candidate = one.candidate(now_s)
            if candidate is not None and one.settle(3000, now_s) is Verdict.TAKEN:
                days[int(now_s // DAY_S)] += 3000
                taken[one.why] += 1
    assert max(days.values()) <= LIMITS.bytes_per_day
    assert min(days.values()) >= 0.8 * LIMITS.bytes_per_day
    assert set(taken) == {Why(select.value)} if select is not Select.BOTH else set(Why)
    if select is Select.BOTH:
        assert 2.5 < taken[Why.UNCERTAIN] / taken[Why.RANDOM] < 3.5


def test_the_rate_is_limited_over_all_lanes():
    limits = Limits(1 << 40, 12.0, 65_536, 1.0)
    made = lanes(Select.BOTH, limits, random.Random(1), 0.0)
    taken = 0
    for second in range(1, 10 * 3600 + 1, 5):
        for one in made:
            offer(one, second, 0.5)
            if one.candidate(float(second)) is not None:
                taken += one.settle(10, float(second)) is Verdict.TAKEN
    assert 110 <= taken <= 120
