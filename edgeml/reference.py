"""Builds a monitor from reference data: what the model saw and answered when it was judged good.

Decides which columns are worth counting for which kind of model, where the bins lie (at order statistics of the
reference) and how much reference mass each holds. Source: uniform spacings give the exact law of bin masses between
order statistics of an iid continuous sample (Dirichlet); for discrete data the counts plus one half are used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from .columns import Extractor, Floats, thin, thinned_size
from .errors import ConfigError
from .expectation import InputExpectation
from .manifest import Manifest, Task
from .monitor import Column, Monitor, Statistic
from .tensors import DType, TensorSpec

ELEMENTS_MAX: Final = 64
"""Tensors of rank one with at most so many elements are counted element by element."""
PROJECTIONS: Final = 8
BINS_INPUT: Final = 16
BINS_OUTPUT: Final = 32
CODES_MAX: Final = 254
LOW_CONFIDENCE_FRACTION: Final = 0.05
"""The fraction of reference answers that count as of low confidence."""
ROWS_MIN: Final = 32
MARGIN_FRACTION: Final = 0.1
"""By how much of the reference's range an input may leave it before that is called a violation."""
_PLACEHOLDER: Final = (1.0, 1.0)

Arrays = Mapping[str, npt.NDArray[np.generic]]


def build_monitor(
    manifest: Manifest, inputs: Arrays, outputs: Arrays, latency_slow_ms: float | None = None
) -> Monitor:
    """Make the monitor of a variant.

    Args:
        manifest: names, shapes and meaning of the tensors.
        inputs: per input name, [rows, ...], as the model takes them.
        outputs: per output name, [rows, ...], as the model gives them.
        latency_slow_ms: what counts as slow, if anything does.

    Raises:
        ConfigError: Fewer than ROWS_MIN rows, or values that are not finite.
    """
    planned = plan(manifest)
    specs = tuple(
        spec for spec in (*manifest.inputs, *manifest.outputs) if any(c.tensor == spec.name for c in planned)
    )
    arrays = {**inputs, **outputs}
    rows = len(arrays[specs[0].name])
    if rows < ROWS_MIN:
        raise ConfigError(
            f"{rows} reference samples are too few",
            hint=f"give at least {ROWS_MIN}; some hundreds are better",
        )
    thinned = {spec.name: thin(np.asarray(arrays[spec.name]), rows) for spec in specs}
    values = Extractor(planned, specs, manifest.scores).extract(thinned)
    if not np.isfinite(values).all():
        name = planned[int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])].name
        raise ConfigError(
            f"the reference data give values that are not finite in {name}",
            hint="remove NaN and infinity from the data",
        )
    columns = tuple(_fit(column, values[i], manifest) for i, column in enumerate(planned))
    confidence = next(
        (values[i] for i, column in enumerate(planned) if column.statistic is Statistic.CONFIDENCE), None
    )
    low = None if confidence is None else float(np.quantile(confidence, LOW_CONFIDENCE_FRACTION))
    return Monitor(columns=columns, reference_rows=rows, confidence_low=low, latency_slow_ms=latency_slow_ms)


def expectations(specs: Sequence[TensorSpec], inputs: Arrays) -> tuple[InputExpectation, ...]:
    """Say in which range each input lies, judged by reference data: theirs, wider by MARGIN_FRACTION of it on both sides.

    Args:
        specs: the inputs, as callers give them.
        inputs: per input name, [rows, ...], finite.

    Integers whose whole type is in range have no bounds, flags and inputs without elements no expectation at all.
    """
    expected = []
    for spec in specs:
        array = np.asarray(inputs[spec.name])
        if spec.dtype is DType.BOOL or not array.size:
            continue
        lowest, highest = float(array.min()), float(array.max())
        margin = (highest - lowest) * MARGIN_FRACTION
        low, high = lowest - margin, highest + margin
        if array.dtype.kind in "iu":
            limits = np.iinfo(spec.dtype.value)
            if low <= limits.min and high >= limits.max:
                continue
            low, high = max(math.floor(low), limits.min), min(math.ceil(high), limits.max)
        expected.append(InputExpectation(spec.name, float(low), float(high)))
    return tuple(expected)


def plan(manifest: Manifest) -> tuple[Column, ...]:
    """Choose the columns, without bins yet."""
    columns: list[Column] = []
    for spec in manifest.inputs:
        columns += _summary(spec)
    for index, spec in enumerate(manifest.outputs):
        if index == 0 and manifest.task is Task.CLASSIFICATION:
            classes = spec.sample_elements
            columns += [_column(spec, Statistic.CONFIDENCE), _column(spec, Statistic.CLASS)]
            columns += [_column(spec, Statistic.SCORE, i) for i in range(min(classes, 16))]
        else:
            columns += _summary(spec)
    return tuple(columns)


def _summary(spec: TensorSpec) -> list[Column]:
    elements = thinned_size(spec.sample_elements)
    if len(spec.sample_shape) <= 1 and elements <= ELEMENTS_MAX:
        return [_column(spec, Statistic.ELEMENT, i) for i in range(elements)]
    return [
        _column(spec, Statistic.MEAN),
        _column(spec, Statistic.STD),
        *(_column(spec, Statistic.PROJECTION, i) for i in range(PROJECTIONS)),
    ]


def _column(spec: TensorSpec, statistic: Statistic, index: int = 0) -> Column:
    return Column(spec.name, statistic, index, _PLACEHOLDER)


def _fit(column: Column, values: Floats, manifest: Manifest) -> Column:
    if column.statistic is Statistic.CLASS:
        codes = min(manifest.outputs[0].sample_elements, CODES_MAX)
        counts = np.bincount(np.clip(values, 0, codes).astype(np.intp), minlength=codes + 1)
        return Column(column.tensor, column.statistic, column.index, tuple((counts + 0.5).tolist()))
    bins = BINS_OUTPUT if column.statistic in {Statistic.CONFIDENCE, Statistic.SCORE} else BINS_INPUT
    ordered = np.sort(values)
    ranks = np.rint(np.linspace(0, len(ordered) - 1, bins + 1)).astype(int)
    edges = np.unique(ordered[ranks])
    counts = np.bincount(edges.searchsorted(ordered, "right"), minlength=len(edges) + 1).astype(float)
    continuous = len(np.unique(ordered)) >= 0.99 * len(ordered)
    # Continuous: one spacing below the minimum, none of the samples; the maximum itself is the one at or above it.
    spacings = counts + np.eye(1, len(counts), 0)[0] if continuous else counts + 0.5
    spread = float(values.std())
    return Column(
        column.tensor,
        column.statistic,
        column.index,
        tuple(spacings.tolist()),
        tuple(float(edge) for edge in edges),
        float(values.mean()),
        spread if spread > 0 else 1.0,
    )
