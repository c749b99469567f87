"""Notices that the device's identity was replaced, by a renewal or by `edgeml agent enroll` beside the running agent.

Decides how often is looked and what counts as another file: every writer of ours replaces it by a rename.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

LOOK_EVERY_S: Final = 1.0


class WatchedFile:
    """One file that is replaced now and then."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._look()
        self._due_s = 0.0

    def changed(self, now_s: float) -> bool:
        """Tell whether it is another one than at the last call; a file that is gone is no change.

        Args:
            now_s: monotonic time.
        """
        if now_s < self._due_s:
            return False
        self._due_s = now_s + LOOK_EVERY_S
        stamp = self._look()
        if stamp is None or stamp == self._stamp:
            return False
        self._stamp = stamp
        return True

    def _look(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns
