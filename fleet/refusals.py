"""Counts what is not taken in, and says so in the log once in a while.

Decides how often: at most once a minute for each reason and device, because whoever sends nonsense sends a lot of it.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

logger = logging.getLogger(__name__)

LOG_EVERY_S: Final = 60.0
_KEYS_MAX: Final = 10_000


class Refusals:
    """Refused messages by reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._log_after: dict[str, float] = {}

    def add(self, why: str, who: str, detail: str, now_s: float, count: int = 1) -> None:
        """Count one, or several of the same; `now_s` never goes back."""
        self.counts[why] += count
        key = f"{why} {who}"
        if now_s < self._log_after.get(key, now_s):
            return
        if len(self._log_after) >= _KEYS_MAX:
            self._log_after.clear()
        self._log_after[key] = now_s + LOG_EVERY_S
        logger.warning("%s: %s: %s", who, why, detail)
