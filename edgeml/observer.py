"""Folds inferences into a sketch, on the device.

Decides how rows wait in a ring (a copy of the thinned tensors, about a microsecond an inference) and are counted a
few hundred at a time. Costs are in `benchmarks/monitor.py`. Windows in time are the agent's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from .columns import Extractor, thin, thinned_size, thinning_step
from .ids import Digest
from .manifest import Manifest
from .monitor import Monitor, Statistic
from .monitor import digest as monitor_digest
from .sketch import STANDARD_LIMIT, STANDARD_SCALE, Sketch
from .tensors import TensorSpec

RING_ROWS: Final = 256
Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen since the last one was taken."""

    sketch: Sketch
    low_confidence: int


class Observer:
    """Counts one variant's inferences. Not thread-safe: it lives in the worker's only thread."""

    def __init__(self, monitor: Monitor, manifest: Manifest) -> None:
        self._monitor = monitor
        self._digest: Digest = monitor_digest(monitor)
        used = {column.tensor for column in monitor.columns}
        specs = [(spec, "in", i) for i, spec in enumerate(manifest.inputs)] + [
            (spec, "out", i) for i, spec in enumerate(manifest.outputs)
        ]
        kept = [(spec, side, index) for spec, side, index in specs if spec.name in used]
        self._extractor = Extractor(monitor.columns, tuple(spec for spec, _, _ in kept), manifest.scores)
        self._inputs = [_Ring(spec, index) for spec, side, index in kept if side == "in"]
        self._outputs = [_Ring(spec, index) for spec, side, index in kept if side == "out"]
        self._filled = 0
        self._bins = [len(column.spacings) + 1 for column in monitor.columns]
        self._offsets = np.concatenate([[0], np.cumsum(self._bins)]).astype(np.intp)
        self._edges = [np.asarray(column.edges, np.float32) for column in monitor.columns]
        self._confidence = next(
            (i for i, column in enumerate(monitor.columns) if column.statistic is Statistic.CONFIDENCE), None
        )
        self._centre = np.array([[column.centre] for column in monitor.columns])
        self._spread = np.array([[column.spread] for column in monitor.columns])
        self._codes = [i for i, column in enumerate(monitor.columns) if column.is_categorical]
        self._reset()

    def observe(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Remember one request of any batch size; arrays are copied."""
        samples = inputs[0].shape[0] if inputs and inputs[0].ndim else 1
        if samples != 1:
            self._observe_batch(inputs, outputs, samples)
            return
        position = self._filled
        for ring in self._inputs:
            source = inputs[ring.index]
            ring.rows[position] = source if ring.step == 1 else source.reshape(-1)[:: ring.step]
        for ring in self._outputs:
            source = outputs[ring.index]
            ring.rows[position] = source if ring.step == 1 else source.reshape(-1)[:: ring.step]
        self._filled = position + 1
        if position + 1 == RING_ROWS:
            self._flush()

    def take(self) -> Observation:
        """Return all that was counted since the last call, and start again from zero."""
        self._flush()
        counts = self._counts
        observation = Observation(
            Sketch(
                monitor=self._digest,
                rows=self._rows,
                counts=tuple(
                    tuple(counts[low:high].tolist())
                    for low, high in zip(self._offsets[:-1], self._offsets[1:], strict=True)
                ),
                sums=tuple(self._sums.tolist()),
                squares=tuple(self._squares.tolist()),
            ),
            self._low,
        )
        self._reset()
        return observation

    def _observe_batch(self, inputs: Sequence[Array], outputs: Sequence[Array], samples: int) -> None:
        first = 0
        while first < samples:
            position = self._filled
            last = min(samples, first + RING_ROWS - position)
            for rings, arrays in ((self._inputs, inputs), (self._outputs, outputs)):
                for ring in rings:
                    rows = ring.rows[position : position + last - first]
                    rows[:] = thin(arrays[ring.index][first:last], last - first).reshape(rows.shape)
            self._filled = position + last - first
            first = last
            if self._filled == RING_ROWS:
                self._flush()

    def _reset(self) -> None:
        self._counts = np.zeros(int(self._offsets[-1]), np.int64)
        self._sums = np.zeros(len(self._bins), np.int64)
        self._squares = np.zeros(len(self._bins), np.int64)
        self._rows = 0
        self._low = 0

    def _flush(self) -> None:
        filled, self._filled = self._filled, 0
        if not filled:
            return
        values = self._extractor.extract(
            {ring.name: ring.rows[:filled].reshape(filled, -1) for ring in (*self._inputs, *self._outputs)}
        )
        finite = np.isfinite(values)
        index = np.empty(values.shape, np.intp)
        for position, column in enumerate(self._monitor.columns):
            last = len(column.spacings) - 1
            if column.is_categorical:
                codes = np.where(finite[position], values[position], last)
                index[position] = np.where((codes < 0) | (codes > last), last, codes)
            else:
                index[position] = self._edges[position].searchsorted(values[position], "right")
        if not finite.all():
            index[~finite] = (np.array(self._bins)[:, None] - 1).repeat(filled, axis=1)[~finite]
        index += self._offsets[:-1, None]
        self._counts += np.bincount(index.ravel(), minlength=len(self._counts))
        standard = values - self._centre
        standard /= self._spread
        np.clip(standard, -STANDARD_LIMIT, STANDARD_LIMIT, out=standard)
        standard[~finite] = 0.0
        standard[self._codes] = 0.0
        # All are whole numbers far below 2^53, so float64 adds them without error.
        self._sums += np.rint(standard * STANDARD_SCALE).sum(axis=1).astype(np.int64)
        standard *= standard
        self._squares += np.rint(standard * STANDARD_SCALE).sum(axis=1).astype(np.int64)
        self._rows += filled
        if self._confidence is not None and self._monitor.confidence_low is not None:
            # A confidence that is not finite is counted as low: nothing could be less sure.
            self._low += int((~(values[self._confidence] >= self._monitor.confidence_low)).sum())


class _Ring:
    """Rows of one tensor that wait to be counted: [RING_ROWS, 1, ...] as the tensor is, or [RING_ROWS, kept elements]."""

    def __init__(self, spec: TensorSpec, index: int) -> None:
        self.name = spec.name
        self.index = index
        self.step = thinning_step(spec.sample_elements)
        whole = self.step == 1
        shape = (
            (1, *(max(size, 1) for size in spec.sample_shape))
            if whole
            else (thinned_size(spec.sample_elements),)
        )
        self.rows = np.zeros((RING_ROWS, *shape), spec.dtype.value)
