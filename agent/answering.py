"""Answers requests of this device's users, and counts what came of them.

Decides what a request becomes: an answer of whichever variant of the model serves, an entry in the open window, and a
remembered prediction that a later label can be compared with. HTTP threads, the main loop and the update threads meet
here, so everything shared is behind one lock that is never held while a model runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Final

from edgeml.clock import Clock
from edgeml.errors import BackendError, ConfigError, EdgemlError
from edgeml.ids import Digest, ModelName, ReleaseId
from edgeml.manifest import Manifest
from edgeml.sketch import merge
from edgeml.telemetry import Window

from .ipc import TensorBytes
from .line import NO_DEADLINE
from .misfit import MisfitError
from .roster import Roster
from .sampler import Sampler
from .serving import NoModelError, Served, Serving
from .shadow import Shadow
from .supervisor import Worker
from .turnstile import Turnstile
from .windows import Observed, ReleaseKey, Total, Windows

logger = logging.getLogger(__name__)

MODEL_CHARACTERS_MAX: Final = 80
"""How much of a name that came from outside is repeated."""


class Answering:
    """What the local endpoint asks, and what the windows are closed from."""

    def __init__(
        self,
        roster: Roster,
        windows: Windows,
        clock: Clock,
        turnstile: Turnstile | None = None,
        *,
        sampler: Sampler | None = None,
    ) -> None:
        self.lock = threading.Lock()
        """Guards the windows."""
        self._turnstile = turnstile or Turnstile()
        self._roster = roster
        self._windows = windows
        self._clock = clock
        self._sampler = sampler
        self._retired: dict[ReleaseKey, Observed] = {}
        self._slow_ms: dict[Digest, float | None] = {}
        self._closed: list[Window] = []
        self._shadows: dict[str, Shadow] = {}

    def models(self) -> tuple[ModelName, ...]:
        """Which models serve now."""
        return self._roster.models

    def manifest(self, model: str) -> Manifest | None:
        """What serves under this name now; None if nothing does."""
        active = self._active(model)
        return None if active is None else active.manifest

    def ready(self, model: str) -> bool:
        """Whether a request to this model would be answered."""
        active = self._active(model)
        return active is not None and active.alive

    def infer(
        self, model: str, tensors: Sequence[TensorBytes], request_id: str, deadline_s: float = NO_DEADLINE
    ) -> Served:
        """Answer one request and count it.

        Raises:
            NoModelError: No model of this name serves.
            ShedError: The request was turned away to spare the device.
            EdgemlError: As `Serving.infer`.
        """
        seat = self._seat(model)
        try:
            with self._turnstile.passing(model):
                served = seat.infer(tensors, deadline_s)
        except MisfitError as error:
            self.misfit(model, error)
            raise
        except BackendError:
            self._failed(seat)
            raise
        return self._answered(model, tensors, served, request_id)

    async def infer_in_loop(
        self, model: str, tensors: Sequence[TensorBytes], request_id: str, deadline_s: float = NO_DEADLINE
    ) -> Served:
        """The same for an event loop, without a thread.

        Raises:
            EdgemlError: As `infer`.
        """
        if not self._turnstile.is_open(model):
            import asyncio  # 4 MB, which a loop has already and a device without an endpoint never needs

            # Whoever is slowed down waits, and a loop must not.
            return await asyncio.to_thread(self.infer, model, tensors, request_id, deadline_s)
        seat = self._seat(model)
        try:
            with self._turnstile.passing(model):
                served = await seat.infer_in_loop(tensors, deadline_s)
        except MisfitError as error:
            self.misfit(model, error)
            raise
        except BackendError:
            self._failed(seat)
            raise
        return self._answered(model, tensors, served, request_id)

    def _seat(self, model: str) -> Serving:
        seat = self._roster.find(model)
        if seat is None:
            raise NoModelError(
                f"no model {model[:MODEL_CHARACTERS_MAX]} serves on this device",
                hint="assign or flash a release of it",
            )
        return seat

    def _failed(self, seat: Serving) -> None:
        active = seat.active
        if active is not None:
            with self.lock:
                self._windows.failed(ReleaseKey(active.manifest.release, active.digest))

    def _answered(
        self, model: str, tensors: Sequence[TensorBytes], served: Served, request_id: str
    ) -> Served:
        """Count an answer, and show it to whoever looks at some of them."""
        shadow = self._shadows.get(model)
        if shadow is not None:
            shadow.offer(tensors, served.answer)
        key = ReleaseKey(served.manifest.release, served.digest)
        answer = served.answer
        with self.lock:
            self._windows.answered(
                key, answer.latency_us, answer.predicted, request_id, slow=self._is_slow(served)
            )
        if self._sampler is not None:
            self._sampler.offer(served, tensors, request_id)
        return served

    def misfit(self, model: str, error: MisfitError) -> None:
        """Count a request to a model whose tensors are not what it takes."""
        seat = self._roster.find(model)
        active = None if seat is None else seat.active
        if active is not None:
            with self.lock:
                self._windows.misfit(ReleaseKey(active.manifest.release, active.digest), error.counted)

    def feedback(self, model: str, request_id: str, label: int | str) -> bool:
        """Hear what an earlier request to a model really showed; False if that request is not remembered.

        Raises:
            ConfigError: The label is none of the model's.
        """
        code = self._code(model, label)
        with self.lock:
            return self._windows.labelled(model, request_id, code)

    def totals(self) -> dict[ReleaseId, Total]:
        """Say what each release did since the agent started."""
        with self.lock:
            return self._windows.totals()

    def expect(self, worker: Worker) -> None:
        """Hear of a worker that is about to serve: its monitor says which answers are slow, and its window begins now.

        Were it to begin with the device's last window, the fleet could not tell that a rollout came before it.
        """
        self._slow_ms[worker.digest] = worker.latency_slow_ms
        closed = self.close(self._clock.now_ms())
        with self.lock:
            self._closed += closed

    def shadow(self, model: ModelName, shadow: Shadow | None) -> None:
        """Let a newcomer answer this model's requests unseen; None ends that."""
        if shadow is None:
            self._shadows.pop(model, None)
        else:
            self._shadows[model] = shadow

    def retire(self, worker: Worker) -> None:
        """Take the last counts of a worker that is about to be stopped."""
        if not worker.alive:
            return
        try:
            observed = _observed(worker)
        except EdgemlError as error:
            logger.warning("the counts of %s cannot be taken: %s", worker.manifest.release, error.message)
            return
        with self.lock:
            self._keep(ReleaseKey(worker.manifest.release, worker.digest), observed)

    def close(self, now_ms: int) -> list[Window]:
        """Close the open windows and return all that are closed and were not returned yet."""
        volumes = {}
        for worker in self._roster.workers.values():
            self.retire(worker)
            expected = worker.manifest.expected
            if expected is not None and expected.volume is not None:
                volumes[ReleaseKey(worker.manifest.release, worker.digest)] = expected.volume
        with self.lock:
            observations, self._retired = self._retired, {}
            closed, self._closed = self._closed, []
            return closed + self._windows.close(now_ms, self._clock.monotonic_s(), observations, volumes)

    def _keep(self, key: ReleaseKey, observed: Observed) -> None:
        earlier = self._retired.get(key)
        if earlier is not None:
            sketch = observed.sketch
            if earlier.sketch is not None:
                sketch = earlier.sketch if sketch is None else merge(earlier.sketch, sketch)
            observed = Observed(
                sketch,
                earlier.low_confidence + observed.low_confidence,
                max(earlier.memory_bytes, observed.memory_bytes),
                earlier.quality.plus(observed.quality),
            )
        self._retired[key] = observed

    def _is_slow(self, served: Served) -> bool:
        limit = self._slow_ms.get(served.digest)
        return limit is not None and served.answer.latency_us / 1000 > limit

    def _active(self, model: str) -> Worker | None:
        seat = self._roster.find(model)
        return None if seat is None else seat.active

    def _code(self, model: str, label: int | str) -> int:
        if isinstance(label, int):
            return label
        manifest = self.manifest(model)
        labels = manifest.labels if manifest else ()
        if label not in labels:
            raise ConfigError(
                f"the model has no label {label!r}",
                hint=f"one of {', '.join(labels[:20])}" if labels else "give its number",
            )
        return labels.index(label)


def _observed(worker: Worker) -> Observed:
    taken = worker.take()
    return Observed(taken.sketch, taken.low_confidence, taken.memory_bytes, taken.quality)
