"""Locks that end with their process.

Decides that there is one controller and one `serve` per fleet directory, and how others see whether they run. The
kernel gives a lock back when its holder dies, however it dies; a file with a process number would not.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from edgeml import atomic
from edgeml.errors import ConfigError

from .config import FleetHome

CONTROLLER: Final = "controller.lock"
SERVE: Final = "serve.lock"


class Lock:
    """A held lock; keep it as long as it is to be held.

    Raises:
        ConfigError: Another process holds it.
        StorageError: The disk refused.
    """

    def __init__(self, home: FleetHome, name: str, what: str) -> None:
        path = home.run / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise atomic.storage_error(error, path) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise ConfigError(
                f"{what} is already running for {home.directory}",
                hint="stop it first, or name another directory with --dir",
            ) from error

    def release(self) -> None:
        """Give it back."""
        os.close(self._descriptor)


def is_held(home: FleetHome, name: str) -> bool:
    """Tell whether a process holds this lock now."""
    path: Path = home.run / name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise atomic.storage_error(error, path) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
