"""What a conversion has made already, so that it goes on where it was interrupted and never does the same twice.

Decides how results are kept: one file each, named after everything that it depends on, checked when it is read, and how
much is kept. What a result depends on is decided by who keeps it. Nothing in it is trusted beyond its digest: it is this
user's own directory, and a damaged file is made anew.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NewType

import msgspec

from edgeml import atomic
from edgeml.ids import digest_of

Key = NewType("Key", str)
KEPT_BYTES_MAX: Final = 2 << 30
_DIGEST_BYTES: Final = hashlib.sha256().digest_size
_TORN_AFTER_S: Final = 6 * 3600
"""Nobody writes one file for so long: what wrote it was killed."""
_KEPT: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_BEING_WRITTEN: Final = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{12}", re.ASCII)
"""How `atomic` calls a file until it is whole."""


def default_folder() -> Path:
    """Return where results are kept if nothing else is said: the user's cache (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "edgeml" / "convert"


def key_of(*parts: object) -> Key:
    """Name a result by everything that it depends on: texts, numbers, records.

    >>> key_of("onnx", 18) == key_of("onnx", 18), key_of("onnx", 18) == key_of("onnx1", 8)
    (True, False)
    """
    return Key(digest_of(msgspec.json.encode(parts, order="sorted")))


@dataclass(frozen=True, slots=True)
class Store:
    """Results in one directory."""

    folder: Path
    limit_bytes: int = KEPT_BYTES_MAX

    def get(self, key: Key) -> bytes | None:
        """Return what was kept; None if there is nothing, or it is damaged."""
        path = self.folder / key
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
            return None
        with suppress(OSError):  # It was used now: it goes last.
            path.touch()
        return data[_DIGEST_BYTES:]

    def put(self, key: Key, data: bytes) -> None:
        """Keep a result.

        Raises:
            StorageError: The disk refused.
        """
        atomic.write_bytes(self.folder / key, hashlib.sha256(data).digest() + data)

    def trim(self) -> None:
        """Remove what was used longest ago, until what is left is within the limit; no file but the store's own."""
        found = []
        torn_ns = time.time_ns() - _TORN_AFTER_S * 10**9
        with suppress(OSError):
            for path in self.folder.iterdir():
                with suppress(OSError):
                    status = path.lstat()
                    is_torn = _BEING_WRITTEN.fullmatch(path.name) and status.st_mtime_ns < torn_ns
                    if stat.S_ISREG(status.st_mode) and (_KEPT.fullmatch(path.name) or is_torn):
                        found.append((status.st_mtime_ns, status.st_size, path))
        kept = sum(length for _, length, _ in found)
        for _, length, path in sorted(found):
            if kept <= self.limit_bytes:
                return
            with suppress(OSError):
                path.unlink()
            kept -= length
