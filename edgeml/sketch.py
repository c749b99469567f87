"""Mergeable counts of what a model saw and said.

Decides the sketch and its merge: integer addition, hence associative, commutative, and with a zero. Which values
fall into which bin is the monitor's business (`edgeml.monitor`); what the counts mean, `edgeml.drift`'s.
"""

from __future__ import annotations

from typing import Final

import msgspec

from .errors import IncompatibleError
from .ids import Digest

STANDARD_SCALE: Final = 1 << 16
"""Standardised values are summed as integers of 1/65536, so that sums merge exactly."""
STANDARD_LIMIT: Final = 64.0
"""Standardised values are clipped to +-64 before they are summed."""


class Sketch(msgspec.Struct, frozen=True, omit_defaults=True):
    """Counts of one monitor's columns.

    `counts[c]` has one number per bin of column c and a last one for missing or non-finite values.
    `sums` and `squares` are of the standardised value z and of z*z, times STANDARD_SCALE; zero for categorical columns.
    """

    monitor: Digest
    rows: int
    counts: tuple[tuple[int, ...], ...]
    sums: tuple[int, ...]
    squares: tuple[int, ...]


def merge(first: Sketch, second: Sketch) -> Sketch:
    """Add two sketches of the same monitor.

    Raises:
        IncompatibleError: They are of different monitors or shapes.
    """
    if first.monitor != second.monitor or _shape(first) != _shape(second):
        raise IncompatibleError(
            "sketches of different monitors cannot be merged", hint="compare windows of the same release only"
        )
    return Sketch(
        monitor=first.monitor,
        rows=first.rows + second.rows,
        counts=tuple(
            tuple(a + b for a, b in zip(x, y, strict=True))
            for x, y in zip(first.counts, second.counts, strict=True)
        ),
        sums=tuple(a + b for a, b in zip(first.sums, second.sums, strict=True)),
        squares=tuple(a + b for a, b in zip(first.squares, second.squares, strict=True)),
    )


def _shape(sketch: Sketch) -> tuple[list[int], int, int]:
    return [len(row) for row in sketch.counts], len(sketch.sums), len(sketch.squares)
