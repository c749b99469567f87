"""The timetable: asks the schedule with this machine's clocks and link.

Decides what vouches for the wall clock and how a metered link is recognized. When something may be done, `schedule`
says.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgeml.clock import Clock
from edgeml.errors import PostponedError

from .config import UpdateConfig
from .schedule import Hours, Wait, may_apply, may_download

WRITTEN_MS: Final = 1_767_225_600_000
"""2026 began: a clock that is behind this program has not been set since its battery died."""
HOT_PAUSE_S: Final = 60.0
"""After this a device that was too busy with itself is asked again."""


class Timetable:
    """When this device fetches and applies. Thread-safe."""

    def __init__(self, config: UpdateConfig, clock: Clock) -> None:
        self._policy = config.policy
        self._metered_file = Path(config.metered_file) if config.metered_file else None
        self._clock = clock
        self.clock_trusted = True
        """Whether signed metadata, when they were last checked, spoke for the wall clock."""
        self.may_try: Callable[[], bool] = lambda: True
        """Whether the device has strength left for a new release."""

    def check_download(self) -> None:
        """Say that a fetch over the network may begin.

        Raises:
            PostponedError: Not yet.
        """
        metered = self._metered_file is not None and self._metered_file.exists()
        _postpone(may_download(self._hours(), self._policy, link_metered=metered))

    def check_apply(self) -> None:
        """Say that a staged release may be tried.

        Raises:
            PostponedError: Not yet.
        """
        if not self.may_try():
            raise PostponedError("the device turns requests away already", wait_s=HOT_PAUSE_S)
        _postpone(may_apply(self._hours(), self._policy))

    def _hours(self) -> Hours:
        now_ms = self._clock.now_ms()
        offset_s = time.localtime(now_ms / 1000).tm_gmtoff
        return Hours(now_ms, offset_s, trusted=self.clock_trusted and now_ms >= WRITTEN_MS)


def _postpone(wait: Wait | None) -> None:
    if wait is not None:
        raise PostponedError(wait.reason, wait_s=wait.wait_s)
