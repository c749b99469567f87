"""Signal to quantization noise: how much of an output is left when it is computed in fewer bits. Pure."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

SQNR_MAX_DB: Final = 100.0
"""What is said of an output that does not change at all."""


def sqnr_db(original: npt.NDArray[np.generic], changed: npt.NDArray[np.generic]) -> float:
    """Signal to quantization noise of two arrays of one shape, in dB, at most `SQNR_MAX_DB`.

    >>> round(sqnr_db(np.array([1.0, -1.0]), np.array([1.1, -0.9])))
    20
    """
    signal = original.astype(np.float64)
    noise = float(((signal - changed.astype(np.float64)) ** 2).sum())
    power = float((signal**2).sum())
    if noise == 0:
        return SQNR_MAX_DB
    return min(SQNR_MAX_DB, 10 * float(np.log10(max(power, 1e-30) / noise)))
