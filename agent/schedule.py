"""The schedule: when a device may fetch and when it may change what serves.

Decides from the clock, the link and the settings how long to wait; waiting is no failed attempt. Pure: whoever asks
brings the time and asks again after the wait, for clocks are set and links change. What is spent over a metered link
is `allowance`'s business.

A clock that nobody vouches for opens every window: an update at a wrong hour is better than none for ever.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from edgeml.errors import ConfigError

METERED_PAUSE_S: Final = 900.0
"""After this the link is looked at again."""
WAIT_MAX_S: Final = 900.0
"""A longer wait is taken in parts: clocks jump."""
MINUTES_A_DAY: Final = 24 * 60
_MINUTE_MS: Final = 60_000
_DAY_MS: Final = MINUTES_A_DAY * _MINUTE_MS
_WINDOW: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", re.ASCII)


class Metered(enum.Enum):
    """Whether bundles are fetched over a link that costs by the byte."""

    NEVER = "never"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class DayWindow:
    """A part of every day in minutes after local midnight, the end not included; it may reach over midnight."""

    begin_minute: int
    end_minute: int

    def wait_minutes(self, minute: float) -> float:
        """Say how long it is until the window is open; 0 if it is.

        >>> night = DayWindow(23 * 60, 5 * 60)
        >>> night.wait_minutes(0), night.wait_minutes(12 * 60)
        (0.0, 660)
        """
        length = (self.end_minute - self.begin_minute) % MINUTES_A_DAY
        since = (minute - self.begin_minute) % MINUTES_A_DAY
        return 0.0 if since < length else MINUTES_A_DAY - since


@dataclass(frozen=True, slots=True)
class Hours:
    """Now, on the clock on the wall of the place where the device is."""

    wall_ms: int
    utc_offset_s: int
    trusted: bool
    """Whether anything vouches for the clock."""

    @property
    def minute(self) -> float:
        """Minutes after local midnight."""
        return (self.wall_ms + self.utc_offset_s * 1000) % _DAY_MS / _MINUTE_MS


@dataclass(frozen=True, slots=True)
class Policy:
    """What the settings say; None is no window."""

    download_window: DayWindow | None = None
    apply_window: DayWindow | None = None
    metered: Metered = Metered.ALWAYS


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet."""

    wait_s: float
    """After this ask again; it may be sooner than what is waited for."""
    reason: str


def parse_window(text: str) -> DayWindow | None:
    """Read `HH:MM-HH:MM`; empty is None, no window.

    Raises:
        ConfigError: It is something else, or a window that is never open.

    >>> parse_window("01:00-05:00")
    DayWindow(begin_minute=60, end_minute=300)
    """
    if not text:
        return None
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise ConfigError(f"{text!r} is no part of a day", hint='write it as "01:00-05:00", local time')
    hour, minute, end_hour, end_minute = map(int, found.groups())
    window = DayWindow(hour * 60 + minute, end_hour * 60 + end_minute)
    if window.begin_minute == window.end_minute:
        raise ConfigError(f"{text!r} is never open", hint="leave it out to allow every hour")
    return window


def may_download(now: Hours, policy: Policy, link_metered: bool) -> Wait | None:
    """Say how long a fetch over the network has to wait; None if it may begin."""
    wait = _until(policy.download_window, now, "the download window")
    if wait is not None:
        return wait
    if link_metered and policy.metered is Metered.NEVER:
        return Wait(METERED_PAUSE_S, "the link is metered")
    return None


def may_apply(now: Hours, policy: Policy) -> Wait | None:
    """Say how long a staged release has to wait before it is tried; None if it may be."""
    return _until(policy.apply_window, now, "the apply window")


def _until(window: DayWindow | None, now: Hours, name: str) -> Wait | None:
    if window is None or not now.trusted:
        return None
    wait_s = window.wait_minutes(now.minute) * 60
    if not wait_s:
        return None
    begins = f"{window.begin_minute // 60:02}:{window.begin_minute % 60:02}"
    return Wait(min(wait_s, WAIT_MAX_S), f"{name} opens at {begins}")
