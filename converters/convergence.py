"""How many samples show the whole range of an input: watched as samples come in, in several orders.

Decides the rule. A quantizer takes the least and the greatest value of its calibration samples as the ends of its scale;
once more samples do not widen that range, more calibration brings nothing. Pure: per-sample extremes in, an answer out.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

COVERED_FRACTION: Final = 0.99
ORDERS: Final = 16
SEED: Final = 0
CHUNK_SAMPLES: Final = 256
SETTLED_FRACTION: Final = 0.5
"""Of the samples: where the range was there after so many of them, the rest stands for the samples one does not have."""

Doubles = npt.NDArray[np.float64]


class Point(msgspec.Struct, frozen=True):
    """After `samples` samples at least `covered` of the whole range was seen, in the worst of the orders."""

    samples: int
    covered: float


class Convergence(msgspec.Struct, frozen=True):
    """How the range of an input grew with its samples.

    `needed` is the smallest number of samples after which COVERED_FRACTION of the whole range was seen in every one of
    ORDERS random orders.
    """

    samples: int
    needed: int
    low: float
    high: float
    curve: tuple[Point, ...]

    @property
    def is_settled(self) -> bool:
        """Whether it can be said that `needed` samples are enough: the others, at least as many, brought next to nothing."""
        return self.needed <= SETTLED_FRACTION * self.samples


def watch(minima: Doubles, maxima: Doubles) -> Convergence:
    """Watch the range grow.

    Args:
        minima: least value of each sample, float64 [samples], finite, at least one.
        maxima: greatest value of each sample, the same.

    >>> flat = watch(np.zeros(100), np.ones(100))
    >>> flat.needed, flat.is_settled
    (1, True)
    >>> rising = watch(np.zeros(100), np.arange(100.0))
    >>> rising.needed > 50, rising.is_settled
    (True, False)
    """
    count = len(minima)
    low, high = float(minima.min()), float(maxima.max())
    span = high - low
    worst = np.ones(count)
    if span > 0:
        generator = np.random.Generator(np.random.PCG64(SEED))
        for _ in range(ORDERS):
            order = generator.permutation(count)
            seen = np.maximum.accumulate(maxima[order]) - np.minimum.accumulate(minima[order])
            worst = np.minimum(worst, seen / span)
    # Each order grows only, so their minimum does too.
    needed = int(np.searchsorted(worst, COVERED_FRACTION)) + 1
    marks = sorted({*(1 << i for i in range(count.bit_length())), needed, count})
    curve = tuple(Point(mark, float(worst[mark - 1])) for mark in marks if mark <= count)
    return Convergence(count, min(needed, count), low, high, curve)


def extremes(array: npt.NDArray[np.generic]) -> tuple[Doubles, Doubles]:
    """Least and greatest finite value of each sample of [samples, ...]; samples without one are left out."""
    flat = array.reshape(len(array), -1)
    low, high = np.full(len(flat), np.inf), np.full(len(flat), -np.inf)
    for first in range(0, len(flat), CHUNK_SAMPLES):
        part = flat[first : first + CHUNK_SAMPLES].astype(np.float64)
        finite = np.isfinite(part)
        low[first : first + CHUNK_SAMPLES] = np.where(finite, part, np.inf).min(axis=1, initial=np.inf)
        high[first : first + CHUNK_SAMPLES] = np.where(finite, part, -np.inf).max(axis=1, initial=-np.inf)
    keep = low <= high
    return low[keep], high[keep]
