"""Who is two devices, and who is not, whatever the network does to the words of a single one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.clones import LATE_S, LIVES_MAX, RETURNS_MIN, RETURNS_WITHIN_S, Lives, hear


def heard(words):
    """What is known after these (session, time)."""
    lives = Lives()
    for session, at_s in words:
        lives = hear(lives, session, at_s)
        assert len(lives.lives) <= LIVES_MAX
        assert len({one.session for one in lives.lives}) == len(lives.lives)
        assert lives.lives[-1].session == session
    return lives


@st.composite
def a_single_device(draw):
    """A device that reboots and reconnects as it likes; each of its words comes once or more often, up to LATE_S late."""
    words, now_s = [], 0
    for life in range(draw(st.integers(1, 20))):
        for _ in range(draw(st.integers(1, 4))):
            late = draw(st.lists(st.integers(0, round(LATE_S)), min_size=1, max_size=3))
            words += [(f"{life:08}", now_s + late_s) for late_s in late]
            now_s += draw(st.one_of(st.integers(0, 10), st.integers(0, 5000)))
    return sorted(words, key=lambda word: word[1])


@settings(max_examples=400)
@given(a_single_device())
def test_a_single_device_is_never_taken_for_two(words):
    assert heard(words).returns_s == ()


def test_a_boot_loop_under_the_worst_network_is_no_clone():
    words = sorted(
        ((f"{life}", life * 2.0 + late_s) for life in range(500) for late_s in (0.0, 30.0, LATE_S)),
        key=lambda word: word[1],
    )
    assert heard(words).returns_s == ()


@settings(max_examples=200)
@given(
    st.lists(st.floats(0.5, 30.0), min_size=400, max_size=400),
    st.integers(2, 4),
    st.lists(st.integers(0, 399)),
)
def test_devices_that_throw_each_other_off_are_noticed_within_minutes(pauses_s, devices, lost):
    """Their words may get lost now and then; what counts is that both go on coming back."""
    lives, now_s = Lives(), 0.0
    for number, pause_s in enumerate(pauses_s):
        now_s += pause_s
        if number not in set(lost[:5]):
            lives = hear(lives, f"{number % devices}", now_s)
        if lives.are_of_two:
            break
    assert lives.are_of_two
    assert now_s <= RETURNS_MIN * 2 * (LATE_S + 30.0 * devices) + 5 * 30.0


def test_two_that_reboot_meanwhile_are_noticed_as_long_as_lives_return():
    words, now_s = [], 0.0
    for number in range(120):
        now_s += 5.0
        words.append((f"{'ab'[number % 2]}{number // 60}", now_s))
    assert heard(words).are_of_two


def test_two_that_come_back_slowly_are_noticed_too():
    assert heard([("ab"[number % 2], number * 600.0) for number in range(5)]).are_of_two


def test_returns_that_are_more_than_a_day_apart_do_not_add_up():
    words = [("a", 0.0), ("b", 100.0), ("a", 200.0), ("b", 200.0 + RETURNS_WITHIN_S)]
    assert heard(words).are_of_two
    assert not heard([*words[:3], ("b", words[3][1] + 1.0)]).are_of_two


@pytest.mark.parametrize("session", ["a", "never heard"])
def test_a_reconnecting_device_and_a_new_life_are_as_nothing(session):
    lives = heard([("a", 0.0), *((session, 100.0 * number) for number in range(1, 50))])
    assert lives.returns_s == ()
