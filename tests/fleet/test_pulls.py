"""Whose pull is answered when: in turns, within the rates, and with bounds on what waits."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.ids import ChannelId, DeviceId
from edgeml.pull import Kind, Request
from fleet import pulls
from fleet.pulls import DEVICES_MAX, PATIENCE_S, REQUESTS_MAX, Pulls, Rates

FREE = Rates(1e12, 1e12)


def request(identity, length=1000, channel="c"):
    return Request(
        channel=ChannelId(channel), id=identity, kind=Kind.BLOB, length=length, name="0" * 64, offset=0
    )


def ask(queue, device, identity, now_s=0.0, **more):
    return queue.ask(DeviceId(device), request(identity, **more), now_s)


def taken(queue, now_s=0.0):
    found = []
    while (pull := queue.take(now_s)) is not None:
        found.append((pull.device, pull.request.id))
    return found


def test_devices_take_turns_however_much_one_of_them_asks_for():
    queue = Pulls(FREE, 0.0)
    for identity in range(4):
        ask(queue, "greedy", identity)
    for device in ("a", "b"):
        ask(queue, device, 1)
    assert taken(queue) == [("greedy", 0), ("a", 1), ("b", 1), ("greedy", 1), ("greedy", 2), ("greedy", 3)]
    assert queue.wait_s(0.0) is None


def test_a_request_that_waits_is_not_queued_twice_and_another_channels_is():
    queue = Pulls(FREE, 0.0)
    for _ in range(3):
        assert ask(queue, "a", 1) == ""
    assert ask(queue, "a", 1, channel="d") == ""
    assert queue.count == 2


def test_what_waits_is_bounded():
    queue = Pulls(FREE, 0.0)
    said = [ask(queue, "greedy", identity) for identity in range(REQUESTS_MAX + 5)]
    assert said == [""] * REQUESTS_MAX + [f"{REQUESTS_MAX} of its requests wait already"] * 5
    assert ask(queue, "greedy", 0) == ""
    said = [ask(queue, f"d{index}", 1) for index in range(DEVICES_MAX)]
    assert said == [""] * (DEVICES_MAX - 1) + [f"{DEVICES_MAX} devices wait already"]


def test_whoever_waited_too_long_is_forgotten_unless_it_asks_again():
    queue = Pulls(Rates(1.0, 1.0), 0.0)
    ask(queue, "first", 1, length=1000)
    assert taken(queue) == [("first", 1)]
    ask(queue, "a", 1, now_s=1.0)
    ask(queue, "b", 1, now_s=1.0)
    ask(queue, "b", 1, now_s=50.0)
    assert taken(queue, 2.0 + PATIENCE_S) == []
    assert queue.count == 1
    assert taken(queue, 2000.0) == []


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 65536), st.floats(0, 2)), max_size=60),
    st.floats(1000, 200_000),
    st.floats(1000, 200_000),
)
def test_no_rate_is_exceeded_by_more_than_a_second_and_a_piece(asked, everyone, each):
    queue, now_s, sent = Pulls(Rates(everyone, each), 0.0), 0.0, Counter()
    for identity, (device, length, pause_s) in enumerate(asked):
        ask(queue, device, identity, now_s, length=length)
        now_s += pause_s
        while (pull := queue.take(now_s)) is not None:
            sent[pull.device] += pull.request.length
        assert sum(sent.values()) <= everyone * (now_s + 1) + 65537
        assert all(count <= each * (now_s + 1) + 65537 for count in sent.values())


@given(st.lists(st.integers(1, 65536), min_size=1, max_size=30), st.floats(5000, 200_000))
def test_after_the_wait_that_it_names_something_is_answered(lengths, rate):
    queue, now_s = Pulls(Rates(rate, rate / 2), 0.0), 0.0
    for identity, length in enumerate(lengths):
        ask(queue, "a", identity, now_s, length=length)
        wait_s = queue.wait_s(now_s)
        if wait_s > 0:
            assert queue.take(now_s) is None
        now_s += wait_s + 1e-6
        assert queue.take(now_s) is not None


def test_what_was_not_needed_is_given_back():
    queue = Pulls(Rates(1000.0, 1000.0), 0.0)
    for identity in range(20):
        ask(queue, "a", identity, length=32768)
        pull = queue.take(0.0)
        assert pull is not None
        queue.settle(pull, 10, 0.0)
    ask(queue, "a", 99, length=32768)
    queue.settle(queue.take(0.0), 32768, 0.0)
    ask(queue, "a", 100)
    assert queue.wait_s(0.0) == pytest.approx((32768 + 200 - 1000) / 1000)


def test_rates_of_devices_that_are_gone_are_forgotten_and_debts_are_not(monkeypatch):
    monkeypatch.setattr(pulls, "DEVICES_MAX", 4)
    queue = Pulls(Rates(1e9, 1000.0), 0.0)
    ask(queue, "debtor", 0, length=60000)
    assert taken(queue) == [("debtor", 0)]
    for index in range(50):
        ask(queue, f"d{index}", 0, now_s=1.0 + index / 10, length=1)
        assert len(taken(queue, 1.0 + index / 10)) == 1
    assert len(queue._buckets) < 20
    ask(queue, "debtor", 1, now_s=6.0)
    assert queue.wait_s(6.0) > 50


def test_a_lost_link_forgets_what_waits():
    queue = Pulls(FREE, 0.0)
    ask(queue, "a", 1)
    queue.clear()
    assert (taken(queue), queue.count) == ([], 0)
