"""The arithmetic of the steps before and after a model, on arrays.

Decides each step's numbers, the same on the workstation that recorded golden vectors and on the device that is held to
them: numpy only, float32, no state. Which array goes where is `pipeline`'s business; that types and shapes fit was
checked by `flow`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .steps import BoxForm

CANDIDATES_MAX: Final = 1000
"""Pairs of box and class, the best ones, among which overlaps are looked for."""

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def crop(array: Array, axes: tuple[int, int], size: tuple[int, int]) -> Array:
    """View the middle of images; of an odd rest, the smaller half is cut at the top and left."""
    where = [slice(None)] * array.ndim
    for axis, wanted in zip(axes, size, strict=True):
        first = (array.shape[axis] - wanted) // 2
        where[axis] = slice(first, first + wanted)
    return array[tuple(where)]


def resize_nearest(array: Array, axes: tuple[int, int], size: tuple[int, int]) -> Array:
    """Give each new pixel the value of the old one at whose area its centre lies. Keeps the type.

    >>> resize_nearest(np.array([[[10, 20, 30, 40]]]), (1, 2), (1, 2)).tolist()
    [[[20, 40]]]
    """
    for axis, wanted in zip(axes, size, strict=True):
        have = array.shape[axis]
        if have != wanted:
            centres = (np.arange(wanted) + 0.5) * (have / wanted)
            array = array.take(np.minimum(centres.astype(np.intp), have - 1), axis)
    return array


def resize_bilinear(array: Array, axes: tuple[int, int], size: tuple[int, int]) -> Floats:
    """Mix the two by two old pixels nearest to each new pixel's centre, float32.

    Edges are repeated. Nothing is averaged over more than those when an image shrinks.

    >>> resize_bilinear(np.array([[[0, 10]]]), (1, 2), (1, 4)).tolist()
    [[[0.0, 2.5, 7.5, 10.0]]]
    """
    weights: list[Floats | None] = []
    # What is needed is gathered first, in the old type: rows of large images are moved, not computed.
    for axis, wanted in zip(axes, size, strict=True):
        have = array.shape[axis]
        if have == wanted:
            weights.append(None)
            continue
        at = np.clip((np.arange(wanted) + 0.5) * (have / wanted) - 0.5, 0, have - 1)
        low = at.astype(np.intp)
        high = np.minimum(low + 1, have - 1)
        shape = [1] * array.ndim
        shape[axis] = wanted
        weights.append((at - low).astype(np.float32).reshape(shape))
        array = array.take(np.concatenate([low, high]), axis)
    mixed: Floats = array.astype(np.float32)
    for axis, wanted, weight in zip(axes, size, weights, strict=True):
        if weight is not None:
            low, high = np.split(mixed, [wanted], axis)
            mixed = low + (high - low) * weight
    return mixed


def standardise(array: Array, axes: tuple[int, ...], floor: float) -> Floats:
    """Take off the mean over some axes and divide by the deviation, float32.

    >>> standardise(np.array([[1.0, 3.0]]), (1,), 1e-6).tolist()
    [[-1.0, 1.0]]
    """
    real: Floats = array.astype(np.float32)
    centred = real - real.mean(axis=axes, keepdims=True)
    spread = np.sqrt((centred * centred).mean(axis=axes, keepdims=True))
    result: Floats = centred / np.maximum(spread, np.float32(floor))
    return result


def cast(array: Array, dtype: np.dtype[Any]) -> Array:
    """Make it another type; to integers by rounding and clipping, NaN as 0.

    >>> cast(np.array([0.5, 1.5, -3.0, 300.0, np.nan]), np.dtype(np.uint8)).tolist()
    [0, 2, 0, 255, 0]
    """
    if array.dtype == dtype:
        return array
    if dtype.kind not in "iu":
        with np.errstate(over="ignore"):
            other: Array = array.astype(dtype)
        return other
    limits = np.iinfo(dtype)
    if array.dtype.kind == "f":
        exact = array.astype(np.float64) if dtype.itemsize > 2 else array
        whole = np.rint(np.nan_to_num(exact, nan=0.0, posinf=np.inf, neginf=-np.inf))
        # The largest int64 is no float64; the next smaller one is.
        highest = np.nextafter(2.0**63, 0) if dtype.itemsize == 8 else limits.max
    else:
        whole, highest = array.astype(np.int64), limits.max
    clipped: Array = np.clip(whole, limits.min, highest).astype(dtype)
    return clipped


def quantise(array: Array, scale: float, zero_point: int, dtype: np.dtype[Any]) -> Array:
    """Find the integers that stand for reals: round(x / scale) + zero_point, clipped; NaN as 0.0.

    >>> quantise(np.array([0.0, 0.5, 99.0]), 0.25, -3, np.dtype(np.int8)).tolist()
    [-3, -1, 127]
    """
    real = np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=np.inf, neginf=-np.inf)
    with np.errstate(over="ignore"):
        steps = np.rint(real / np.float32(scale)) + np.float32(zero_point)
    return cast(steps, dtype)


def dequantise(array: Array, scale: float, zero_point: int) -> Floats:
    """Return the reals that integers stand for, float32."""
    real: Floats = (array.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    return real


def softmax(array: Array) -> Floats:
    """Make logits probabilities over the last axis, float32; NaN where a sample has one."""
    real: Floats = array.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        raised = np.exp(real - real.max(axis=-1, keepdims=True))
        result: Floats = raised / raised.sum(axis=-1, keepdims=True)
    return result


def sigmoid(array: Array) -> Floats:
    """Make each logit a probability, float32."""
    real: Floats = array.astype(np.float32)
    # By tanh, which overflows nowhere.
    result: Floats = np.float32(0.5) * (np.tanh(np.float32(0.5) * real) + np.float32(1))
    return result


def top_k(scores: Array, count: int) -> tuple[Floats, Indices]:
    """Return the highest scores of each row and where they are; of equal ones the first. NaN is below all.

    >>> highest, classes = top_k(np.array([[0.1, 0.7, 0.7, 0.2]]), 3)
    >>> classes.tolist()
    [[1, 2, 3]]
    """
    real: Floats = scores.astype(np.float32)
    comparable = np.where(np.isnan(real), -np.inf, real)
    order = np.argsort(-comparable, axis=1, kind="stable")[:, :count]
    highest: Floats = np.take_along_axis(real, order, axis=1)
    return highest, order.astype(np.int64)


def mean_squared_error(array: Array, original: Array) -> Floats:
    """Return the mean of squared differences of each sample, float32 [samples]."""
    difference = array.astype(np.float32) - original.astype(np.float32)
    flat = difference.reshape(len(difference), -1)
    result: Floats = np.mean(flat * flat, axis=1, dtype=np.float32)
    return result


def suppress_overlaps(
    boxes: Array, scores: Array, limits: tuple[int, float, float], form: BoxForm
) -> tuple[Floats, Floats, Indices]:
    """Keep the best boxes of one sample that overlap no better one of their class.

    Args:
        boxes: [m, 4].
        scores: [m, classes].
        limits: how many may be kept, the largest intersection over union, the lowest score.
        form: what the four numbers are.

    Returns:
        float32 [count, 4] corners, float32 [count], int64 [count]; zeros and -1 where there is none.
    """
    count, overlap_max, score_min = limits
    corners = _corners(boxes.astype(np.float32), form)
    real: Floats = scores.astype(np.float32)
    usable = np.asarray(np.isfinite(corners).all(axis=1))
    wanted = np.isfinite(real) & usable.reshape(-1, 1)
    wanted &= real >= score_min
    rows, classes = np.nonzero(wanted)
    values = real[rows, classes]
    order = np.argsort(-values, kind="stable")[:CANDIDATES_MAX]
    rows, classes, values = rows[order], classes[order], values[order]
    kept = _best(corners[rows], classes, count, overlap_max)
    best_boxes, best_scores = np.zeros((count, 4), np.float32), np.zeros(count, np.float32)
    best_classes = np.full(count, -1, np.int64)
    best_boxes[: len(kept)] = corners[rows[kept]]
    best_scores[: len(kept)] = values[kept]
    best_classes[: len(kept)] = classes[kept]
    return best_boxes, best_scores, best_classes


def _best(corners: Floats, classes: Indices, count: int, overlap_max: float) -> list[int]:
    """Indices of boxes, which come best first, that no better one of the same class covers."""
    sides = corners[:, 2:] - corners[:, :2]
    areas = sides[:, 0] * sides[:, 1]
    waiting = np.arange(len(corners))
    kept: list[int] = []
    while len(waiting) and len(kept) < count:
        best, waiting = int(waiting[0]), waiting[1:]
        kept.append(best)
        low = np.maximum(corners[waiting, :2], corners[best, :2])
        high = np.minimum(corners[waiting, 2:], corners[best, 2:])
        shared = np.maximum(high - low, 0).prod(axis=1)
        # Compared without a division, so that boxes without an area overlap nothing.
        covered = shared > np.float32(overlap_max) * (areas[waiting] + areas[best] - shared)
        waiting = waiting[~(covered & (classes[waiting] == classes[best]))]
    return kept


def _corners(boxes: Floats, form: BoxForm) -> Floats:
    """The lower corner first, whatever way they were given."""
    first, second = boxes[:, :2], boxes[:, 2:]
    if form is BoxForm.CENTRE:
        half = second * np.float32(0.5)
        first, second = first - half, first + half
    corners: Floats = np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)
    return corners
