"""The ballast: room on the disk that is given away when a start finds none.

Decides how much is kept, and when a piece of it goes. SQLite cannot even open its files on a disk that is quite full, and a
device that was restarted then would serve nothing until somebody frees space. In a running agent a full disk costs
updates and telemetry only. Several pieces, for whoever has filled the disk may take what is freed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from edgeml.errors import StorageError

logger = logging.getLogger(__name__)

DIRECTORY: Final = "ballast"
PIECES: Final = 4
PIECE_BYTES: Final = 128 << 10
"""What opening the journal and the buffer takes, and a few commits: both have an index of 32 KiB."""
KEEP_EVERY_S: Final = 60.0
_Opened = TypeVar("_Opened")


class Ballast:
    """One device's. For one thread."""

    def __init__(self, storage: Path) -> None:
        self._directory = storage / DIRECTORY
        self._due_s = float("-inf")

    def opened(self, open_it: Callable[[], _Opened]) -> _Opened:
        """Open something; as long as the disk refuses, give a piece away and try again.

        Raises:
            StorageError: It still refuses without any ballast.
        """
        while True:
            try:
                return open_it()
            except StorageError as error:
                if not self._give():
                    raise
                logger.error("%s; room that was kept for this is given away", error.message)  # noqa: TRY400 - the disk's

    def keep(self, now_s: float) -> None:
        """Put back what was given away, if it is time to look and there is room."""
        if now_s >= self._due_s:
            self._due_s = now_s + KEEP_EVERY_S
            self.keep_now()

    def keep_now(self) -> None:
        """Put back what was given away, if there is room: what SQLite's files leave when they are closed, for one."""
        for number in range(PIECES):
            path = self._directory / str(number)
            if not _is_whole(path) and not self._put(path):
                return

    def _put(self, path: Path) -> bool:
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, PIECE_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            logger.debug("no room for ballast: %s", error)
            with suppress(OSError):
                path.unlink()
            return False
        return True

    def _give(self) -> bool:
        for number in reversed(range(PIECES)):
            with suppress(OSError):
                (self._directory / str(number)).unlink()
                return True
        return False


def _is_whole(path: Path) -> bool:
    """False if there is none, or one of which an agent was killed before the disk had given all of it."""
    try:
        return path.stat().st_size >= PIECE_BYTES
    except OSError:
        return False
