"""The turnstile: how requests feel what the governor has decided.

Decides how long a request to a slowed-down model waits, and which are turned away, with a time to come back. Nothing is
looked up twice for a model that is left alone: that is every request on a healthy device.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from edgeml.errors import BudgetError
from edgeml.ids import ModelName

from .governor import Measure, Treatment

WAIT_MAX_S: Final = 2.0
"""A request whose turn comes later is turned away; the caller waits better than a thread does."""
SHED_RETRY_S: Final = 30
_OPEN: Final = nullcontext()


class ShedError(BudgetError):
    """A request was turned away to spare the device; it may come again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(
            message, budget=0, observed=1, unit="requests", hint="ask again later, or less often"
        )
        self.retry_after_s = retry_after_s


class Turnstile:
    """Lets requests through to models. Thread-safe."""

    def __init__(self) -> None:
        self._gates: dict[str, _Gate] = {}
        self._passed_s: dict[str, float] = {}
        self._turned_away: dict[str, int] = {}
        self._lock = threading.Lock()

    def treat(self, model: ModelName, treatment: Treatment) -> None:
        """Hear what is done to a model from now on."""
        if treatment.measure >= Measure.SHED or treatment.duty < 1:
            self._gates[model] = _Gate(model, treatment)
        else:
            self._gates.pop(model, None)

    def is_open(self, model: str) -> bool:
        """Whether a request would neither wait nor be turned away."""
        return model not in self._gates

    def passing(self, model: str) -> AbstractContextManager[None]:
        """Let a request through; it is on its way as long as the context is open.

        Raises:
            ShedError: It is turned away.
        """
        self._passed_s[model] = time.monotonic()
        gate = self._gates.get(model)
        return _OPEN if gate is None else self._through(gate)

    def idle_s(self, model: ModelName, now_s: float) -> float:
        """Say how long nobody has asked a model; without bound if nobody ever has."""
        return now_s - self._passed_s.get(model, float("-inf"))

    @property
    def turned_away(self) -> dict[ModelName, int]:
        """Requests that were turned away, by model; counts never shrink."""
        with self._lock:
            return {ModelName(model): count for model, count in self._turned_away.items()}

    @contextmanager
    def _through(self, gate: _Gate) -> Iterator[None]:
        try:
            gate.enter()
        except ShedError:
            with self._lock:
                self._turned_away[gate.model] = self._turned_away.get(gate.model, 0) + 1
            raise
        started_s = time.monotonic()
        try:
            yield
        finally:
            gate.leave(time.monotonic() - started_s)


class _Gate:
    """The way to one model that is slowed down or closed."""

    def __init__(self, model: ModelName, treatment: Treatment) -> None:
        self.model = model
        self._treatment = treatment
        self._lock = threading.Lock()
        self._free_s = 0.0

    def enter(self) -> None:
        if self._treatment.measure >= Measure.SHED:
            raise ShedError(f"{self.model} turns requests away to spare this device", SHED_RETRY_S)
        until_s = time.monotonic() + WAIT_MAX_S
        # One at a time, as the worker answers: the next one's turn follows from how long this one takes.
        if not self._lock.acquire(timeout=WAIT_MAX_S):
            raise self._busy(WAIT_MAX_S)
        pause_s = self._free_s - time.monotonic()
        if time.monotonic() + pause_s > until_s:
            self._lock.release()
            raise self._busy(pause_s)
        if pause_s > 0:
            time.sleep(pause_s)

    def leave(self, busy_s: float) -> None:
        self._free_s = time.monotonic() + busy_s * (1 / self._treatment.duty - 1)
        self._lock.release()

    def _busy(self, pause_s: float) -> ShedError:
        percent = self._treatment.duty * 100
        return ShedError(
            f"{self.model} works {percent:.0f} % of the time to spare this device, and is busy",
            max(round(pause_s), 1),
        )
