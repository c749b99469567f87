"""Whether samples lie in memory in another order than the model takes them.

Decides by shapes alone what is wrong and what would make it right. Pure. Which shapes they are is the caller's business.
"""

from __future__ import annotations

import math
from typing import Final

from edgeml.tensors import BATCH

CHANNELS_FIRST: Final = (0, 3, 1, 2)
CHANNELS_LAST: Final = (0, 2, 3, 1)
_IMAGE: Final = 4


def layout_hint(model_shape: tuple[int, ...], data_shape: tuple[int, ...]) -> str:
    """Say how to reorder data for a model; empty if they fit already, or if no reordering makes them fit.

    Args:
        model_shape: what the model takes, with the batch first; BATCH where it takes any size.
        data_shape: of the data, samples first.

    >>> layout_hint((-1, 3, 32, 32), (500, 32, 32, 3))
    'the data are channels last (NHWC), the model takes channels first (NCHW): give x.transpose(0, 3, 1, 2)'
    >>> layout_hint((-1, 3, 32, 32), (500, 3, 32, 32))
    ''
    """
    model, data = model_shape[1:], data_shape[1:]
    if fits(model, data):
        return ""
    if len(data_shape) == _IMAGE == len(model_shape):
        if fits(model, reordered(data_shape, CHANNELS_FIRST)[1:]):
            return transpose_hint(CHANNELS_FIRST)
        if fits(model, reordered(data_shape, CHANNELS_LAST)[1:]):
            return transpose_hint(CHANNELS_LAST)
    if len(data) == len(model) == 2 and fits(model, data[::-1]):
        return "the data have their two dimensions the other way round: give x.transpose(0, 2, 1)"
    if len(model) == len(data) + 1:
        if model[0] == 1 and fits(model[1:], data):
            return "the data lack the one channel, which the model takes first: give x[:, None]"
        if model[-1] == 1 and fits(model[:-1], data):
            return "the data lack the one channel, which the model takes last: give x[..., None]"
    if BATCH not in model and math.prod(model) == math.prod(data) and 1 in {len(model), len(data)}:
        shape = ", ".join(str(size) for size in model)
        return f"the data have the same number of values in another shape: give x.reshape(len(x), {shape})"
    return ""


def fits(model: tuple[int, ...], data: tuple[int, ...]) -> bool:
    """Tell whether samples of shape `data` are what `model` takes; BATCH takes any size."""
    return len(model) == len(data) and all(
        want in {BATCH, got} for want, got in zip(model, data, strict=True)
    )


def reordered(shape: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    """Shape after a transposition."""
    return tuple(shape[index] for index in order)


def transpose_hint(order: tuple[int, ...]) -> str:
    """Say which of the two layouts of images the data have, and what turns them into the other."""
    names = ("channels last (NHWC)", "channels first (NCHW)")
    have, want = names if order == CHANNELS_FIRST else names[::-1]
    return f"the data are {have}, the model takes {want}: give x.transpose{order}"
