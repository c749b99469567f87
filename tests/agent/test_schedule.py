"""When a device may fetch and apply: tables over a day, and what must hold at every hour."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.schedule import (
    METERED_PAUSE_S,
    WAIT_MAX_S,
    DayWindow,
    Hours,
    Metered,
    Policy,
    may_apply,
    may_download,
    parse_window,
)
from edgeml.errors import ConfigError

HOUR_MS = 3_600_000


def at(hour, offset_h=0, trusted=True):
    return Hours(int(20_000 * 24 * HOUR_MS + hour * HOUR_MS), int(offset_h * 3600), trusted)


@pytest.mark.parametrize(
    ("text", "hour", "offset_h", "opens_in_s"),
    [
        ("01:00-05:00", 0.5, 0, 1800),
        ("01:00-05:00", 1.0, 0, None),
        ("01:00-05:00", 4.99, 0, None),
        ("01:00-05:00", 5.0, 0, 20 * 3600),
        ("23:00-05:00", 22.75, 0, 900),
        ("23:00-05:00", 23.5, 0, None),
        ("23:00-05:00", 4.0, 0, None),
        ("23:00-05:00", 5.0, 0, 18 * 3600),
        ("01:00-05:00", 23.5, 2, None),
        ("01:00-05:00", 2.0, -2, 3600),
        ("00:00-00:01", 0.0, 0, None),
    ],
)
def test_windows_of_the_day(text, hour, offset_h, opens_in_s):
    policy = Policy(download_window=parse_window(text), apply_window=parse_window(text))
    for found in (
        may_download(at(hour, offset_h), policy, link_metered=False),
        may_apply(at(hour, offset_h), policy),
    ):
        if opens_in_s is None:
            assert found is None
        else:
            assert found.wait_s == pytest.approx(min(opens_in_s, WAIT_MAX_S))
            assert f"opens at {text[:5]}" in found.reason


def test_a_clock_that_nobody_vouches_for_opens_every_window():
    policy = Policy(download_window=parse_window("01:00-02:00"), apply_window=parse_window("01:00-02:00"))
    assert may_download(at(12, trusted=False), policy, link_metered=False) is None
    assert may_apply(at(12, trusted=False), policy) is None


def test_a_metered_link_is_waited_for_only_if_the_settings_say_so():
    assert may_download(at(1), Policy(metered=Metered.ALWAYS), link_metered=True) is None
    assert may_download(at(1), Policy(metered=Metered.NEVER), link_metered=False) is None
    found = may_download(at(1), Policy(metered=Metered.NEVER), link_metered=True)
    assert (found.wait_s, found.reason) == (METERED_PAUSE_S, "the link is metered")
    assert may_apply(at(1), Policy(metered=Metered.NEVER)) is None


@pytest.mark.parametrize(
    "text",
    [
        "1:00-5:00",
        "01:00",
        "24:00-25:00",
        "01:00-05:60",
        "05:00-05:00",
        "01:00\u201305:00",
        "\u0660\u0661:00-05:00",
    ],
)
def test_what_is_no_window_is_a_mistake_of_the_settings(text):
    with pytest.raises(ConfigError):
        parse_window(text)
    assert parse_window("") is None


@given(
    st.integers(0, 1439),
    st.integers(0, 1439),
    st.integers(0, 2_000_000_000_000),
    st.integers(-12 * 3600, 14 * 3600),
)
def test_after_the_waits_the_window_is_open(begin, end, wall_ms, offset_s):
    policy = Policy(download_window=DayWindow(begin, end if end != begin else (begin + 1) % 1440))
    waits = 0
    while (wait := may_download(Hours(wall_ms, offset_s, True), policy, link_metered=False)) is not None:
        assert 0 < wait.wait_s <= WAIT_MAX_S
        wall_ms += max(round(wait.wait_s * 1000), 1)
        waits += 1
        assert waits <= 24 * 3600 / WAIT_MAX_S + 2
