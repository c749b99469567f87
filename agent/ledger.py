"""The ledger: which model was granted how much memory.

Decides what admission is asked with: the bundle's manifest, what this device measured of it, what all workers share, and
what the device has left just now. The rule is `admission`'s.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

from edgeml.errors import BudgetError
from edgeml.ids import Digest, ModelName
from edgeml.manifest import Manifest

from .admission import Admission, Peak, PeakSource, Room, admit, known_peak, left_bytes, own_bytes
from .diagnosis import RESERVE_BYTES
from .peaks import Peaks
from .sensors import Sensors


class Ledger:
    """The grants of one device. What only reads may be called from any thread, the rest from one at a time."""

    def __init__(
        self, budget_bytes: int | None, peaks: Peaks, sensors: Sensors, shared_bytes: Callable[[], int]
    ) -> None:
        """Begin with nothing granted; `shared_bytes` says what all workers share now."""
        self._budget = budget_bytes
        self._peaks = peaks
        self._sensors = sensors
        self._shared_bytes = shared_bytes
        self._lock = threading.Lock()
        self._granted: dict[ModelName, int] = {}
        self.refused = 0
        """Variants that were refused for want of memory since the agent started."""

    def granted_bytes(self, model: ModelName) -> int:
        """What a model was granted, its own part; 0 if nothing was."""
        with self._lock:
            return self._granted.get(model, 0)

    def most_bytes(self, model: ModelName) -> int | None:
        """What a model's worker may take at most: all that is granted to no other; None without a budget."""
        return left_bytes(model, self._room())

    def admit(self, model: ModelName, path: Path, digest: Digest) -> Admission:
        """Ask whether a bundle may be loaded, by the best measurement of it that there is. Grants nothing.

        Raises:
            BudgetError: It does not fit, even in place of the model's old variant.
            ArtifactError: It is no bundle.
            ConfigError: It cannot be read.
        """
        return self._admit(model, self.peak(path, digest), self._room())

    def confirm(self, model: ModelName, digest: Digest, pid: int, peak_bytes: int) -> int:
        """Measure a worker that was on trial, remember that, and return what the variant needs. Grants nothing.

        Args:
            model: whose variant it is.
            digest: the variant.
            pid: the worker.
            peak_bytes: its highest resident memory, with what it shares.

        Raises:
            BudgetError: The model may not have so much.
        """
        memory = self._sensors.memory(pid)
        # What was there at the peak and is no more was its own: what is shared stays.
        own = (
            own_bytes(peak_bytes, self._shared_bytes())
            if memory is None
            else memory.uss_bytes + max(peak_bytes - memory.rss_bytes, 0)
        )
        self._peaks.keep(digest, own)
        peak = Peak(own, PeakSource.TRIAL)
        # It is loaded: the device's free memory has paid for it already.
        room = dataclasses.replace(self._room(), available_bytes=None)
        return self._admit(model, peak, room).granted_bytes

    def expect(self, path: Path, digest: Digest) -> int:
        """Return what a variant needs that was proven before, whether that fits or not. Grants nothing.

        What was committed is served again after a restart; if it does not fit any more, the governor says so while it
        runs.

        Raises:
            ArtifactError: It is no bundle.
            ConfigError: It cannot be read.
        """
        return self.peak(path, digest).need_bytes(self._shared_bytes())

    def grant(self, model: ModelName, granted_bytes: int) -> None:
        """Set memory aside for a model that serves."""
        with self._lock:
            self._granted[model] = granted_bytes

    def release(self, model: ModelName) -> None:
        """Hear that a model serves no more."""
        with self._lock:
            self._granted.pop(model, None)

    def peak(self, path: Path, digest: Digest) -> Peak:
        """Say what a variant takes at most, by the best measurement of it that there is.

        Raises:
            ArtifactError: It is no bundle.
            ConfigError: It cannot be read.
        """
        manifest = _manifest(path)
        model = manifest.file(manifest.runtime.model_member)
        return known_peak(
            self._peaks.get(digest),
            manifest.measurement.peak_memory_bytes,
            0 if model is None else model.length_bytes,
            manifest.runtime,
        )

    def _admit(self, model: ModelName, peak: Peak, room: Room) -> Admission:
        try:
            return admit(model, peak, room)
        except BudgetError:
            self.refused += 1
            raise

    def _room(self) -> Room:
        with self._lock:
            granted = dict(self._granted)
        return Room(
            budget_bytes=self._budget,
            shared_bytes=self._shared_bytes(),
            granted=granted,
            available_bytes=self._sensors.memory_available_bytes(),
            reserve_bytes=RESERVE_BYTES,
        )


def _manifest(path: Path) -> Manifest:
    # Not needed by an agent that loads nothing new: zip files are the bundle's business.
    from edgeml.bundle import Bundle

    with Bundle(path) as bundle:
        return bundle.manifest
