"""How requests feel the governor: slowed down by a share of the time, or turned away with a time to come back."""

import threading

import pytest

from agent.governor import Measure, Treatment
from agent.turnstile import SHED_RETRY_S, WAIT_MAX_S, ShedError, Turnstile
from edgeml.ids import ModelName

A, B = ModelName("a"), ModelName("b")


class HandClock:
    """Time that only pauses and the test move."""

    def __init__(self):
        self.now_s = 1000.0
        self.slept = []

    def monotonic(self):
        return self.now_s

    def sleep(self, pause_s):
        self.slept.append(pause_s)
        self.now_s += pause_s


@pytest.fixture
def clock(monkeypatch):
    made = HandClock()
    monkeypatch.setattr("agent.turnstile.time", made)
    return made


def ask(turnstile, clock, model, takes_s):
    with turnstile.passing(model):
        clock.now_s += takes_s


def test_a_model_that_is_left_alone_never_waits(clock):
    turnstile = Turnstile()
    turnstile.treat(B, Treatment(Measure.SHED, 0.0))
    for _ in range(5):
        ask(turnstile, clock, A, 0.1)
    assert clock.slept == []
    assert turnstile.turned_away == {}


@pytest.mark.parametrize("duty", [0.5, 0.25, 0.125])
def test_a_model_that_is_slowed_down_works_its_part_of_the_time(clock, duty):
    turnstile = Turnstile()
    turnstile.treat(A, Treatment(Measure.THROTTLE, duty))
    began_s = clock.now_s
    for _ in range(20):
        ask(turnstile, clock, A, 0.1)
    # The pause after the last one is not taken yet.
    assert 20 * 0.1 / (clock.now_s - began_s) == pytest.approx(duty, rel=0.07)


def test_a_request_whose_turn_comes_too_late_is_turned_away_and_holds_nobody_up(clock):
    turnstile = Turnstile()
    turnstile.treat(A, Treatment(Measure.THROTTLE, 0.125))
    ask(turnstile, clock, A, 1.0)
    with pytest.raises(ShedError) as caught:
        ask(turnstile, clock, A, 1.0)
    assert caught.value.retry_after_s == 7
    assert turnstile.turned_away == {A: 1}
    clock.now_s += 7.0 - WAIT_MAX_S
    ask(turnstile, clock, A, 0.1)
    assert clock.slept == [pytest.approx(WAIT_MAX_S)]


def test_a_closed_way_turns_all_away_until_it_is_opened(clock):
    turnstile = Turnstile()
    turnstile.treat(A, Treatment(Measure.SHED, 0.0))
    for _ in range(3):
        with pytest.raises(ShedError, match="a turns requests away") as caught:
            ask(turnstile, clock, A, 0.1)
    assert (caught.value.retry_after_s, turnstile.turned_away) == (SHED_RETRY_S, {A: 3})
    turnstile.treat(A, Treatment())
    ask(turnstile, clock, A, 0.1)


def test_a_model_that_fails_gives_its_turn_back(clock):
    turnstile = Turnstile()
    turnstile.treat(A, Treatment(Measure.THROTTLE, 0.5))
    with pytest.raises(RuntimeError), turnstile.passing(A):
        raise RuntimeError("the model failed")
    ask(turnstile, clock, A, 0.1)


def test_how_long_nobody_asked_is_known(clock):
    turnstile = Turnstile()
    assert turnstile.idle_s(A, 5.0) == float("inf")
    ask(turnstile, clock, A, 0.0)
    assert turnstile.idle_s(A, clock.now_s + 5.0) == 5.0


def test_many_at_once_answer_one_after_the_other():
    turnstile = Turnstile()
    turnstile.treat(A, Treatment(Measure.THROTTLE, 0.5))
    inside, most, answered = [], [], []

    def run():
        with turnstile.passing(A):
            inside.append(1)
            most.append(len(inside))
            inside.pop()
        answered.append(1)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (max(most), len(answered)) == (1, 8)
