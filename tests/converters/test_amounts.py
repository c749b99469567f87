"""Amounts that a person writes."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.amounts import byte_count, drop_at_least, fraction, milliseconds
from edgeml.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"), [("5ms", 5.0), ("5 ms", 5.0), ("0.5MS", 0.5), ("800us", 0.8), ("2s", 2000.0)]
)
def test_times(text, value):
    assert milliseconds(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("200KB", 200_000), ("256KiB", 262_144), ("1.5 MB", 1_500_000), ("812", 812), ("7b", 7)],
)
def test_sizes(text, value):
    assert byte_count(text) == value


@pytest.mark.parametrize("text", ["5", "", "ms", "5m", "-5ms", "0ms", "nanms", "infs", "1e999ms", "5ms5"])
def test_a_time_without_a_unit_or_sense_is_refused(text):
    with pytest.raises(ConfigError, match="no amount"):
        milliseconds(text)


@pytest.mark.parametrize("text", ["", "KB", "200 XB", "-1KB", "0", "inf", "1.5"])
def test_a_size_without_sense_is_refused(text):
    with pytest.raises(ConfigError, match="no amount"):
        byte_count(text)


def test_what_was_typed_is_told_and_nothing_is_no_amount():
    with pytest.raises(ConfigError, match="'0' is no amount above 0"):
        byte_count("0")
    with pytest.raises(ConfigError, match="'-5ms' is no amount above 0"):
        milliseconds("-5ms")


@given(st.text(max_size=12))
def test_anything_else_is_told_as_the_users_to_fix(text):
    for read in (milliseconds, byte_count, fraction):
        with contextlib.suppress(ConfigError):
            assert read(text) >= 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1 / 300, "0.34%"),
        (0.97 - 0.95, "2%"),
        (0.005, "0.5%"),
        (0.1234, "13%"),
        (0.98, "98%"),
        (1e-7, "1e-05%"),
    ],
)
def test_a_drop_to_suggest_has_two_digits_and_is_not_below(value, text):
    assert drop_at_least(value) == text


@given(st.floats(1e-7, 0.98))
def test_a_drop_that_is_suggested_is_read_as_enough(value):
    read = fraction(drop_at_least(value))
    assert value * (1 - 1e-9) <= read <= value * 1.1 + 1e-9


@pytest.mark.parametrize("value", [0.995, 1.0, 1.5, float("inf")])
def test_a_drop_that_nobody_may_allow_is_not_suggested(value):
    assert drop_at_least(value) == ""
