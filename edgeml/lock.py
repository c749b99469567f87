"""Locks that end with their process.

Decides how: the kernel gives a lock back when its holder dies, however it dies; a file with a process number would not.
What may be held only once, and where its lock lies, is decided by whoever holds it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .atomic import storage_error
from .errors import ConfigError, TransferError

WAIT_STEP_S: Final = 0.05


class Lock:
    """A held lock; keep it as long as it is to be held.

    Raises:
        ConfigError: Another process holds it: `taken` and `hint` say so.
        StorageError: The disk refused.
    """

    def __init__(self, path: Path, taken: str, hint: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise storage_error(error, path) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise ConfigError(taken, hint=hint) from error

    def release(self) -> None:
        """Give it back."""
        os.close(self._descriptor)


@contextmanager
def waiting_lock(path: Path, wait_s: float) -> Iterator[None]:
    """Hold a lock for a while; wait for it if another process has it.

    Raises:
        TransferError: Another one had it all the time; try again later.
        StorageError: The disk refused.
    """
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            lock = Lock(path, f"{path.name} is held by another process", "")
        except ConfigError as error:
            if time.monotonic() > deadline_s:
                raise TransferError(f"{error.message} for {wait_s:.0f} s") from error
            time.sleep(WAIT_STEP_S)
        else:
            break
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Tell whether a process holds this lock now.

    Raises:
        StorageError: The disk refused.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
