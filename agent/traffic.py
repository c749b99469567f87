"""The traffic: how many bytes of the network this device has used today, on disk.

Decides that the count on disk is never below what was used, whatever happens: it is written ahead, RESERVE_BYTES at a
time, and set right when a transfer ends; a power cut costs at most that much of the day. What a day is, `allowance`
decides.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Final

import msgspec

from edgeml import atomic
from edgeml.clock import Clock

from .allowance import Spent, left_bytes, today, wait_s

logger = logging.getLogger(__name__)

FILE: Final = "traffic.json"
RESERVE_BYTES: Final = 1 << 20
"""So much may be used between two writes; cards wear out by being written."""


class Traffic:
    """One device's account. Thread-safe.

    Raises:
        StorageError: The disk refused, in any method that counts.
    """

    def __init__(self, storage: Path, budget_bytes: int | None, clock: Clock) -> None:
        self._path = storage / FILE
        self._budget = budget_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._since_s = clock.monotonic_s()
        self._written = self._spent = self._read()

    @property
    def spent_bytes(self) -> int:
        """What was used today."""
        with self._lock:
            self._turn_the_day()
            return self._spent.spent_bytes

    @property
    def left_bytes(self) -> int | None:
        """What may still be used today; None without a budget."""
        with self._lock:
            self._turn_the_day()
            return left_bytes(self._spent, self._budget)

    @property
    def wait_s(self) -> float:
        """How long it is until the next day."""
        with self._lock:
            self._turn_the_day()
            return wait_s(self._spent, self._clock.now_ms(), self._clock.monotonic_s() - self._since_s)

    def add(self, count: int) -> None:
        """Count bytes that were used, or are about to be."""
        with self._lock:
            self._turn_the_day()
            self._spent = Spent(self._spent.day, self._spent.spent_bytes + count)
            ahead = self._written.day == self._spent.day
            if self._budget is not None and not (
                ahead and self._spent.spent_bytes <= self._written.spent_bytes
            ):
                self._write(Spent(self._spent.day, self._spent.spent_bytes + RESERVE_BYTES))

    def settle(self) -> None:
        """Write what really was used: a transfer has ended."""
        with self._lock:
            if self._budget is not None and self._written != self._spent:
                self._write(self._spent)

    def _turn_the_day(self) -> None:
        now_s = self._clock.monotonic_s()
        after = today(self._spent, self._clock.now_ms(), now_s - self._since_s)
        if after is not self._spent:
            self._spent, self._since_s = after, now_s

    def _write(self, spent: Spent) -> None:
        atomic.write_bytes(self._path, msgspec.json.encode(spent))
        self._written = spent

    def _read(self) -> Spent:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Spent)
        except FileNotFoundError:
            return Spent()
        except (OSError, msgspec.MsgspecError) as error:
            logger.warning("%s cannot be read (%s); today's count starts at nothing", self._path, error)
            return Spent()
