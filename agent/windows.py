"""Windows: counts of what each release did on this device in a closed span of time.

Decides which counters an outcome moves, under which release a late label counts (the one that made the prediction, in
the window in which the label comes), and how many predictions are remembered. Pure; the caller brings the time and
holds the lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from edgeml.ids import Digest, ReleaseId
from edgeml.sketch import Sketch
from edgeml.telemetry import LATENCY_BINS, Counters, Window, latency_bin

PREDICTIONS_MAX: Final = 4096
"""Predictions that are remembered for late labels."""


@dataclass(frozen=True, slots=True)
class ReleaseKey:
    """A release and the content that served under its name."""

    release: ReleaseId
    digest: Digest


@dataclass(frozen=True, slots=True)
class Observed:
    """What the worker counted since it was last asked."""

    sketch: Sketch | None
    low_confidence: int
    memory_bytes: int


@dataclass(slots=True)
class _Open:
    """The open window of one release."""

    counters: Counters = field(default_factory=Counters)
    latency: list[int] = field(default_factory=lambda: [0] * LATENCY_BINS)


class Windows:
    """The open windows of a device."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._open: dict[ReleaseKey, _Open] = {}
        self._predictions: OrderedDict[str, tuple[ReleaseKey, int]] = OrderedDict()
        self._began_s: float | None = None

    def answered(
        self, key: ReleaseKey, latency_us: float, predicted: int | None, request_id: str, *, slow: bool
    ) -> None:
        """Count an answer, and remember what was predicted."""
        window = self._window(key)
        window.counters = window.counters.plus(Counters(inferences=1, slow=int(slow)))
        window.latency[latency_bin(latency_us)] += 1
        if predicted is not None:
            self._predictions[request_id] = (key, predicted)
            if len(self._predictions) > PREDICTIONS_MAX:
                self._predictions.popitem(last=False)

    def failed(self, key: ReleaseKey) -> None:
        """Count a request that got no answer."""
        window = self._window(key)
        window.counters = window.counters.plus(Counters(errors=1))

    def labelled(self, request_id: str, label: int) -> bool:
        """Count a label; False if the prediction is not remembered (any more), or had its label."""
        found = self._predictions.pop(request_id, None)
        if found is None:
            return False
        key, predicted = found
        window = self._window(key)
        window.counters = window.counters.plus(Counters(labelled=1, wrong=int(predicted != label)))
        return True

    def due(self, now_s: float) -> bool:
        """Tell whether it is time to close; the first call begins the span."""
        if self._began_s is None:
            self._began_s = now_s
        return now_s - self._began_s >= self._window_s

    def close(self, now_ms: int, now_s: float, observations: Mapping[ReleaseKey, Observed]) -> list[Window]:
        """Return the windows that have something to say, and begin new ones."""
        began_s = now_s if self._began_s is None else self._began_s
        duration_ms = max(0, round((now_s - began_s) * 1000))
        closed = []
        for key in sorted({*self._open, *observations}, key=lambda one: (one.release, one.digest)):
            opened = self._open.get(key, _Open())
            observed = observations.get(key, Observed(None, 0, 0))
            counters = opened.counters.plus(Counters(low_confidence=observed.low_confidence))
            seen = observed.sketch is not None and observed.sketch.rows > 0
            if counters == Counters() and not seen:
                continue
            while opened.latency and not opened.latency[-1]:
                opened.latency.pop()
            closed.append(
                Window(
                    seq=0,
                    release=key.release,
                    digest=key.digest,
                    started_at_ms=now_ms - duration_ms,
                    duration_ms=duration_ms,
                    counters=counters,
                    latency=tuple(opened.latency),
                    sketch=observed.sketch if seen else None,
                    memory_bytes=observed.memory_bytes,
                )
            )
        self._open = {}
        self._began_s = now_s
        return closed

    def _window(self, key: ReleaseKey) -> _Open:
        return self._open.setdefault(key, _Open())


__all__ = ["PREDICTIONS_MAX", "Observed", "ReleaseKey", "Windows"]
