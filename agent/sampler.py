"""The sampler: keeps inputs of some requests for the fleet, if the device's settings ask for it.

Decides what a request must be to be sampled (one sample, not more at once), and how it becomes a row. Which requests
are chosen is `selection`'s business. HTTP threads offer, the main loop takes; so there is a lock, and an input is copied
only if it is chosen and packed only when it is taken.
"""

from __future__ import annotations

import random
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeml.clock import Clock
from edgeml.telemetry import (
    TENSOR_BYTES_MAX,
    Sample,
    SampledTensor,
    Why,
    encode_row,
)

from .confidence import confidence
from .config import SamplesConfig
from .ipc import TensorBytes
from .selection import Lane, Limits, Verdict, lanes
from .serving import Served
from .windows import REQUEST_ID_MAX

_DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that may be sampled. `inputs` is empty if they are too long to be kept at all."""

    served: Served
    inputs: tuple[TensorBytes, ...]
    request: str
    confidence: float | None
    at_ms: int


@dataclass(frozen=True, slots=True)
class Taken:
    """Rows to be kept, and how many were chosen and are too long."""

    samples: tuple[Sample, ...]
    too_long: int


@dataclass(frozen=True, slots=True)
class _Packed:
    """A sample as it goes into the buffer."""

    seen: Seen
    row: Sample
    length_bytes: int


class Sampler:
    """Samples the requests of one device. Thread-safe. `seed` decides what goes by lot."""

    def __init__(self, config: SamplesConfig, clock: Clock, seed: str) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._packed: dict[Why, _Packed] = {}
        limits = Limits(
            config.bytes_per_day, config.rows_per_hour, config.row_bytes_max, config.confidence_max
        )
        self._lanes: tuple[Lane[Seen], ...] = lanes(
            config.select, limits, random.Random(seed), clock.monotonic_s()
        )

    def offer(self, served: Served, tensors: Sequence[TensorBytes], request_id: str) -> None:
        """Show a request that was answered. Its tensors may be reused by the caller afterwards."""
        if any(tensor.shape and tensor.shape[0] != 1 for tensor in tensors[:1]):
            return
        manifest, outputs = served.manifest.surface, served.answer.outputs
        sure = confidence(outputs[0], manifest.outputs[0], manifest.scores) if outputs else None
        with self._lock:
            wanting = [lane for lane in self._lanes if lane.wants(sure)]
            if not wanting:
                return
            fits = all(len(tensor.data) <= TENSOR_BYTES_MAX for tensor in tensors)
            kept = (
                tuple(TensorBytes(one.dtype, one.shape, bytes(one.data)) for one in tensors) if fits else ()
            )
            request = request_id if len(request_id) <= REQUEST_ID_MAX else ""
            for lane in wanting:
                lane.put(Seen(served, kept, request, sure, self._clock.now_ms()))

    def take(self) -> Taken:
        """Take what the budget pays for now: one row a lane at most."""
        samples: list[Sample] = []
        too_long = 0
        now_s = self._clock.monotonic_s()
        for lane in self._lanes:
            with self._lock:
                seen = lane.candidate(now_s)
            if seen is None:
                continue
            # Packed without the lock, for a caller must not wait for it, and once, though it may wait for the budget.
            packed = self._packed.get(lane.why)
            if packed is None or packed.seen is not seen:
                packed = self._packed[lane.why] = _packed(seen, lane.why)
            with self._lock:
                # Another one may be the candidate by now.
                is_it = lane.candidate(now_s) is seen
                verdict = lane.settle(packed.length_bytes, now_s) if is_it else Verdict.WAIT
            if verdict is not Verdict.WAIT:
                del self._packed[lane.why]
            if verdict is Verdict.TAKEN:
                samples.append(packed.row)
            elif verdict is Verdict.TOO_LONG:
                too_long += 1
        return Taken(tuple(samples), too_long)


def _packed(seen: Seen, why: Why) -> _Packed:
    row = _row(seen, why)
    return _Packed(seen, row, len(encode_row(row)) if seen.inputs else TENSOR_BYTES_MAX + 1)


def _row(seen: Seen, why: Why) -> Sample:
    manifest = seen.served.manifest.surface
    return Sample(
        seq=0,
        release=manifest.release,
        digest=seen.served.digest,
        request=seen.request,
        inputs=tuple(
            SampledTensor(spec.name, tensor.dtype, tuple(tensor.shape), zlib.compress(tensor.data))
            for spec, tensor in zip(manifest.inputs, seen.inputs, strict=False)
        ),
        at_ms=seen.at_ms,
        why=why,
        predicted=seen.served.answer.predicted,
        confidence=None if seen.confidence is None else round(seen.confidence, _DIGITS),
    )
