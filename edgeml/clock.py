"""Time as a port: wall time for people and wire, monotonic time for durations.

Decides nothing about trust in the wall clock; `edgeml.trust` holds that policy.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where the shells read time; pure code takes `now` as an argument."""

    def now_ms(self) -> int:
        """Unix milliseconds UTC."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never go back, of no meaning across restarts."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        """Unix milliseconds UTC."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary start."""
        return time.monotonic()
