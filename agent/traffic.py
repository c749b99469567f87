"""The traffic: how many bytes of the network this device has used today, on disk.

Decides that the count on disk is never below what was used, whatever happens: it is written ahead, a WRITES_A_DAY-th of
the budget at a time, and set right when a transfer ends; a kill or a power cut costs at most that much of the day. Beside
it stands what was promised: handed to the link, and not counted by the kernel yet. What a day is, `allowance` decides; who
may use how much of it, `ration`.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Final

import msgspec

from edgeml import atomic
from edgeml.clock import Clock
from edgeml.telemetry import Stream

from .allowance import Spent, left_bytes, today, wait_s
from .ration import PURPOSE_OF, Day, Purpose, longest_bytes, message_bytes, room_bytes

logger = logging.getLogger(__name__)

FILE: Final = "traffic.json"
AHEAD_BYTES_MAX: Final = 1 << 20
"""So much may be used between two writes at most; cards wear out by being written."""
WRITES_A_DAY: Final = 64
"""About, at most, besides those at the end of a transfer."""


class Traffic:
    """One device's account. Thread-safe.

    Raises:
        StorageError: The disk refused, in any method that counts.
    """

    def __init__(self, storage: Path, budget_bytes: int | None, clock: Clock) -> None:
        self._path = storage / FILE
        self._budget = budget_bytes
        self._clock = clock
        self._ahead_bytes = 0 if budget_bytes is None else min(AHEAD_BYTES_MAX, budget_bytes // WRITES_A_DAY)
        self._promised_bytes = 0
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
        """What may still be used today, for whatever; None without a budget."""
        with self._lock:
            self._turn_the_day()
            return left_bytes(self._spent, self._budget)

    @property
    def wait_s(self) -> float:
        """How long it is until the next day."""
        with self._lock:
            self._turn_the_day()
            return wait_s(self._spent, self._clock.now_ms(), self._clock.monotonic_s() - self._since_s)

    @property
    def day(self) -> Day | None:
        """How the day stands; None without a budget."""
        with self._lock:
            self._turn_the_day()
            if self._budget is None:
                return None
            left_s = wait_s(self._spent, self._clock.now_ms(), self._clock.monotonic_s() - self._since_s)
            return Day(self._budget, self._spent.spent_bytes + self._promised_bytes, left_s)

    def room_bytes(self, purpose: Purpose) -> int | None:
        """What a purpose may take now; None without a budget."""
        day = self.day
        return None if day is None else room_bytes(purpose, day)

    def affords(self, stream: Stream, length_bytes: int) -> bool:
        """Tell whether a message of so many bytes may be sent now."""
        room = self.room_bytes(PURPOSE_OF[stream])
        return room is None or message_bytes(length_bytes) <= room

    def take(self, stream: Stream, length_bytes: int) -> bool:
        """Set aside what a message of so many bytes will cost until it is counted, if it may be sent now."""
        if not self.affords(stream, length_bytes):
            return False
        with self._lock:
            self._promised_bytes += message_bytes(length_bytes)
        return True

    def longest_bytes(self, stream: Stream) -> int | None:
        """What a message may have to be sent on any day at all; None without a budget."""
        return None if self._budget is None else longest_bytes(PURPOSE_OF[stream], self._budget)

    def redeem(self, count: int, *, outstanding: bool) -> None:
        """Count what the link has really used; without messages that are on their way, nothing is promised any more."""
        with self._lock:
            self._promised_bytes = max(self._promised_bytes - count, 0) if outstanding else 0
        if count:
            self.add(count)

    def add(self, count: int) -> None:
        """Count bytes that were used, or are about to be."""
        with self._lock:
            self._turn_the_day()
            self._spent = Spent(self._spent.day, self._spent.spent_bytes + count)
            ahead = self._written.day == self._spent.day
            if self._budget is not None and not (
                ahead and self._spent.spent_bytes <= self._written.spent_bytes
            ):
                self._write(Spent(self._spent.day, self._spent.spent_bytes + self._ahead_bytes))

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
