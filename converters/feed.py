"""Turns samples as the source takes them into what a candidate takes, and its answers into the source's reals.

Decides how an image gets its channels last, and when a real becomes an integer: by the device's own arithmetic
(`edgeml.kernels`), so that what is judged here is what runs there. Pure arithmetic on arrays.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edgeml.columns import to_real
from edgeml.kernels import quantise
from edgeml.tensors import DType, TensorSpec

from .recipe import Layout
from .sources.torch_model import Array

_CHANNELS_LAST: Final = {3: (0, 2, 1), 4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}


def channels_to(samples: Array, layout: Layout) -> Array:
    """Put the channels of samples [samples, channels, ...] where a layout has them."""
    if layout is Layout.CHANNELS_LAST and samples.ndim in _CHANNELS_LAST:
        return np.ascontiguousarray(samples.transpose(_CHANNELS_LAST[samples.ndim]))
    return samples


def feed(samples: Array, spec: TensorSpec, layout: Layout) -> Array:
    """Make a candidate's input [samples, ...] of the source's, in the candidate's type."""
    samples = channels_to(samples, layout)
    kind = np.dtype(spec.dtype.value)
    if spec.dtype is not DType.FLOAT32 and spec.scale is not None and samples.dtype.kind == "f":
        samples = quantise(samples, spec.scale, spec.zero_point or 0, kind)
    return np.ascontiguousarray(samples)


def real(answers: Array, spec: TensorSpec) -> Array:
    """Return answers as the reals that they stand for."""
    return to_real(answers, spec) if spec.scale is not None else answers
