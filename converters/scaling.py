"""Constants as the reals that they stand for, and how integers are turned back into those.

Decides which constants an ONNX operator reads as integers, and by which scales and zero points. What is read of a file, and
what it is called: `weights.py`, `constants.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Reals = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Weight:
    """One constant tensor. `stored` is the element type in the file, `values` the reals it stands for."""

    name: str
    stored: str
    values: Reals

    @property
    def layer(self) -> str:
        """What it belongs to: its name without the last part.

        >>> Weight("net.0.weight", "float32", np.zeros(1)).layer
        'net.0'
        >>> Weight("w", "float32", np.zeros(1)).layer
        'w'
        """
        for mark in ("/", "."):
            head, found, _ = self.name.rpartition(mark)
            if found and head:
                return head
        return self.name


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a node reads an integer constant: names of its scales (multiplied) and zero point, the axis of these."""

    scales: tuple[str, ...]
    zero: str
    axis: int
    block: int = 0
    """So many elements in a row of `axis` share a scale; 0: all of an index do."""


def scalings(node: Any) -> Iterator[tuple[str, Scaling]]:
    """Name the constants that a node takes as integers."""
    names = [*node.input]
    numbers = {one.name: one.i for one in node.attribute}
    match node.op_type:
        case "DequantizeLinear":
            zero = names[2] if len(names) > 2 else ""
            yield names[0], Scaling((names[1],), zero, numbers.get("axis", 1), numbers.get("block_size", 0))
        case "QLinearConv" | "QLinearMatMul" | "QGemm" if len(names) >= 6:
            # Output channels come first in a convolution's weights, last in a matrix'.
            first = node.op_type == "QLinearConv" or bool(numbers.get("transB"))
            yield names[3], Scaling((names[4],), names[5], 0 if first else -1)
            bias = {"QLinearConv": 8, "QGemm": 6}.get(node.op_type)
            if bias is not None and len(names) > bias and names[bias]:
                # A bias is added to products, whose scale is the product of both.
                yield names[bias], Scaling((names[1], names[4]), "", 0)


def _spread(one: npt.NDArray[Any], shape: tuple[int, ...], how: Scaling) -> npt.NDArray[Any]:
    """Give each element the scale of its block. How many blocks there are is checked first: a file may state any number."""
    if one.ndim != len(shape):
        return one
    blocks = list(shape)
    blocks[how.axis] = -(-shape[how.axis] // how.block)
    if one.shape != tuple(blocks):
        raise ValueError("its scales do not fit its blocks")
    wide = np.repeat(one, min(how.block, shape[how.axis]), axis=how.axis)
    return wide.take(range(shape[how.axis]), axis=how.axis)


def reals_of(array: npt.NDArray[Any], how: Scaling, known: Mapping[str, npt.NDArray[Any]]) -> Reals:
    """Turn a constant back by scales and zero point that are constants, too.

    Raises:
        ValueError, TypeError, KeyError, IndexError: They do not fit its shape, or are not there.
    """
    factors = [known[one] for one in how.scales]
    if math.prod(np.broadcast_shapes(*(one.shape for one in factors))) > array.size:
        raise ValueError("its scales do not fit its shape")
    scale = np.asarray(math.prod(factors))
    zero = known[how.zero] if how.zero in known else np.zeros(())
    if how.block:
        scale, zero = (_spread(one, array.shape, how) for one in (scale, zero))
    return to_reals(array, scale, zero, how.axis)


def to_reals(array: npt.NDArray[Any], scale: npt.NDArray[Any], zero: npt.NDArray[Any], axis: int) -> Reals:
    """Turn integers back; `scale` and `zero` are one for all, or one for each index of `axis`.

    Raises:
        ValueError: They do not fit its shape. Nothing larger than that is made.
    """
    scale, zero = (one.reshape(()) if one.size == 1 else one for one in (scale, zero))
    if scale.size > 1 and scale.shape != array.shape:
        if not -array.ndim <= axis < array.ndim or scale.size != array.shape[axis]:
            raise ValueError("its scales do not fit its shape")
        form = [1] * array.ndim
        form[axis] = -1
        scale, zero = scale.reshape(form), zero.reshape(form) if zero.size > 1 else zero
    if np.broadcast_shapes(array.shape, scale.shape, zero.shape) != array.shape:
        raise ValueError("its scales do not fit its shape")
    result: Reals = (array.astype(np.float64) - zero.astype(np.float64)) * scale.astype(np.float64)
    return result
