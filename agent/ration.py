"""The ration: what each purpose may take of the day's budget of the network.

Decides what is kept for whom, when the link is given up for today, how often it may be made anew when little is left,
how long a silent link may be, and what a message is thought to cost before it is sent. Pure: what was used, the kernel
counts (`edgeml.wire`) and `traffic` keeps.

A reserve is kept for the link alone: for its handshakes, its keepalive, what the fleet says, and what the device says of
its state. What is above it goes by importance. Whoever matters less leaves a share of it to those that matter more, and
the less of it the later in the day it is: at its end nothing is kept back but the reserve. Downloads, which take
whatever they get, come last.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from edgeml.telemetry import Stream

from .allowance import DAY_S


class Purpose(enum.Enum):
    """What the network is used for; what matters more comes first."""

    LINK = "link"
    EVENTS = "events"
    WINDOWS = "windows"
    SAMPLES = "samples"
    DOWNLOADS = "downloads"


PURPOSE_OF: Final = MappingProxyType(
    {Stream.EVENTS: Purpose.EVENTS, Stream.WINDOWS: Purpose.WINDOWS, Stream.SAMPLES: Purpose.SAMPLES}
)
RESERVE_FRACTION: Final = 1 / 4
RESERVE_MAX_BYTES: Final = 1 << 20
"""What a link costs in a day, with a keepalive of KEEPALIVE_MIN_S and a connection an hour."""
LEAVES: Final = MappingProxyType(
    {Purpose.EVENTS: 0.0, Purpose.WINDOWS: 1 / 8, Purpose.SAMPLES: 3 / 8, Purpose.DOWNLOADS: 1 / 2}
)
"""At the beginning of a day, of what is above the reserve."""
LAST_FRACTION: Final = 1 / 8
"""When only so much of the reserve is left, the link is given up for today: what is on its way must still fit."""
CONNECTION_BYTES: Final = 12 << 10
"""What it takes to connect over TLS, subscribe, hear what is wanted and say how it stands; docs/telemetry.md has figures."""
RENEWAL_BYTES: Final = 12 << 10
"""What it takes to renew a certificate, by a process that does not count."""
ATTEMPT_MIN_BYTES: Final = 1 << 10
"""What an attempt is taken for at least."""
PING_BYTES: Final = 256
"""What one keepalive takes over TLS, both ways."""
KEEPALIVE_FRACTION: Final = 1 / 16
KEEPALIVE_MIN_S: Final = 30
KEEPALIVE_MAX_S: Final = 1200
BUDGET_MIN_BYTES: Final = 64 << 10
"""With less, a link could hardly be made once a day."""
MESSAGE_BYTES: Final = 768
"""What a message costs besides its own bytes, with the broker's answer and the fleet's."""
_SEGMENT_BYTES: Final = 1400
_HEADERS_BYTES: Final = 130
"""Of a segment, its share of a TLS record, and of the segment that confirms it."""
OVERSHOOT_BYTES: Final = 96 << 10
"""What may come of a download after it was stopped: what is in the kernel's buffers and what is being read."""


@dataclass(frozen=True, slots=True)
class Day:
    """How the day stands."""

    budget_bytes: int
    used_bytes: int
    """With what is on its way."""
    left_s: float
    """Until the next day."""

    @property
    def left_bytes(self) -> int:
        """What may still be used by anyone."""
        return max(self.budget_bytes - self.used_bytes, 0)

    @property
    def left_fraction(self) -> float:
        """Of the day."""
        return min(max(self.left_s / DAY_S, 0.0), 1.0)


def reserve_bytes(budget_bytes: int) -> int:
    """Say what is kept for the link alone."""
    return min(int(budget_bytes * RESERVE_FRACTION), RESERVE_MAX_BYTES)


def last_bytes(budget_bytes: int) -> int:
    """Say with how much left the link is given up for today."""
    return int(reserve_bytes(budget_bytes) * LAST_FRACTION)


def room_bytes(purpose: Purpose, day: Day) -> int:
    """Say what a purpose may take now.

    >>> day = Day(budget_bytes=1_000_000, used_bytes=200_000, left_s=DAY_S / 2)
    >>> [room_bytes(purpose, day) for purpose in Purpose]
    [800000, 550000, 503125, 409375, 264196]
    """
    if purpose is Purpose.LINK:
        return day.left_bytes
    reserve = reserve_bytes(day.budget_bytes)
    kept = reserve + (day.budget_bytes - reserve) * LEAVES[purpose] * day.left_fraction
    over = OVERSHOOT_BYTES if purpose is Purpose.DOWNLOADS else 0
    return max(int(day.left_bytes - kept) - over, 0)


def longest_bytes(purpose: Purpose, budget_bytes: int) -> int:
    """Say how long a message may be: half of what a new day gives, so that no message waits for ever."""
    whole = room_bytes(purpose, Day(budget_bytes, 0, DAY_S))
    return max(2 * whole - message_bytes(whole), 0) // 2


def is_used_up(day: Day) -> bool:
    """Tell whether the link must be given up until tomorrow."""
    return day.left_bytes <= last_bytes(day.budget_bytes)


def dial_wait_s(day: Day, since_s: float, cost_bytes: int = CONNECTION_BYTES) -> float:
    """Say how long to wait with a new connection, besides the usual pauses.

    Above the reserve, not at all. Within it, what is left is spread over the rest of the day, as attempts like the last
    one. What would not pay for a whole connection is none.

    Args:
        day: how it stands.
        since_s: time since the last attempt.
        cost_bytes: what the last attempt cost; a broker that is not there takes little.

    >>> dial_wait_s(Day(1 << 20, 0, DAY_S), 0.0)
    0.0
    """
    spare = day.left_bytes - last_bytes(day.budget_bytes)
    if spare < CONNECTION_BYTES:
        return max(day.left_s, 0.0)
    if day.left_bytes > reserve_bytes(day.budget_bytes):
        return 0.0
    attempts = spare // min(max(cost_bytes, ATTEMPT_MIN_BYTES), CONNECTION_BYTES)
    return max(day.left_s / attempts - since_s, 0.0)


def keepalive_s(budget_bytes: int | None) -> int:
    """Say after how long a silent link shows that it is alive, so that a day of it takes KEEPALIVE_FRACTION at most.

    >>> [keepalive_s(budget) for budget in (None, 10 << 20, 1 << 20, 1 << 16)]
    [30, 34, 338, 1200]
    """
    if budget_bytes is None:
        return KEEPALIVE_MIN_S
    pings = max(budget_bytes * KEEPALIVE_FRACTION / PING_BYTES, 1.0)
    return int(min(max(-(-DAY_S // pings), KEEPALIVE_MIN_S), KEEPALIVE_MAX_S))


def message_bytes(length_bytes: int) -> int:
    """Say what a message with so long a topic and payload will cost, rather too much than too little."""
    return length_bytes + MESSAGE_BYTES + length_bytes // _SEGMENT_BYTES * _HEADERS_BYTES
