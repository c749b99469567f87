"""Whether what the fleet signs is fresh, and when that is looked at although nothing is to be fetched.

Decides when a device counts as frozen: all that it gets of the fleet's signed metadata has expired, because nobody signs
any more, or because somebody keeps newer ones from it (a freeze attack looks the same from here). What serves goes on;
nothing new is installed, which `edgeml.trust` sees to. Here it is only known, kept and told. Pure but for one small
file, which is no record: what is lost with it is found out again within a day.
"""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path
from typing import Final

import msgspec

from edgeml import atomic
from edgeml.errors import EdgemlError, ExpiredError
from edgeml.ids import DeviceId

logger = logging.getLogger(__name__)

FILE: Final = "freshness.json"
EVERY_S: Final = 86_400.0
"""Between looks while all is well: a look is a child and some 400 bytes."""
FROZEN_EVERY_S: Final = 3600.0
"""Between looks while the device is frozen, and after one that came to nothing."""
FIRST_S: Final = 60.0
"""After a start, at the soonest."""


class Freshness(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a device knows of the freshness of signed metadata."""

    checked_at_ms: int = 0
    """When they were last seen, fresh or expired; 0 if never."""
    frozen_since_ms: int | None = None
    """When they were first seen to have expired; None if they were fresh."""
    said: str = ""
    """What was wrong with them."""

    def after(self, error: EdgemlError | None, now_ms: int) -> Freshness:
        """Hear how a look at them ended; most errors say nothing about them."""
        if error is None:
            return Freshness(now_ms)
        if not isinstance(error, ExpiredError):
            return self
        since_ms = now_ms if self.frozen_since_ms is None else self.frozen_since_ms
        return Freshness(now_ms, since_ms, error.message)

    def wait_s(self, device: DeviceId, now_ms: int) -> float:
        """Say in how many seconds to look at them unasked. Devices that were started together spread out."""
        spread = 0.75 + hashlib.sha256(device.encode()).digest()[0] / 1024
        every_s = (EVERY_S if self.frozen_since_ms is None else FROZEN_EVERY_S) * spread
        # A clock that was set back, or never was right, says nothing about how long ago that was.
        is_known = 0 < self.checked_at_ms <= now_ms
        return max(FIRST_S, every_s - (now_ms - self.checked_at_ms) / 1000 if is_known else every_s)

    def describe(self) -> str:
        """Say it in a line; empty if all is well."""
        if self.frozen_since_ms is None:
            return ""
        since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.frozen_since_ms / 1000))
        return f"since {since}: {self.said}; nothing new is installed"


def read(storage: Path) -> Freshness:
    """Read what a device knows; nothing if the file is not there, or cannot be read."""
    try:
        return msgspec.json.decode((storage / FILE).read_bytes(), type=Freshness)
    except FileNotFoundError:
        return Freshness()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        logger.warning("%s cannot be read: %s", storage / FILE, error)
        return Freshness()


def write(storage: Path, freshness: Freshness) -> None:
    """Keep what a device knows.

    Raises:
        StorageError: The disk refused.
    """
    atomic.write_bytes(storage / FILE, msgspec.json.encode(freshness))
