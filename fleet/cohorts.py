"""Which device belongs to which wave of a rollout.

Decides it by a salted hash of the device's name: nobody chooses the canaries, the fleet may grow, and another rollout
(another salt) begins with other devices. What a wave does is decided in `advance`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from edgeml.ids import DeviceId

CANARIES_MIN: Final = 2
"""A first wave has at least so many devices, or all of a smaller fleet: one alone gives no evidence (see `gate`)."""
_HASH_BYTES: Final = 8


def wave_of(device: DeviceId, salt: str, waves: tuple[float, ...]) -> int:
    """Wave of a device by its own hash alone, whoever else is in the fleet.

    Args:
        device: its name.
        salt: the rollout's identifier.
        waves: cumulative fractions, ascending; the last is 1.

    >>> [wave_of(DeviceId(f"d{i}"), "r1", (0.25, 1.0)) for i in range(8)]
    [1, 1, 1, 0, 0, 1, 1, 1]
    """
    place = _place(device, salt)
    # A last fraction below 1 would leave devices without any wave: they belong to the last one.
    return next((wave for wave, fraction in enumerate(waves) if place < fraction), len(waves) - 1)


def members(devices: Iterable[DeviceId], salt: str, waves: tuple[float, ...]) -> dict[DeviceId, int]:
    """Wave of every device, with a first wave that is never empty.

    Each device is in the wave of its hash, except that the CANARIES_MIN devices with the lowest hashes are in the first
    wave in any case. So a device that joins never moves another one to an earlier wave. It may push one of those out of
    the first wave, back to the wave of its hash; what that device was already asked stands. Other waves of a small
    fleet may be empty; they are passed over.
    """
    places = {device: _place(device, salt) for device in devices}
    result = {device: wave_of(device, salt, waves) for device in places}
    for device in sorted(places, key=lambda one: (places[one], one))[:CANARIES_MIN]:
        result[device] = 0
    return result


def _place(device: DeviceId, salt: str) -> float:
    """Place in [0, 1), uniform over devices."""
    digest = hashlib.sha256(f"{salt}\0{device}".encode()).digest()
    return (int.from_bytes(digest[:_HASH_BYTES], "big") >> 11) * 2.0**-53
