"""Which time a device judges by: expiry, and clocks that lie."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from edgeml.errors import ExpiredError
from edgeml.trust import TrustStore

DAY_MS = 86_400_000
NOW_MS = 1_790_000_000_000
PATH = "digits/1.0.0/int8.edgeml"


# Time


def test_given_time_decides_about_expiry_and_not_the_machines_clock(directory: Path, fleet: Any) -> None:
    """Fails when setting `_trusted_set.reference_time` stops working: the machine's clock is near neither of these."""
    for now_ms, expired in [(NOW_MS + 6 * DAY_MS, False), (NOW_MS + 8 * DAY_MS, True)]:
        store = TrustStore(directory, fleet, now_ms=now_ms)
        assert store._updater._trusted_set.reference_time == dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC)
        if expired:
            with pytest.raises(ExpiredError):
                store.refresh()
        else:
            store.refresh()


def test_reference_time_is_what_tuf_judges_expiry_by(new_fleet, tmp_path: Path) -> None:
    past, future = new_fleet(NOW_MS - 3000 * DAY_MS), new_fleet(NOW_MS + 3000 * DAY_MS)
    for number, (fleet, now_ms) in enumerate([(past, past.now_ms), (future, future.now_ms + 8 * DAY_MS)]):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "root.json").write_bytes(fleet.anchor)
        store = TrustStore(directory, fleet, now_ms=now_ms)
        if fleet is past:
            store.refresh()  # expired for eight years by the machine's clock
        else:
            with pytest.raises(ExpiredError):
                store.refresh()  # fresh for eight years by the machine's clock


def test_frozen_repository_is_refused_once_its_timestamp_expired(
    refreshed, directory: Path, fleet: Any
) -> None:
    refreshed(directory, fleet, NOW_MS)
    with pytest.raises(ExpiredError) as raised:
        refreshed(directory, fleet, NOW_MS + 7 * DAY_MS + 1000)
    assert "clock" in raised.value.hint


def test_clock_in_1970_never_revives_what_had_expired(refreshed, directory: Path, fleet: Any) -> None:
    old = dict(fleet.files)
    fleet.now_ms = NOW_MS + 20 * DAY_MS
    fleet.publish()
    refreshed(directory, fleet, fleet.now_ms)
    fresh = tuple(directory.glob("metadata/*.json"))
    for path in fresh:
        path.unlink()  # a device that lost its cache, not its floor
    fleet.files = old
    store = TrustStore(directory, fleet, now_ms=5000)
    assert store.time.at_ms == fleet.now_ms
    assert not store.time.clock_trusted
    with pytest.raises(ExpiredError):
        store.refresh()


def test_clock_in_1970_on_a_new_device_installs_and_says_that_the_clock_is_wrong(
    refreshed, directory: Path, fleet: Any
) -> None:
    store = refreshed(directory, fleet, 5000)
    assert store.target(PATH)
    assert not store.time.clock_trusted


def test_clock_that_jumps_back_uses_the_floor(refreshed, directory: Path, fleet: Any) -> None:
    assert refreshed(directory, fleet, NOW_MS + 3 * DAY_MS).time.clock_trusted
    store = refreshed(directory, fleet, NOW_MS - 400 * DAY_MS)
    assert store.time.at_ms == NOW_MS + 3 * DAY_MS
    assert not store.time.clock_trusted


def test_clock_years_ahead_refuses_and_does_not_poison_the_floor(
    refreshed, directory: Path, fleet: Any
) -> None:
    refreshed(directory, fleet, NOW_MS)
    with pytest.raises(ExpiredError):
        refreshed(directory, fleet, NOW_MS + 9 * 365 * DAY_MS)
    store = refreshed(directory, fleet, NOW_MS + 1000)
    assert store.time.clock_trusted
    assert store.target(PATH)


@pytest.mark.parametrize("now_ms", [1 << 45, 1 << 62, 10**30])
def test_clock_of_another_age_is_ignored(refreshed, directory: Path, fleet: Any, now_ms: int) -> None:
    refreshed(directory, fleet, NOW_MS)
    store = refreshed(directory, fleet, now_ms)
    assert store.time.at_ms == NOW_MS
    assert not store.time.clock_trusted


@pytest.mark.parametrize("content", ["", "x", "-5", "9" * 30, "9" * 5000, "1.5", "\x00"])
def test_damaged_floor_is_ignored(refreshed, directory: Path, fleet: Any, content: str) -> None:
    (directory / "time-floor").write_text(content)
    assert refreshed(directory, fleet).time == TrustStore(directory, fleet, now_ms=NOW_MS).time
