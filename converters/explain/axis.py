"""Where a value lies on an axis, and which values are written beside it.

Decides between a linear, a logarithmic and a stretched axis (linear around zero, logarithmic beyond: asinh), which round
numbers are marked, and in which unit bytes are written. Pure arithmetic.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

LOGARITHMIC_RATIO: Final = 8.0
"""From this ratio of the greatest to the least value an axis of positive values is logarithmic."""
TICKS: Final = 6
NARROWEST: Final = 1e-6
"""An axis has at least about this part of its values' size as its length: nearer ones are the same to whoever looks."""
_LARGEST: Final = 1e300
_SMALLEST: Final = 1e-300
"""Beyond these, lengths and steps overflow or vanish."""


class Form(enum.Enum):
    """How distances stand for differences."""

    LINEAR = "linear"
    LOGARITHMIC = "logarithmic"
    STRETCHED = "stretched"


class Unit(enum.Enum):
    """What the values are in."""

    NONE = ""
    MILLISECONDS = "ms"
    BYTES = "bytes"
    POINTS = "points"


@dataclass(frozen=True, slots=True)
class Tick:
    """A value that is marked, and how it is written."""

    value: float
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis from `low` to `high`, drawn from `start_px` to `end_px`."""

    low: float
    high: float
    start_px: float
    end_px: float
    form: Form = Form.LINEAR
    knee: float = 1.0
    """Of a stretched axis: about up to where it is linear."""

    def place(self, value: float) -> float:
        """Pixel of a value; values beyond an end lie on it.

        >>> Axis(0, 10, 100, 200).place(5), Axis(1, 100, 0, 2, Form.LOGARITHMIC).place(10)
        (150.0, 1.0)
        """
        low, high = self._moved(self.low), self._moved(self.high)
        share = (self._moved(min(max(value, self.low), self.high)) - low) / (high - low)
        return self.start_px + share * (self.end_px - self.start_px)

    def ticks(self) -> tuple[float, ...]:
        """Round values to mark, from low to high."""
        if self.form is Form.LINEAR:
            return _round_steps(self.low, self.high)
        if self.form is Form.LOGARITHMIC:
            return _decades(self.low, self.high)
        sizes = _decades(self.knee / 3, max(self.high, -self.low))
        values = {0.0, *sizes, *(-one for one in sizes)}
        return tuple(sorted(one for one in values if self.low <= one <= self.high))

    def _moved(self, value: float) -> float:
        match self.form:
            case Form.LINEAR:
                return value
            case Form.LOGARITHMIC:
                return math.log10(value)
            case Form.STRETCHED:
                return math.asinh(value / self.knee)


def axis_of(values: Iterable[float], start_px: float, end_px: float) -> Axis:
    """Make an axis for values: with room at both ends, logarithmic where they are positive and of very different sizes."""
    known = [_drawn(value) for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if low > 0 and high / low >= LOGARITHMIC_RATIO:
        return Axis(low / 1.4, high * 1.4, start_px, end_px, Form.LOGARITHMIC)
    return linear_axis(low, high, start_px, end_px)


def linear_axis(low: float, high: float, start_px: float, end_px: float) -> Axis:
    """Make a linear axis with room at both ends; from values that are not negative it does not begin below zero."""
    low, high = _drawn(low), _drawn(high)
    # Scores may differ by their last bit alone: no step fits in between.
    least = max(abs(low), abs(high)) * NARROWEST
    margin = max((high - low) * 0.08, least) if high > low else abs(high) * 0.1 or 1.0
    begin = max(0.0, low - margin) if low >= 0 else low - margin
    return Axis(begin, high + margin, start_px, end_px)


def labels(axis: Axis, unit: Unit) -> tuple[tuple[Tick, ...], str]:
    """Marks of an axis as they are written, and the unit that they are in.

    >>> [one.label for one in labels(Axis(0, 300_000, 0, 1), Unit.BYTES)[0]], labels(Axis(0, 300_000, 0, 1), Unit.BYTES)[1]
    (['0', '50', '100', '150', '200', '250', '300'], 'kB')
    """
    values = axis.ticks()
    divisor, name = 1.0, unit.value
    if unit is Unit.BYTES:
        divisor, name = (
            (1e6, "MB") if axis.high >= 2e6 else (1e3, "kB") if axis.high >= 2e3 else (1.0, "bytes")
        )
    scaled = [value / divisor for value in values]
    return tuple(
        Tick(value, label) for value, label in zip(values, _written(scaled, axis.form), strict=True)
    ), name


def figure(value: float) -> str:
    """Write a value with three digits.

    >>> figure(0.012345), figure(1234567.0), figure(12.0), figure(0)
    ('0.0123', '1.23e+06', '12', '0')
    """
    return f"{value:.3g}"


def _drawn(value: float) -> float:
    """Where a value is drawn: the nearest that an axis can hold."""
    return 0.0 if abs(value) < _SMALLEST else min(max(value, -_LARGEST), _LARGEST)


def _written(values: list[float], form: Form) -> list[str]:
    if form is not Form.LINEAR or len(values) < 2:
        return [f"{value:g}" for value in values]
    step = min(b - a for a, b in itertools.pairwise(values))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{0.0 if abs(value) < step / 1e6 else value:.{decimals}f}" for value in values]


def _round_steps(low: float, high: float) -> tuple[float, ...]:
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    # On an axis that is shorter than its numbers are apart, several steps are one number.
    return tuple(dict.fromkeys(index * step for index in range(first, last + 1)))


def _decades(low: float, high: float) -> tuple[float, ...]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        values = tuple(
            factor * 10.0**power
            for power in powers
            for factor in factors
            if low <= factor * 10.0**power <= high
        )
        if len(values) >= 3:
            break
    return values if len(values) <= 2 * TICKS else values[:: math.ceil(len(values) / TICKS)]
