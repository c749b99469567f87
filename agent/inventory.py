"""The inventory: what a device says it is, on every new link and when that changes.

Decides what is looked up where.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgeml import __version__
from edgeml.ids import DeviceId
from edgeml.runtime import installed_runtimes
from edgeml.trusttime import trusted_time
from edgeml.twin import Birth

from .config import AgentConfig
from .flash import TRUST
from .freshness import Freshness
from .sensors import Sensors, disk_free_bytes
from .updater import Moment


def take_inventory(config: AgentConfig, session: str, freshness: Freshness, now: Moment) -> Birth:
    """Look at the device. `session` names this life of its agent."""
    storage = Path(config.storage)
    return Birth(
        device=DeviceId(config.device),
        session=session,
        profile=config.profile,
        agent_version=__version__,
        runtimes=installed_runtimes(),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        memory_free_bytes=Sensors().memory_available_bytes() or 0,
        storage_free_bytes=disk_free_bytes(storage) or 0,
        # Now, and not only since something was fetched.
        clock_trusted=trusted_time(storage / TRUST, now.wall_ms).clock_trusted,
        frozen_since_ms=freshness.frozen_since_ms,
        at_ms=now.wall_ms,
    )
