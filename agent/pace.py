"""The pace: how fast rows go that have waited for long.

Decides by a bucket of tokens, one for a row, and one more for each KiB that a batch is longer than its rows: a fleet
that was away for a day and comes back sends its controller so many rows a second and device, not all that it has. What
is produced meanwhile is paid for by itself, or a busy device would never catch up. A batch may go while there is
anything left and is owed afterwards, for how long it is shows only then. Pure; `uplink` asks while more than a batch
waits, and never else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

SAVED_MAX: Final = 100.0
"""Tokens that may be saved up: a batch."""
TOKEN_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Pace:
    """Where a device stands with its backlog.

    Args:
        rows_per_s: tokens that come each second.
        tokens: what may be sent now; below zero it is owed.
        at_s: when that was so, by the monotonic clock.
        produced: rows that the device had produced by then, since its buffer was created.
    """

    rows_per_s: float
    tokens: float = SAVED_MAX
    at_s: float = 0.0
    produced: int = 0

    @property
    def ready(self) -> bool:
        """Whether a batch of the backlog may go."""
        return self.tokens > 0

    def resumed(self, now_s: float, produced: int) -> Pace:
        """A link is up. What was produced without one is backlog; what was owed is owed, however often links break."""
        return replace(self.at(now_s, self.produced), produced=produced)

    def at(self, now_s: float, produced: int) -> Pace:
        """Let time go by, and rows be produced.

        >>> Pace(10.0, tokens=-99.0).at(9.0, 0).ready, Pace(10.0, tokens=-99.0).at(9.0, 12).ready
        (False, True)
        """
        earned = self.rows_per_s * max(0.0, now_s - self.at_s) + max(0, produced - self.produced)
        return replace(self, tokens=min(SAVED_MAX, self.tokens + earned), at_s=now_s, produced=produced)

    def spent(self, rows: int, size_bytes: int) -> Pace:
        """A batch of the backlog was sent.

        >>> Pace(10.0).spent(100, 5_000).tokens, Pace(10.0).spent(3, 60 << 10).tokens
        (0.0, 40.0)
        """
        return replace(self, tokens=self.tokens - max(rows, size_bytes / TOKEN_BYTES))
