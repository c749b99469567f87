"""The vigil: keeps an eye on the freshness of what the fleet signs.

Decides nothing (`freshness` does): hears how fetches ended, starts a look of its own when one is due, keeps what is
known, and says once that the device is frozen, or is so no more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from edgeml.errors import EdgemlError, StorageError
from edgeml.ids import DeviceId

from . import freshness
from .config import AgentConfig
from .freshness import FROZEN_EVERY_S, Freshness
from .updater import Moment

logger = logging.getLogger(__name__)

FROZEN: Final = "frozen"
THAWED: Final = "thawed"


class News(msgspec.Struct, frozen=True):
    """Something to report: an event's kind and detail."""

    kind: str
    detail: str


class Vigil:
    """One device's vigil. `hear` may be called from any thread, `turn` from one; neither waits.

    Args:
        config: the device's settings. One that has no fleet never looks.
        look: fetches signed metadata and nothing else; raises EdgemlError.
    """

    def __init__(self, config: AgentConfig, look: Callable[[], None]) -> None:
        self._storage = Path(config.storage)
        self._device = DeviceId(config.device)
        self._look = look
        self._has_fleet = config.blobs is not None and config.broker is not None
        self._pool = ThreadPoolExecutor(1, "vigil")
        self._looking: Future[None] | None = None
        self._lock = threading.Lock()
        self._known = self._told = freshness.read(self._storage)
        self._due_s: float | None = None

    @property
    def known(self) -> Freshness:
        """What is known."""
        with self._lock:
            return self._known

    def hear(self, error: EdgemlError | None, now_ms: int) -> None:
        """Hear how a fetch from the fleet ended; None if it went well."""
        with self._lock:
            after = self._known.after(error, now_ms)
            if after == self._known:
                return
            self._known = after
            self._due_s = None
        try:
            freshness.write(self._storage, after)
        except StorageError as refused:
            # It is known all the same, and found out again after a restart.
            logger.warning("%s", refused.message)

    def turn(self, now: Moment) -> News | None:
        """Look if it is time to; return what has changed since the last turn."""
        if self._has_fleet:
            self._keep_looking(now)
        known, told = self.known, self._told
        self._told = known
        if (known.frozen_since_ms is None) == (told.frozen_since_ms is None):
            return None
        if known.frozen_since_ms is None:
            logger.info("signed metadata are fresh again")
            return News(THAWED, "signed metadata are fresh again")
        logger.error("frozen: %s; what serves goes on, nothing new is installed", known.said)
        return News(FROZEN, known.said)

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _keep_looking(self, now: Moment) -> None:
        if self._looking is not None:
            if not self._looking.done():
                return
            error = self._looking.exception()
            self._looking = None
            if error is not None and not isinstance(error, EdgemlError):
                raise error
            self._due_s = now.monotonic_s + FROZEN_EVERY_S
            self.hear(error, now.wall_ms)
        if self._due_s is None:
            self._due_s = now.monotonic_s + self.known.wait_s(self._device, now.wall_ms)
        if now.monotonic_s >= self._due_s:
            self._looking = self._pool.submit(self._look)
