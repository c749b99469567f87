"""How much a device may say: never more than its quota, never less than it is due, whatever the others do."""

import itertools
import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.testing import FakeClock
from fleet.config import QuotaSettings
from fleet.doorkeeper import Doorkeeper, TurnedAway
from fleet.quota import Kind, run_off, weigh

QUOTA = QuotaSettings(
    batches_per_s=2.0, batches_burst=6, batch_bytes_per_s=100.0, batch_bytes_burst=1000,
    messages_per_s=1.0, messages_burst=4, pulls_per_s=3.0, pulls_burst=7,
)  # fmt: skip
STATE, REPORTED = "em/v1/main/d/{}/state", "em/v1/main/d/{}/reported/m"
WINDOWS = "em/v1/main/d/{}/tele/windows"
PULL = "em/v1/main/d/{}/pull"

sendings = st.lists(
    st.tuples(st.sampled_from(list(Kind)), st.integers(0, 400), st.floats(-0.5, 3.0)), max_size=60
)


@given(sendings)
def test_no_span_of_time_lets_in_more_than_the_quota(sent):
    meter, now_s, taken_at = None, 100.0, []
    for kind, length, pause_s in sent:
        now_s += pause_s
        meter, taken = weigh(meter, kind, length, QUOTA, now_s)
        if taken:
            taken_at.append((now_s, kind, length))
    # A clock that goes back gives nothing twice: time counts from the furthest it has been.
    furthest = list(itertools.accumulate((at for at, _, _ in taken_at), max))
    for first in range(len(taken_at)):
        for last in range(first, len(taken_at)):
            span_s = furthest[last] - furthest[first]
            within = taken_at[first : last + 1]
            batches = [length for _, kind, length in within if kind is Kind.TELEMETRY]
            assert len(batches) <= QUOTA.batches_burst + QUOTA.batches_per_s * span_s + 1e-3
            assert sum(batches) <= QUOTA.batch_bytes_burst + QUOTA.batch_bytes_per_s * span_s + 1e-3
            kinds = Counter(kind for _, kind, _ in within)
            assert kinds[Kind.TALK] <= QUOTA.messages_burst + QUOTA.messages_per_s * span_s + 1e-3
            assert kinds[Kind.PULL] <= QUOTA.pulls_burst + QUOTA.pulls_per_s * span_s + 1e-3


@given(st.lists(st.floats(0.5, 10.0), max_size=50))
def test_who_keeps_to_the_rates_is_never_turned_away_and_no_flood_of_the_other_kind_changes_that(pauses):
    meter, now_s = None, 0.0
    for pause_s in pauses:
        now_s += pause_s
        for _ in range(20):
            meter, _taken = weigh(meter, Kind.TALK, 10, QUOTA, now_s)
            meter, _taken = weigh(meter, Kind.PULL, 10, QUOTA, now_s)
        meter, taken = weigh(meter, Kind.TELEMETRY, 50, QUOTA, now_s)
        assert taken


@given(sendings)
def test_who_was_turned_away_is_let_in_after_the_time_that_the_quota_says(sent):
    """Refused messages use nothing up: hammering does not lock anybody out."""
    meter, now_s = None, 0.0
    for kind, length, pause_s in sent:
        now_s += max(0.0, pause_s)
        meter, _taken = weigh(meter, kind, length, QUOTA, now_s)
    for _ in range(100):
        meter, _taken = weigh(meter, Kind.TALK, 1, QUOTA, now_s)
        meter, _taken = weigh(meter, Kind.TELEMETRY, 1, QUOTA, now_s)
    _, taken = weigh(meter, Kind.TALK, 1, QUOTA, now_s + 1.0)
    assert taken
    _, taken = weigh(meter, Kind.TELEMETRY, 100, QUOTA, now_s + 1.0)
    assert taken
    rest_s = max(4 / 1.0, 6 / 2.0, 1000 / 100.0, 7 / 3.0)
    assert run_off(meter, QUOTA, now_s + rest_s).at_rest


@given(st.lists(st.sampled_from(["cam-1", "cam-2", "noisy", "noisy", "noisy"]), max_size=80))
def test_devices_do_not_use_up_each_others_quota(order):
    alone, together = Doorkeeper(QUOTA, FakeClock()), Doorkeeper(QUOTA, FakeClock())
    mixed = [(name, together.admits(WINDOWS.format(name), 10)) for name in order]
    for name in set(order):
        said = [alone.admits(WINDOWS.format(name), 10) for one in order if one == name]
        assert said == [taken for one, taken in mixed if one == name]


def test_what_is_turned_away_is_counted_by_device_and_handed_over_once():
    doorkeeper = Doorkeeper(QUOTA, FakeClock())
    answers = [doorkeeper.admits(WINDOWS.format("noisy"), 100) for _ in range(10)]
    assert answers == [True] * 6 + [False] * 4
    assert doorkeeper.admits(WINDOWS.format("cam-1"), 100)
    assert doorkeeper.take() == {"noisy": TurnedAway(4, 400)}
    assert doorkeeper.take() == {}


@pytest.mark.parametrize("topic", [STATE, REPORTED])
def test_a_backlog_of_rows_does_not_keep_a_device_from_saying_how_a_deployment_ended(topic):
    doorkeeper = Doorkeeper(QUOTA, FakeClock())
    while doorkeeper.admits(WINDOWS.format("cam-1"), 10):
        pass
    assert doorkeeper.admits(topic.format("cam-1"), 10)


def test_questions_for_pieces_have_a_quota_of_their_own():
    doorkeeper = Doorkeeper(QUOTA, FakeClock())
    assert [doorkeeper.admits(PULL.format("cam-1"), 10) for _ in range(20)].count(True) == QUOTA.pulls_burst
    assert doorkeeper.admits(WINDOWS.format("cam-1"), 10)
    assert doorkeeper.admits(STATE.format("cam-1"), 10)


@pytest.mark.parametrize(
    "topic",
    ["em/v1/main/d/noisy/tele/no-such-stream", "em/v1/main/d/noisy/reported/NO", "em/v1/main/d/noisy/x"],
)
def test_topics_that_make_no_sense_are_no_way_around_it(topic):
    doorkeeper = Doorkeeper(QUOTA, FakeClock())
    assert [doorkeeper.admits(topic, 10) for _ in range(8)].count(True) == QUOTA.messages_burst
    assert list(doorkeeper.take()) == ["noisy"]


def test_who_is_at_rest_is_forgotten():
    clock = FakeClock()
    doorkeeper = Doorkeeper(QUOTA, clock)
    for index in range(1000):
        doorkeeper.admits(WINDOWS.format(f"cam-{index}"), 10)
    doorkeeper.take()
    assert doorkeeper.watched == 1000
    clock.advance(60)
    doorkeeper.admits(WINDOWS.format("cam-7"), 10)
    doorkeeper.take()
    assert doorkeeper.watched == 1


def test_the_door_may_be_asked_while_the_counts_are_taken():
    doorkeeper = Doorkeeper(QUOTA, FakeClock())
    answers = []
    asking = threading.Thread(
        target=lambda: answers.extend(doorkeeper.admits(WINDOWS.format("noisy"), 1) for _ in range(5000))
    )
    asking.start()
    counted = 0
    while asking.is_alive():
        counted += doorkeeper.take().get("noisy", TurnedAway()).messages
    asking.join()
    counted += doorkeeper.take().get("noisy", TurnedAway()).messages
    assert (answers.count(True), counted) == (6, 4994)
