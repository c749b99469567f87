"""Peaks: how much memory of its own each variant took at most when this device had it on trial.

Decides how many are remembered and that losing them does no harm: admission then believes the manifest again.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import msgspec

from edgeml import atomic
from edgeml.errors import StorageError
from edgeml.ids import Digest

logger = logging.getLogger(__name__)

FILE: Final = "peaks.json"
PEAKS_MAX: Final = 64


class Peaks:
    """What this device measured, by content. For one thread at a time."""

    def __init__(self, storage: Path) -> None:
        self._path = storage / FILE
        self._bytes: dict[Digest, int] = self._read()

    def get(self, digest: Digest) -> int | None:
        """Highest memory of a worker with this variant, its own part; None if it was never measured here."""
        return self._bytes.get(digest)

    def keep(self, digest: Digest, peak_bytes: int) -> None:
        """Remember a peak; the newest trials are remembered longest. A disk that refuses costs only the memory of it."""
        if self._bytes.get(digest) == peak_bytes:
            return
        self._bytes.pop(digest, None)
        self._bytes[digest] = peak_bytes
        while len(self._bytes) > PEAKS_MAX:
            del self._bytes[next(iter(self._bytes))]
        try:
            atomic.write_bytes(self._path, msgspec.json.encode(self._bytes))
        except StorageError as error:
            logger.warning("a measured peak is not kept: %s", error.message)

    def _read(self) -> dict[Digest, int]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[Digest, int])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            logger.warning("%s cannot be read (%s); manifests are believed again", self._path, error)
            return {}
