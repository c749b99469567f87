"""Amounts that a person writes."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.amounts import byte_count, fraction, milliseconds
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
