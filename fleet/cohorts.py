"""Which device belongs to which wave of a rollout.

Decides it by the order of salted hashes of the devices' names: nobody chooses the canaries, a wave has the size that was
asked for, and another rollout (another salt) begins with other devices. What a wave does is decided in `advance`.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable
from typing import Final

from edgeml.ids import DeviceId

CANARIES_MIN: Final = 2
"""A first wave has at least so many devices, or all of a smaller fleet: one alone gives no evidence (see `gate`)."""


def members(devices: Iterable[DeviceId], salt: str, waves: tuple[float, ...]) -> dict[DeviceId, int]:
    """Wave of every device.

    The first `round(fraction * n)` of n devices in the order of their hashes are reached with a wave, and at least
    CANARIES_MIN with the first. A device that joins takes its own place in that order. So no more than one other device
    changes its wave at each boundary, and by one wave mostly: one place back if the newcomer is before the boundary, or
    one forward where the fleet has grown by enough for a wave of one more. What a device was already asked stands.
    Later waves of a small fleet may be empty; they are passed over.

    Args:
        devices: their names.
        salt: the rollout's identifier.
        waves: cumulative fractions, ascending; the last is 1, and whoever is left over belongs to it.

    >>> found = members([DeviceId(f"d{i}") for i in range(53)], "r1", (0.2, 1.0))
    >>> [list(found.values()).count(wave) for wave in (0, 1)]
    [11, 42]
    """
    order = sorted(set(devices), key=lambda one: (_place(one, salt), one))
    ends = [max(CANARIES_MIN, round(fraction * len(order))) for fraction in waves[:-1]]
    return {device: bisect.bisect_right(ends, rank) for rank, device in enumerate(order)}


def _place(device: DeviceId, salt: str) -> bytes:
    return hashlib.sha256(f"{salt}\0{device}".encode()).digest()
