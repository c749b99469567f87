"""Looks at the values of samples, column by column: missing, infinite, out of range, constant.

Decides what a column is (an element of a row, a channel of an image, else the whole sample), and how grave it is that a
value is not expected. Where the bundle would refuse or clip it on a device, it is a violation. Where it would only count
it, or only its monitor has not seen such values (its range, wider by MARGIN_FRACTION on both sides), it is one if chance
does not explain so many: of n samples of the same kind as m others, k or more lie above the highest of those with
probability (n / (n + m))^k at most. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeml.expectation import InputExpectation, Policy
from edgeml.monitor import Column, Statistic
from edgeml.reference import MARGIN_FRACTION

from .array_file import Array
from .data_file import NamedArray
from .data_finding import Finding, Kind, Severity
from .data_shape import layout_of

COLUMNS_SHOWN: Final = 5
"""So many columns are named for each kind of finding; the others are counted."""
FEW_FRACTION: Final = 0.01
"""Where nobody knows how many samples the bundle's range comes from: so many may lie outside by chance."""
CHANCE: Final = 0.001
"""How improbable it must be that chance alone puts so many samples outside, over all columns of an array."""
COLUMNS_MAX: Final = 4096

_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Columns:
    """Samples as [samples, columns, elements], and the columns' names."""

    names: tuple[str, ...]
    values: Array


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where values may lie: for each column, or one for all (length 1). Infinite where nothing is stated."""

    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    source: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a bundle's reference: how many samples it had (0: nobody knows), and the range of each column."""

    rows: int = 0
    bounds: Bounds | None = None


def columns_of(named: NamedArray, values: Array, layout: str = "") -> Columns:
    """Split samples [samples, ...] into columns."""
    shape = values.shape[1:]
    if len(shape) == 1 and shape[0] <= COLUMNS_MAX:
        names = named.columns if len(named.columns) == shape[0] else tuple(f"[{i}]" for i in range(shape[0]))
        return Columns(names, values[:, :, None])
    layout = layout or layout_of(shape)
    if len(shape) == 3 and layout in {"NCHW", "NHWC"}:
        first = values if layout == "NCHW" else values.transpose(0, 3, 1, 2)
        channels = first.shape[1]
        return Columns(
            tuple(f"channel {i}" for i in range(channels)), first.reshape(len(values), channels, -1)
        )
    return Columns(("",), values.reshape(len(values), 1, -1))


def check_values(
    array: str, columns: Columns, expected: InputExpectation | None, seen: Seen
) -> Iterator[Finding]:
    """Find values that are missing, infinite, out of range; and columns that never change.

    Args:
        array: name of the array.
        columns: its samples, any numeric type.
        expected: what the bundle states of the input, if it does.
        seen: what the bundle's monitor has seen.
    """
    values = columns.values
    told: set[str] = set()
    few = few_by_chance(len(values), seen.rows, len(columns.names))
    if values.dtype.kind == "f":
        yield from _missing(array, columns, 0.0 if expected is None else expected.missing_max)
        yield from _infinite(array, columns)
    if expected is not None:
        bounds = _stated(expected, values.dtype)
        stated = [*_outside(array, columns, bounds, few if expected.policy is Policy.SERVE else 0)]
        told = {one.column for one in stated}
        yield from stated
    if seen.bounds is not None:
        # What the bundle states is said once.
        yield from (one for one in _outside(array, columns, seen.bounds, few) if one.column not in told)
    yield from _constant(array, columns)


def few_by_chance(samples: int, reference: int, columns: int) -> int:
    """How many samples may lie outside of a reference's range and still be of its kind.

    >>> few_by_chance(150, 269, 30), few_by_chance(10, 10_000, 1), few_by_chance(500, 0, 1)
    (10, 1, 5)
    """
    if not reference:
        return math.floor(FEW_FRACTION * samples)
    return math.floor(math.log(2 * columns / CHANCE) / math.log1p(reference / samples))


def seen_bounds(columns: tuple[Column, ...], tensor: str, count: int) -> Bounds | None:
    """Range that a monitor's reference had in each of `count` elements of a tensor; None if it did not watch elements."""
    elements = {
        one.index: one for one in columns if one.tensor == tensor and one.statistic is Statistic.ELEMENT
    }
    if set(elements) != set(range(count)) or any(not one.edges for one in elements.values()):
        return None
    low = np.array([elements[i].edges[0] for i in range(count)])
    high = np.array([elements[i].edges[-1] for i in range(count)])
    # A column that was constant has no width: then its size stands for it.
    margin = np.where(high > low, high - low, np.abs(high)) * MARGIN_FRACTION
    return Bounds(low - margin, high + margin, "its monitor has seen")


