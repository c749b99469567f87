"""A meter: how much a fetch has taken of the network, and when it must pause or stop.

Decides how a rate is kept (by pausing; the peer then waits too) and how often somebody is told. What is counted, the
kernel or its sources decide; how much may be taken is the agent's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .errors import PostponedError
from .wire import WireMeter

TELL_BYTES: Final = 256 << 10
TELL_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What a fetch may take; None is no limit."""

    allowance_bytes: int | None = None
    bytes_per_s: float | None = None
    wait_s: float = 0.0
    """When the allowance is used up, until there is a new one."""
    tell_bytes: int = TELL_BYTES
    """How much may be taken without telling."""


class Meter:
    """One fetch's count. For one thread."""

    def __init__(
        self, terms: Terms, tell: Callable[[int], None] = lambda _taken: None, wire: WireMeter | None = None
    ) -> None:
        """Begin at nothing.

        Args:
            terms: what may be taken.
            tell: hears of all bytes taken so far, at least every `tell_bytes` or TELL_EVERY_S.
            wire: counts the connections; without it, what the sources say is believed.
        """
        self.taken_bytes = 0
        self.wire = wire
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
        if self.wire is None:
            self.taken_bytes += count
        self._look()
        due = self.taken_bytes - self._told_bytes >= self._terms.tell_bytes
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
        self._look()
        if self.taken_bytes > self._told_bytes:
            self._told_bytes, self._told_s = self.taken_bytes, time.monotonic()
            self._tell(self.taken_bytes)

    def _look(self) -> None:
        if self.wire is not None:
            self.taken_bytes = max(self.taken_bytes, self.wire.look())
