"""A meter: how much a fetch has taken of the network, and when it must pause or stop.

Decides how a rate is kept (by pausing; the peer then waits too) and how often somebody is told. What is counted, its
sources decide; how much may be taken is the agent's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .errors import PostponedError

TELL_BYTES: Final = 256 << 10
TELL_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What a fetch may take; None is no limit."""

    allowance_bytes: int | None = None
    bytes_per_s: float | None = None
    wait_s: float = 0.0
    """When the allowance is used up, until there is a new one."""


class Meter:
    """One fetch's count. For one thread."""

    def __init__(self, terms: Terms, tell: Callable[[int], None] = lambda _taken: None) -> None:
        """Begin at nothing; `tell` hears of all bytes taken so far, at least every TELL_BYTES or TELL_EVERY_S."""
        self.taken_bytes = 0
        self._terms = terms
        self._tell = tell
        self._told_bytes = 0
        self._told_s = self._began_s = time.monotonic()

    @property
    def left_bytes(self) -> int | None:
        """What may still be taken; None without a limit."""
        allowance = self._terms.allowance_bytes
        return None if allowance is None else max(0, allowance - self.taken_bytes)

    def count(self, count: int) -> None:
        """Count bytes; the next ones that are taken make up for them."""
        self.taken_bytes += count
        due = self.taken_bytes - self._told_bytes >= TELL_BYTES
        if due or time.monotonic() - self._told_s >= TELL_EVERY_S:
            self.settle()

    def take(self, count: int) -> None:
        """Count bytes, and pause for as long as they came too early."""
        self.count(count)
        if self._terms.bytes_per_s is not None:
            # From the beginning, so that what a slow network left over may be made up for later.
            ahead_s = self.taken_bytes / self._terms.bytes_per_s - (time.monotonic() - self._began_s)
            if ahead_s > 0:
                time.sleep(ahead_s)

    def check(self) -> None:
        """Stop a fetch whose allowance is used up.

        Raises:
            PostponedError: It is.
        """
        if self.left_bytes == 0:
            raise PostponedError(
                f"the network's budget of today is used up after {self.taken_bytes} bytes",
                wait_s=self._terms.wait_s,
                hint="budget.network_bytes_per_day; it goes on tomorrow",
            )

    def settle(self) -> None:
        """Tell what was taken and not told yet."""
        if self.taken_bytes > self._told_bytes:
            self._told_bytes, self._told_s = self.taken_bytes, time.monotonic()
            self._tell(self.taken_bytes)
