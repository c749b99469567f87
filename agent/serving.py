"""Which worker serves: swapped without losing a request, restarted when it dies.

Decides who answers, how long a dead worker's successor waits (exponential backoff, never for ever) and when crashes are
too many. What follows from too many crashes is the update machine's business.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from edgeml.errors import EdgemlError
from edgeml.ids import Digest
from edgeml.manifest import Manifest

from .ipc import Answer, TensorBytes
from .line import NO_DEADLINE
from .supervisor import Worker, WorkerLimits

logger = logging.getLogger(__name__)

BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 60.0
CRASHES_MAX: Final = 3
CRASH_WINDOW_S: Final = 300.0


class NoModelError(EdgemlError):
    """No model serves now; try again later."""


class Loader(Protocol):
    """Where a new worker comes from."""

    def load(self, path: Path, digest: Digest, limits: WorkerLimits | None = None) -> Worker:
        """Load a bundle into a new worker. Raises EdgemlError."""
        ...


class Served(msgspec.Struct, frozen=True):
    """An answer, and the variant that gave it."""

    manifest: Manifest
    digest: Digest
    answer: Answer


class Toll(msgspec.Struct, frozen=True):
    """What the life of workers cost since the agent started.

    `crashes` counts workers that died and successors that could not be loaded, `restarts` successors that were.
    """

    crashes: int = 0
    restarts: int = 0


class CrashCount:
    """Crashes of one variant: how many, whether they came too quickly, and how long the next start should wait.

    >>> crashes = CrashCount()
    >>> for at_s in (0.0, 10.0, 1000.0, 1001.0): crashes.add(at_s)
    >>> crashes.count, crashes.delay_s, crashes.unstable
    (4, 0.5, False)
    >>> crashes.add(1002.0)
    >>> crashes.delay_s, crashes.unstable
    (1.0, True)
    """

    def __init__(self) -> None:
        self.count = 0
        self.unstable = False
        """Whether there have ever been CRASHES_MAX within CRASH_WINDOW_S."""
        self._recent_s: deque[float] = deque(maxlen=CRASHES_MAX)
        self._streak = 0

    @property
    def last_s(self) -> float | None:
        """When the last one was."""
        return self._recent_s[-1] if self._recent_s else None

    @property
    def delay_s(self) -> float:
        """How long to wait now: not at all after a single crash, then twice as long each time."""
        if self._streak <= 1:
            return 0.0
        return min(BACKOFF_FIRST_S * 2.0 ** min(self._streak - 2, 30), BACKOFF_MAX_S)

    def add(self, now_s: float) -> None:
        """Count one."""
        last_s = self.last_s
        self._streak = self._streak + 1 if last_s is not None and now_s - last_s <= CRASH_WINDOW_S else 1
        self._recent_s.append(now_s)
        self.count += 1
        if len(self._recent_s) == CRASHES_MAX and now_s - self._recent_s[0] <= CRASH_WINDOW_S:
            self.unstable = True


class Serving:
    """Holds the worker that serves. Thread-safe; `swap` is for one thread at a time."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._changed = threading.Condition()
        self._seat: _Seat | None = None
        self._crashes = CrashCount()
        self._toll = Toll()

    @property
    def toll(self) -> Toll:
        """Crashes and restarts of all variants; never shrinks."""
        return self._toll

    @property
    def active(self) -> Worker | None:
        """The worker that serves, even while it is dead and about to be restarted."""
        seat = self._seat
        return None if seat is None else seat.worker

    @property
    def crashes(self) -> int:
        """How often the active variant's worker died, or failed to come back, since it was swapped in."""
        return self._crashes.count

    @property
    def last_crash_s(self) -> float | None:
        """When it last died, on the monotonic clock."""
        return self._crashes.last_s

    @property
    def unstable(self) -> bool:
        """Whether it has ever died CRASHES_MAX times within CRASH_WINDOW_S since it was swapped in."""
        return self._crashes.unstable

    def infer(self, tensors: Sequence[TensorBytes], deadline_s: float = NO_DEADLINE) -> Served:
        """Answer one request with whichever worker serves; it waits for its turn until the deadline at most.

        Raises:
            NoModelError: None does, or it is being restarted.
            ConfigError: The tensors are not what the model takes.
            BudgetError: Too many requests wait already.
            LateError: The deadline (on the monotonic clock) passed before its turn came.
            BackendError: The model refused them, or its worker hung or died of them.
        """
        seat, worker = self._enter()
        try:
            return Served(worker.manifest, worker.digest, worker.infer(tensors, deadline_s))
        finally:
            self._leave(seat)

    async def infer_in_loop(self, tensors: Sequence[TensorBytes], deadline_s: float = NO_DEADLINE) -> Served:
        """The same for an event loop, without a thread. Raises EdgemlError."""
        seat, worker = self._enter()
        try:
            return Served(worker.manifest, worker.digest, await worker.infer_in_loop(tensors, deadline_s))
        finally:
            self._leave(seat)

    def _enter(self) -> tuple[_Seat, Worker]:
        """Find the worker that serves. It is not stopped before `_leave`."""
        with self._changed:
            seat = self._seat
            if seat is None:
                raise NoModelError("no model serves on this device", hint="assign or flash a release")
            if seat.held:
                raise NoModelError(
                    f"{seat.worker.manifest.release} was taken away: {seat.held}", hint="ask again later"
                )
            if seat.down:
                raise NoModelError(
                    f"{seat.worker.manifest.release} is being restarted", hint="try again in a moment"
                )
            seat.in_flight += 1
            return seat, seat.worker

    def _leave(self, seat: _Seat) -> None:
        with self._changed:
            seat.in_flight -= 1
            if seat is not self._seat:
                self._changed.notify_all()

    def swap(self, worker: Worker | None) -> Worker | None:
        """Let another worker serve from now on. Counts of crashes start again.

        Returns:
            The old one, after its requests in flight are finished; it still runs, and stopping it is the caller's.
        """
        with self._changed:
            old, self._seat = self._seat, None if worker is None else _Seat(worker)
            self._crashes = CrashCount()
            self._changed.notify_all()
            if self._seat is not None:
                threading.Thread(target=self._keep, args=(self._seat,), name="serving", daemon=True).start()
            if old is None:
                return None
            # Every request ahead is bounded by its timeout, so this is a bound on all of them.
            limits = old.worker.limits
            longest_s = limits.request_timeout_s * (limits.line.waiting_max + 2)
            self._changed.wait_for(lambda: old.in_flight == 0, longest_s)
        return old.worker

    def evict(self, reason: str) -> None:
        """Kill the worker and start no other until `let_back`. That is no crash. Doing it twice changes nothing."""
        with self._changed:
            seat = self._seat
            if seat is None or seat.held:
                return
            seat.held, seat.down = reason, True
            seat.evicted = seat.worker
            self._changed.notify_all()
        seat.worker.kill(f"was taken away: {reason}")

    def let_back(self) -> None:
        """Start a worker again for a model that was evicted."""
        with self._changed:
            if self._seat is not None:
                self._seat.held = ""
                self._changed.notify_all()

    def close(self) -> None:
        """Serve nothing any more and stop the worker."""
        old = self.swap(None)
        if old is not None:
            old.stop()

    def _keep(self, seat: _Seat) -> None:
        """Wait for the worker's death and put a new one into its seat, as long as the seat is the one that counts."""
        while True:
            seat.worker.wait(None)
            with self._changed:
                if seat is not self._seat:
                    return
                seat.down = True
                # It may have been let back before its death was seen here: that is no crash either.
                taken_away = bool(seat.held) or seat.evicted is seat.worker
            end = seat.worker.end()
            if taken_away:
                logger.warning("the worker of %s %s", seat.worker.manifest.release, end)
            else:
                self._count_crash(seat, end)
            fresh = self._restart(seat)
            if fresh is None:
                return
            with self._changed:
                counts, held = seat is self._seat, seat.held
                if counts:
                    seat.worker, seat.down = fresh, bool(held)
                    seat.evicted = fresh if held else None
                    self._toll = Toll(self._toll.crashes, self._toll.restarts + 1)
            if not counts:
                fresh.stop()
                return
            if held:
                fresh.kill(f"was taken away: {held}")

    def _restart(self, seat: _Seat) -> Worker | None:
        """Load the variant again until that works; None if the seat no longer counts."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: seat is not self._seat or not seat.held)
                delay_s = self._crashes.delay_s
                if self._changed.wait_for(lambda: seat is not self._seat, delay_s):
                    return None
            dead = seat.worker
            dead.stop()
            try:
                return self._loader.load(dead.path, dead.digest, dead.limits)
            except EdgemlError as error:
                self._count_crash(seat, f"could not be restarted: {error.message}")

    def _count_crash(self, seat: _Seat, reason: str) -> None:
        with self._changed:
            self._toll = Toll(self._toll.crashes + 1, self._toll.restarts)
            if seat is self._seat:
                self._crashes.add(time.monotonic())
        logger.warning("the worker of %s %s", seat.worker.manifest.release, reason)


class _Seat:
    """The place of the active worker, which outlives it."""

    __slots__ = ("down", "evicted", "held", "in_flight", "worker")

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.in_flight = 0
        self.down = False
        self.evicted: Worker | None = None
        """Who was killed by us last."""
        self.held = ""
        """Why no worker may be started; empty if one may."""
