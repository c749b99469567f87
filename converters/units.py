"""How figures are written for people.

Decides that sizes are in powers of 1000, with the budget and the observation alike, and that fractions of a metric are
points.
"""

from __future__ import annotations


def size(count: float) -> str:
    """Write a number of bytes.

    >>> size(812), size(31853), size(2070000000)
    ('812 B', '31.9 kB', '2070.0 MB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def points(fraction: float) -> str:
    """Write a fraction as percentage points.

    >>> points(0.005), points(0.012)
    ('0.50', '1.20')
    """
    return f"{fraction * 100:.2f}"
