"""The allowance: how many bytes of the network may still be used today.

Decides what a day is and when the count starts again. Pure: the file it is kept in is `traffic`'s business.

A day is a day of the wall clock in UTC, but that clock may be wrong: many devices have none that survives a power cut.
A new day begins when the wall clock shows a later one, or after 24 hours of this life, whatever it shows. A clock that is
behind begins no new day; so a device that wakes in 1970 each time does not get a new allowance each time.
"""

from __future__ import annotations

from typing import Final

import msgspec

DAY_MS: Final = 86_400_000
DAY_S: Final = 86_400.0


class Spent(msgspec.Struct, frozen=True):
    """What was used, of which day."""

    day: int = 0
    """Days since 1970, UTC."""
    spent_bytes: int = 0
    """Never less than what came: it is written before it is used."""


def today(spent: Spent, wall_ms: int, since_s: float) -> Spent:
    """Return the account of the day that it is now.

    Args:
        spent: the account as it is.
        wall_ms: the wall clock.
        since_s: time that this life has spent in the account's day, by the monotonic clock.

    >>> today(Spent(3, 100), 3 * DAY_MS, 10.0), today(Spent(3, 100), 4 * DAY_MS, 10.0)
    (Spent(day=3, spent_bytes=100), Spent(day=4, spent_bytes=0))
    """
    day = wall_ms // DAY_MS
    if day > spent.day or since_s >= DAY_S:
        return Spent(max(day, 0), 0)
    return spent


def left_bytes(spent: Spent, budget_bytes: int | None) -> int | None:
    """Say what may still be used today; None without a budget."""
    return None if budget_bytes is None else max(budget_bytes - spent.spent_bytes, 0)


def wait_s(spent: Spent, wall_ms: int, since_s: float) -> float:
    """Say how long it is until the next day begins.

    >>> wait_s(Spent(3, 100), 4 * DAY_MS - 5000, 100.0)
    5.0
    """
    by_life = DAY_S - since_s
    by_wall = ((spent.day + 1) * DAY_MS - wall_ms) / 1000
    return max(min(by_life, by_wall), 0.0)
