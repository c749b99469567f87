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

from .columns import Extractor, thinned_size, thinning_step
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
        self._rings = [_Ring(spec, side == "in", index) for spec, side, index in kept]
        self._filled = 0
        self._bins = [len(column.spacings) + 1 for column in monitor.columns]
        self._offsets = np.concatenate([[0], np.cumsum(self._bins)]).astype(np.intp)
        self._edges = [np.asarray(column.edges, np.float32) for column in monitor.columns]
        self._confidence = next(
            (i for i, column in enumerate(monitor.columns) if column.statistic is Statistic.CONFIDENCE), None
        )
        self._centre = np.array([[column.centre] for column in monitor.columns])
        self._spread = np.array([[column.spread] for column in monitor.columns])
        self._numeric = np.array([[not column.is_categorical] for column in monitor.columns])
        self._reset()

    def observe(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Remember one request of any batch size; arrays are copied."""
        samples = 1
        if inputs and inputs[0].ndim:
            samples = inputs[0].shape[0]
        if samples == 1:
            position = self._filled
            for ring in self._rings:
                source = inputs[ring.index] if ring.is_input else outputs[ring.index]
                ring.rows[position] = source.reshape(-1)[:: ring.step]
            self._filled = position + 1
            if position + 1 == RING_ROWS:
                self._flush()
            return
        for row in range(samples):
            self.observe(
                [array[row : row + 1] for array in inputs], [array[row : row + 1] for array in outputs]
            )

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
        values = self._extractor.extract({ring.name: ring.rows[:filled] for ring in self._rings})
        finite = np.isfinite(values)
        index = np.empty(values.shape, np.intp)
        for position, column in enumerate(self._monitor.columns):
            last = len(column.spacings) - 1
            if column.is_categorical:
                codes = np.where(finite[position], values[position], last)
                index[position] = np.where((codes < 0) | (codes > last), last, codes)
            else:
                index[position] = self._edges[position].searchsorted(values[position], "right")
        index[~finite] = (np.array(self._bins)[:, None] - 1).repeat(filled, axis=1)[~finite]
        index += self._offsets[:-1, None]
        self._counts += np.bincount(index.ravel(), minlength=len(self._counts))
        standard = np.clip(
            (values.astype(np.float64) - self._centre) / self._spread, -STANDARD_LIMIT, STANDARD_LIMIT
        )
        standard = np.where(finite & self._numeric, standard, 0.0)
        self._sums += np.rint(standard * STANDARD_SCALE).astype(np.int64).sum(axis=1)
        self._squares += np.rint(standard * standard * STANDARD_SCALE).astype(np.int64).sum(axis=1)
        self._rows += filled
        if self._confidence is not None and self._monitor.confidence_low is not None:
            # A confidence that is not finite is counted as low: nothing could be less sure.
            self._low += int((~(values[self._confidence] >= self._monitor.confidence_low)).sum())


class _Ring:
    """Rows of one tensor that wait to be counted."""

    def __init__(self, spec: TensorSpec, is_input: bool, index: int) -> None:
        self.name = spec.name
        self.is_input = is_input
        self.index = index
        self.step = thinning_step(spec.sample_elements)
        self.rows = np.zeros((RING_ROWS, thinned_size(spec.sample_elements)), spec.dtype.value)
