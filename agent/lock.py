"""One agent per storage directory.

Decides it by a lock that the kernel drops with the process, so a kill never leaves it behind.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from edgeml.atomic import storage_error
from edgeml.errors import ConfigError

LOCK: Final = "agent.lock"


def hold(storage: Path) -> int:
    """Take the lock for as long as this process lives; return the descriptor that holds it.

    Raises:
        ConfigError: Another agent has it.
        StorageError: The disk refused.
    """
    try:
        storage.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(storage / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise storage_error(error, storage) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(
            f"another agent runs on {storage}", hint="stop it first, or give this one its own storage"
        ) from error
    return descriptor


def is_held(storage: Path) -> bool:
    """Tell whether an agent runs on this storage."""
    try:
        descriptor = os.open(storage / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
