"""Who is in which wave: as many as asked for, chosen by nobody, and hardly moved by others who join."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from edgeml.ids import DeviceId
from fleet.cohorts import CANARIES_MIN, members

WAVES = (0.05, 0.25, 1.0)
names = st.lists(st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True).map(DeviceId), unique=True, max_size=40)
waves = st.lists(st.floats(0.01, 0.99), max_size=4, unique=True).map(lambda some: (*sorted(some), 1.0))


def first_wave(fleet: list[DeviceId], salt: str) -> set[DeviceId]:
    return {device for device, wave in members(fleet, salt, WAVES).items() if wave == 0}


@given(names, st.text(max_size=5), waves)
def test_waves_have_the_sizes_that_were_asked_for(
    devices: list[DeviceId], salt: str, fractions: tuple[float, ...]
) -> None:
    found = members(devices, salt, fractions)
    assert set(found) == set(devices)
    for wave, fraction in enumerate(fractions):
        reached = sum(one <= wave for one in found.values())
        assert reached == min(len(devices), max(CANARIES_MIN, round(fraction * len(devices))))


def test_other_salt_begins_with_other_devices() -> None:
    fleet = [DeviceId(f"d{i}") for i in range(1000)]
    assert len(first_wave(fleet, "a")) == 50
    assert len(first_wave(fleet, "a") & first_wave(fleet, "b")) < 15


def test_names_that_are_alike_are_not_chosen_together() -> None:
    """Devices of one site are named alike; a canary wave of one site alone would be a poor sample."""
    fleet = [DeviceId(f"site{site}-cam{cam}") for site in range(20) for cam in range(50)]
    sites = [device.partition("-")[0] for device in first_wave(fleet, "r")]
    assert len(set(sites)) > 12


def test_device_and_salt_are_not_confused() -> None:
    """`a` + `bc` is another pair than `ab` + `c`."""
    fleet = [DeviceId(f"{prefix}{i}") for prefix in ("", "x") for i in range(200)]
    plain = {device for device in first_wave(fleet, "sx") if not device.startswith("x")}
    prefixed = {device.removeprefix("x") for device in first_wave(fleet, "s") if device.startswith("x")}
    assert plain != prefixed


@given(names.filter(bool), st.text(max_size=5), waves)
def test_device_that_joins_moves_at_most_one_other_across_each_boundary(
    devices: list[DeviceId], salt: str, fractions: tuple[float, ...]
) -> None:
    joined = members(devices, salt, fractions)
    before = members(devices[1:], salt, fractions)
    for wave in range(len(fractions) - 1):
        assert sum((joined[device] <= wave) != (old <= wave) for device, old in before.items()) <= 1


@given(names, st.text(max_size=5), waves)
def test_order_of_waves_follows_one_order_of_devices(
    devices: list[DeviceId], salt: str, fractions: tuple[float, ...]
) -> None:
    """Whoever is in an earlier wave of one plan is in no later wave of a coarser one than the others."""
    found, coarse = members(devices, salt, fractions), members(devices, salt, (0.5, 1.0))
    for one, other in itertools.permutations(devices[:8], 2):
        assert not (found[one] < found[other] and coarse[one] > coarse[other])


@given(names, st.text(max_size=5), waves, st.randoms())
def test_order_does_not_matter(
    devices: list[DeviceId], salt: str, fractions: tuple[float, ...], random
) -> None:
    shuffled = list(devices)
    random.shuffle(shuffled)
    assert members(shuffled, salt, fractions) == members(devices, salt, fractions)


def test_whoever_is_left_over_is_in_the_last_wave() -> None:
    fleet = [DeviceId(f"d{i}") for i in range(200)]
    assert set(members(fleet, "r", (0.5, 0.9)).values()) == {0, 1}
    assert set(members(fleet, "r", (1.0,)).values()) == {0}
