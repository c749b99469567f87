"""What there is only one of in a fleet directory: a controller, and a `serve`.

Decides where their locks lie, and how others see whether they run.
"""

from __future__ import annotations

from typing import Final

from edgeml import lock
from edgeml.lock import Lock

from .config import FleetHome

CONTROLLER: Final = "controller.lock"
SERVE: Final = "serve.lock"


def hold(home: FleetHome, name: str, what: str) -> Lock:
    """Take a lock.

    Raises:
        ConfigError: Another process holds it.
        StorageError: The disk refused.
    """
    return Lock(
        home.run / name,
        f"{what} is already running for {home.directory}",
        "stop it first, or name another directory with --dir",
    )


def is_held(home: FleetHome, name: str) -> bool:
    """Tell whether a process holds this lock now.

    Raises:
        StorageError: The disk refused.
    """
    return lock.is_held(home.run / name)