def _stated(expected: InputExpectation, dtype: np.dtype[np.generic]) -> Bounds:
    low = -np.inf if expected.low is None else expected.low
    high = np.inf if expected.high is None else expected.high
    if dtype.kind == "f":
        # A bound is of the input's own type, as the guard on a device has it: 0.1 in float32 is not above 0.1.
        with np.errstate(over="ignore"):
            low, high = float(np.asarray(low, dtype)), float(np.asarray(high, dtype))
    return Bounds(np.array([low]), np.array([high]), "the bundle expects")


def _outside(array: str, columns: Columns, bounds: Bounds, few: int) -> Iterator[Finding]:
    """`few`: the number of samples up to which it is a warning only."""
    values: Any = columns.values
    low, high = bounds.low[None, :, None], bounds.high[None, :, None]
    with np.errstate(invalid="ignore"):
        bad = ((values < low) | (values > high)) & np.isfinite(values)
    if not bad.any():
        return
    for at in _worst(bad):
        here = min(at, len(bounds.low) - 1)
        samples = _rows(bad, at)
        found = values[:, at][bad[:, at]]
        yield Finding(
            severity=Severity.WARNING if samples.sum() <= few else Severity.VIOLATION,
            kind=Kind.RANGE, array=array, column=columns.names[at], count=int(samples.sum()), total=len(values),
            what=f"samples have values from {found.min():.6g} to {found.max():.6g}; {bounds.source} {bounds.low[here]:.6g} to {bounds.high[here]:.6g}",
            example=f"sample {int(samples.argmax())}", hint="another unit or scale? else make the bundle anew with these data",
        )  # fmt: skip
    yield from _rest(array, bad, Kind.RANGE, f"are outside of what {bounds.source}")


def _missing(array: str, columns: Columns, allowed: float) -> Iterator[Finding]:
    bad = np.isnan(columns.values)
    if not bad.any():
        return
    too_many = float(bad.mean()) > allowed
    for at in _worst(bad):
        rows = _rows(bad, at)
        yield Finding(
            severity=Severity.VIOLATION if too_many else Severity.WARNING,
            kind=Kind.MISSING, array=array, column=columns.names[at], count=int(rows.sum()), total=len(rows),
            what="samples have missing values (NaN)" + (f"; {allowed:.3g} of all values may be missing" if allowed else ""),
            example=f"sample {int(rows.argmax())}", hint="fill them in as the device will, or remove those samples",
        )  # fmt: skip
    yield from _rest(array, bad, Kind.MISSING, "have missing values")


def _infinite(array: str, columns: Columns) -> Iterator[Finding]:
    bad = np.isinf(columns.values)
    if not bad.any():
        return
    for at in _worst(bad):
        rows = _rows(bad, at)
        yield Finding(
            severity=Severity.VIOLATION, kind=Kind.INFINITE, array=array, column=columns.names[at], count=int(rows.sum()),
            total=len(rows), what="samples have infinite values", example=f"sample {int(rows.argmax())}",
            hint="repair or remove them",
        )  # fmt: skip
    yield from _rest(array, bad, Kind.INFINITE, "have infinite values")


def _constant(array: str, columns: Columns) -> Iterator[Finding]:
    values = columns.values
    if len(values) < 2 or not values.size:
        return
    same = (values == values[:1, :, :1]).all(axis=(0, 2))
    names = [columns.names[i] or "all" for i in np.flatnonzero(same)]
    if names:
        shown = ", ".join(names[:COLUMNS_SHOWN]) + (", ..." if len(names) > COLUMNS_SHOWN else "")
        yield Finding(
            severity=Severity.WARNING, kind=Kind.CONSTANT, array=array, column=shown,
            count=len(names), total=len(columns.names), what="columns never change",
            example=f"{columns.names[int(same.argmax())]} is always {values[0, int(same.argmax()), 0]:.6g}",
            hint="a model learns nothing from them; a sensor that was off?",
        )  # fmt: skip


def _rows(bad: _Mask, column: int) -> _Mask:
    """Which samples are bad in a column."""
    rows: _Mask = np.asarray(bad[:, column].any(axis=1))
    return rows


def _worst(bad: _Mask) -> list[int]:
    counts = bad.sum(axis=(0, 2))
    order = np.argsort(-counts, kind="stable")[:COLUMNS_SHOWN]
    return [int(at) for at in order if counts[at]]


def _rest(array: str, bad: _Mask, kind: Kind, what: str) -> Iterator[Finding]:
    count = int(bad.any(axis=(0, 2)).sum())
    if count > COLUMNS_SHOWN:
        yield Finding(
            severity=Severity.WARNING, kind=kind, array=array, count=count - COLUMNS_SHOWN, total=bad.shape[1],
            what=f"more columns {what}",
        )  # fmt: skip
