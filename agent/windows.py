"""Windows: counts of what each release did on this device in a closed span of time.

Decides which counters an outcome moves, what all windows since the agent's start add up to, under which release a late
label counts (the one that made the prediction, in the window in which the label comes), and how many predictions of each
model are remembered. Pure; the caller brings the time and holds the lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final

from edgeml.expectation import Volume
from edgeml.ids import Digest, ReleaseId
from edgeml.sketch import Sketch
from edgeml.telemetry import (
    LATENCY_BINS,
    NO_VIOLATIONS,
    Counters,
    InputQuality,
    Window,
    latency_bin,
)

PREDICTIONS_MAX: Final = 4096
"""Predictions of a model that are remembered for late labels."""
REQUEST_ID_MAX: Final = 128
"""Characters of an id above which its prediction is not remembered: ids come from callers."""

RELEASES_MAX: Final = 16
"""Releases whose totals are kept."""

_NOTHING: Final = Counters()


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
    quality: InputQuality = NO_VIOLATIONS


@dataclass(frozen=True, slots=True)
class Total:
    """What a release did since the agent started. Never shrinks.

    `latency` has a count for each bin of `edgeml.telemetry.LATENCY_BINS`, `latency_ns` is the sum. Answers of low
    confidence and most of `quality` are those of closed windows: only the worker knows of them, until it is asked.
    """

    counters: Counters = _NOTHING
    latency: tuple[int, ...] = (0,) * LATENCY_BINS
    latency_ns: int = 0
    quality: InputQuality = NO_VIOLATIONS

    def plus(self, opened: _Open, low_confidence: int, quality: InputQuality) -> Total:
        """Add what a window counted."""
        return Total(
            self.counters.plus(opened.counters(low_confidence)),
            tuple(map(sum, zip_longest(self.latency, opened.latency, fillvalue=0))),
            self.latency_ns + opened.latency_ns,
            self.quality.plus(quality),
        )


@dataclass(slots=True)
class _Open:
    """The open window of one release. Plain numbers: this is counted up on every inference."""

    inferences: int = 0
    errors: int = 0
    slow: int = 0
    labelled: int = 0
    wrong: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * LATENCY_BINS)
    latency_ns: int = 0
    quality: InputQuality = NO_VIOLATIONS

    def counters(self, low_confidence: int) -> Counters:
        """Say what was counted."""
        return Counters(
            inferences=self.inferences,
            errors=self.errors,
            low_confidence=low_confidence,
            slow=self.slow,
            labelled=self.labelled,
            wrong=self.wrong,
        )


class Windows:
    """The open windows of a device, `window_s` seconds long."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._open: dict[ReleaseKey, _Open] = {}
        self._predictions: dict[str, OrderedDict[str, tuple[ReleaseKey, int]]] = {}
        """By model, then by request."""
        self._began_s: float | None = None
        self._past: dict[ReleaseId, Total] = {}

    def answered(
        self, key: ReleaseKey, latency_us: float, predicted: int | None, request_id: str, *, slow: bool
    ) -> None:
        """Count an answer, and remember what was predicted if it was a class and the id is not longer than allowed."""
        window = self._window(key)
        window.inferences += 1
        window.slow += slow
        window.latency[latency_bin(latency_us)] += 1
        window.latency_ns += round(latency_us * 1000)
        if predicted is not None and len(request_id) <= REQUEST_ID_MAX:
            remembered = self._predictions.setdefault(key.release.partition("@")[0], OrderedDict())
            # The newest prediction of an id counts, and is the last to be forgotten.
            remembered.pop(request_id, None)
            remembered[request_id] = (key, predicted)
            if len(remembered) > PREDICTIONS_MAX:
                remembered.popitem(last=False)

    def failed(self, key: ReleaseKey) -> None:
        """Count a request that got no answer."""
        self._window(key).errors += 1

    def misfit(self, key: ReleaseKey, counted: InputQuality) -> None:
        """Count a request whose tensors are not what the model takes."""
        window = self._window(key)
        window.quality = window.quality.plus(counted)

    def labelled(self, model: str, request_id: str, label: int) -> bool:
        """Count a label; False if the model's prediction is not remembered (any more), or had its label."""
        found = self._predictions.get(model, OrderedDict()).pop(request_id, None)
        if found is None:
            return False
        key, predicted = found
        window = self._window(key)
        window.labelled += 1
        window.wrong += predicted != label
        return True

    def totals(self) -> dict[ReleaseId, Total]:
        """Say what each release did in the windows that are closed and in those that are open.

        The RELEASES_MAX releases that did something last; what came before them is forgotten.
        """
        totals = dict(self._past)
        for key, opened in self._open.items():
            totals[key.release] = totals.get(key.release, Total()).plus(opened, 0, opened.quality)
        return totals

    def due(self, now_s: float) -> bool:
        """Tell whether it is time to close; the first call begins the span."""
        if self._began_s is None:
            self._began_s = now_s
        return now_s - self._began_s >= self._window_s

    def close(
        self,
        now_ms: int,
        now_s: float,
        observations: Mapping[ReleaseKey, Observed],
        volumes: Mapping[ReleaseKey, Volume] | None = None,
    ) -> list[Window]:
        """Return the windows that have something to say, and begin new ones.

        `volumes` are how many requests are expected of what serves. Windows that were closed early are not judged by it.
        """
        is_whole = self._began_s is not None and now_s - self._began_s >= self._window_s
        began_s = now_s if self._began_s is None else self._began_s
        duration_ms = max(0, round((now_s - began_s) * 1000))
        closed = []
        for key in sorted({*self._open, *observations}, key=lambda one: (one.release, one.digest)):
            opened = self._open.get(key) or _Open()
            observed = observations.get(key, Observed(None, 0, 0))
            counters = opened.counters(observed.low_confidence)
            seen = observed.sketch is not None and observed.sketch.rows > 0
            quality = opened.quality.plus(observed.quality)
            volume = (volumes or {}).get(key)
            if volume is not None and is_whole:
                quality = quality.plus(_judged(volume, counters, quality, duration_ms / 1000))
            if counters == Counters() and not seen and quality == NO_VIOLATIONS:
                continue
            self._remember(key.release, opened, counters.low_confidence, quality)
            while opened.latency and not opened.latency[-1]:
                opened.latency.pop()
            closed.append(
                Window(
                    seq=0,
                    release=key.release,
                    digest=key.digest,
                    # A clock that has not been set yet stands near 1970; no time is before it.
                    started_at_ms=max(0, now_ms - duration_ms),
                    duration_ms=duration_ms,
                    counters=counters,
                    latency=tuple(opened.latency),
                    sketch=observed.sketch if seen else None,
                    memory_bytes=observed.memory_bytes,
                    quality=quality,
                )
            )
        self._open = {}
        self._began_s = now_s
        return closed

    def _remember(
        self, release: ReleaseId, opened: _Open, low_confidence: int, quality: InputQuality
    ) -> None:
        # Taken out and put in again, so that the first one is the one that has been idle for longest.
        self._past[release] = self._past.pop(release, Total()).plus(opened, low_confidence, quality)
        if len(self._past) > RELEASES_MAX:
            del self._past[next(iter(self._past))]

    def _window(self, key: ReleaseKey) -> _Open:
        window = self._open.get(key)
        if window is None:
            window = self._open[key] = _Open()
        return window


def _judged(volume: Volume, counters: Counters, quality: InputQuality, duration_s: float) -> InputQuality:
    # Whatever became of them: a sensor that sends nonsense still sends.
    requests = counters.inferences + counters.errors + quality.schema + quality.dtype + quality.refused
    return InputQuality(
        volume_low=volume.is_low(requests, duration_s), volume_high=volume.is_high(requests, duration_s)
    )


__all__ = ["PREDICTIONS_MAX", "RELEASES_MAX", "REQUEST_ID_MAX", "Observed", "ReleaseKey", "Total", "Windows"]
