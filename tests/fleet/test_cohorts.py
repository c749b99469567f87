"""Who is in which wave, and that nobody is moved forward by others joining."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.ids import DeviceId
from fleet.cohorts import CANARIES_MIN, members, wave_of

WAVES = (0.05, 0.25, 1.0)
names = st.lists(st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True).map(DeviceId), unique=True, max_size=40)
waves = st.lists(st.floats(0.01, 0.99), max_size=4, unique=True).map(lambda some: (*sorted(some), 1.0))


def test_large_fleet_is_shared_out_as_asked() -> None:
    found = np.bincount([wave_of(DeviceId(f"d{i}"), "r", WAVES) for i in range(20_000)], minlength=3) / 20_000
    np.testing.assert_allclose(found, [0.05, 0.2, 0.75], atol=0.01)


def test_other_salt_begins_with_other_devices() -> None:
    fleet = [DeviceId(f"d{i}") for i in range(1000)]
    first = {salt: {one for one in fleet if wave_of(one, salt, WAVES) == 0} for salt in ("a", "b")}
    assert len(first["a"] & first["b"]) < 15


def test_device_and_salt_are_not_confused() -> None:
    """`a` + `bc` is another pair than `ab` + `c`."""
    pairs = [(DeviceId("bc"), "a"), (DeviceId("c"), "ab"), (DeviceId("abc"), "")]
    fine = tuple(i / 1000 for i in range(1, 1001))
    assert len({wave_of(device, salt, fine) for device, salt in pairs}) == 3


@given(names, st.text(max_size=5), waves)
def test_first_wave_is_never_empty(devices: list[DeviceId], salt: str, fractions: tuple[float, ...]) -> None:
    found = members(devices, salt, fractions)
    assert set(found) == set(devices)
    assert sum(wave == 0 for wave in found.values()) >= min(CANARIES_MIN, len(devices))
    assert all(0 <= wave < len(fractions) for wave in found.values())


@given(names, st.text(max_size=5), waves)
def test_everyone_is_in_the_wave_of_its_hash_or_is_a_canary(
    devices: list[DeviceId], salt: str, fractions: tuple[float, ...]
) -> None:
    found = members(devices, salt, fractions)
    moved = [device for device in devices if found[device] != wave_of(device, salt, fractions)]
    assert len(moved) <= CANARIES_MIN
    assert all(found[device] == 0 for device in moved)


@given(names.filter(bool), st.text(max_size=5), waves)
def test_device_that_joins_never_moves_another_one_to_an_earlier_wave(
    devices: list[DeviceId], salt: str, fractions: tuple[float, ...]
) -> None:
    joined = members(devices, salt, fractions)
    before = members(devices[1:], salt, fractions)
    assert all(joined[device] >= wave for device, wave in before.items())
    assert sum(joined[device] > wave for device, wave in before.items()) <= 1


@given(names, st.text(max_size=5), waves, st.randoms())
def test_order_does_not_matter(
    devices: list[DeviceId], salt: str, fractions: tuple[float, ...], random
) -> None:
    shuffled = list(devices)
    random.shuffle(shuffled)
    assert members(shuffled, salt, fractions) == members(devices, salt, fractions)


@pytest.mark.parametrize("fractions", [(1.0,), (0.5, 0.9)])
def test_whoever_is_left_over_is_in_the_last_wave(fractions: tuple[float, ...]) -> None:
    found = {wave_of(DeviceId(f"d{i}"), "r", fractions) for i in range(200)}
    assert found == set(range(len(fractions)))
