"""The inbox of a running device: starts what was flashed, and clears away what has ended.

Decides when to look, and which of several flashed releases of one model goes first: the first by name, the others when
it is done with. What lies there, and how much it is trusted, is `flash`'s business.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Final

from edgeml.errors import ManifestError

from . import flash
from .device import Device
from .updater import Moment

logger = logging.getLogger(__name__)

EVERY_S: Final = 5.0
ABANDONED_S: Final = 6 * 3600.0
"""A bundle over the thinnest line shows some progress within this time."""


class Inbox:
    """Deployments that came without a network."""

    def __init__(self, storage: Path, device: Device) -> None:
        self._storage = storage
        self._device = device
        self._begun: list[flash.Offline] = []
        self._next_s = 0.0
        self._said: set[str] = set()
        self._unfinished: dict[Path, tuple[int, float]] = {}
        """When each unfinished directory was last written to, and since when it has not been."""

    def look(self, now: Moment) -> None:
        """Look, if it is time to.

        Raises:
            StorageError: The journal could not be written.
        """
        if now.monotonic_s < self._next_s:
            return
        self._next_s = now.monotonic_s + EVERY_S
        self._clear()
        self._sweep(now)
        found: list[flash.Offline] = []
        for one in flash.waiting(self._storage):
            if isinstance(one, ManifestError):
                self._warn(one)
            else:
                found.append(one)
        # First of all: once another release of its model has begun, nothing tells any more that it had ended.
        left = [waiting for waiting in found if not self._ended_earlier(waiting)]
        for waiting in left:
            try:
                self._consider(waiting, now)
            except ManifestError as error:
                self._warn(error)

    def _warn(self, error: ManifestError) -> None:
        """Say it once, not every few seconds for years."""
        if error.message not in self._said:
            self._said.add(error.message)
            logger.warning("%s", error.message)

    def _sweep(self, now: Moment) -> None:
        """Remove what somebody began to put there and did not finish, once it has lain unchanged for long."""
        seen: dict[Path, tuple[int, float]] = {}
        for directory, written_ns in flash.unfinished(self._storage):
            before_ns, since_s = self._unfinished.get(directory, (written_ns, now.monotonic_s))
            if before_ns != written_ns:
                since_s = now.monotonic_s
            if now.monotonic_s - since_s >= ABANDONED_S:
                logger.info("removed %s, which nobody finished", directory)
                shutil.rmtree(directory, ignore_errors=True)
            else:
                seen[directory] = written_ns, since_s
        self._unfinished = seen

    def _clear(self) -> None:
        for begun in list(self._begun):
            entry = self._device.entry(begun.model)
            if entry.desired == begun.desired and entry.outcome is None:
                continue
            # It has ended, or the fleet wanted something else of this model meanwhile: what came later counts.
            self._begun.remove(begun)
            flash.clear(begun)

    def _ended_earlier(self, waiting: flash.Offline) -> bool:
        """Clear away what ended in an earlier life that did not come to clear it; tell whether it did."""
        entry = self._device.entry(waiting.model)
        if waiting in self._begun or entry.desired != waiting.desired or entry.outcome is None:
            return False
        flash.clear(waiting)
        return True

    def _consider(self, waiting: flash.Offline, now: Moment) -> None:
        if any(begun.model == waiting.model for begun in self._begun):
            return
        self._begun.append(waiting)
        logger.info("found %s in the inbox", waiting.desired.release)
        self._device.on_offline(waiting.desired, waiting.repository, now)
        if self._device.entry(waiting.model).desired != waiting.desired:
            # The machine is busy with something else; its turn will come.
            self._begun.remove(waiting)
