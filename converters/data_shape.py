"""Whether samples have the type and shape that a model takes, and what to do if not.

Decides how a wrong layout is told from a wrong size, and what samples would be once they were mended, so that their values
can be looked at all the same. Pure.
"""

from __future__ import annotations

import itertools
import math
from typing import Final

import numpy as np

from edgeml.tensors import BATCH, TensorSpec

from .array_file import Array
from .data_file import NamedArray
from .data_finding import Finding, Kind, Severity

CHANNELS_LIKELY: Final = 4
"""An axis of at most so many elements at one end of three is taken for the channels."""
_TO_FIRST: Final = (0, 3, 1, 2)
_TO_LAST: Final = (0, 2, 3, 1)


def check_shape(named: NamedArray, spec: TensorSpec) -> Finding | None:
    """Compare the shape of samples with what the model takes."""
    have, want = named.values.shape[1:], spec.sample_shape
    if _fits(have, want):
        return None
    kind, hint = Kind.SCHEMA, "save samples exactly as the model takes them"
    what = f"samples of shape {list(have)}; the model takes {list(want)}"
    if swapped := _swapped(have, spec):
        kind, what, hint = Kind.LAYOUT, f"{swapped[0]}: {what}", swapped[1]
    elif len(have) == len(want) and sorted(have) == sorted(want):
        axes = next(
            one
            for one in itertools.permutations(range(len(have)))
            if _fits(tuple(have[i] for i in one), want)
        )
        kind, what = Kind.LAYOUT, f"axes in another order: {what}"
        hint = f"save {named.name}.transpose{(0, *(i + 1 for i in axes))}"
    elif BATCH not in want and math.prod(have) == math.prod(want):
        hint = f"save {named.name}.reshape(-1, {', '.join(map(str, want))})"
    elif _fits(named.values.shape, want):
        hint = f"one sample without its first dimension: save {named.name}[None]"
    return Finding(
        severity=Severity.VIOLATION, kind=kind, array=named.name, what=what, hint=hint,
        count=len(named.values), total=len(named.values),
    )  # fmt: skip


def check_type(named: NamedArray, spec: TensorSpec) -> Finding | None:
    """Compare the element type of samples with what the model takes; a file of text states none."""
    dtype, wanted = named.values.dtype, spec.dtype.value
    if (dtype.name == wanted and dtype.isnative) or (named.is_text and wanted.startswith("float")):
        return None
    hint = f"save {named.name}.astype('{wanted}')"
    if dtype.kind not in "fiub":
        hint = "give numbers"
    elif spec.scale is not None and dtype.kind == "f":
        limits = np.iinfo(wanted)
        hint = (
            f"quantise: np.clip(np.rint({named.name} / {spec.scale:.9g}) + {spec.zero_point or 0}, "
            f"{limits.min}, {limits.max}).astype('{wanted}')"
        )
    elif wanted.startswith("float") and dtype.kind in "iu":
        hint += ", scaled as the model was trained (for images often / 255)"
    name = dtype.name if dtype.isnative else f"{dtype.name} of foreign byte order"
    return Finding(
        severity=Severity.VIOLATION, kind=Kind.TYPE, array=named.name,
        what=f"elements are {name}; the model takes {wanted}", hint=hint,
    )  # fmt: skip


def mended(array: Array, spec: TensorSpec) -> Array | None:
    """Make samples as the model takes them of samples in another type or order of axes; None if nobody can know how."""
    if array.dtype.kind not in "fiub":
        return None
    have, want = array.shape[1:], spec.sample_shape
    if not _fits(have, want):
        axes = next(
            (one for one in (_TO_FIRST, _TO_LAST) if array.ndim == 4 and _fits(_permuted(have, one), want)),
            None,
        )
        if axes is not None:
            array = array.transpose(axes)
        elif BATCH not in want and math.prod(have) == math.prod(want):
            array = array.reshape(-1, *want)
        else:
            return None
    wanted = np.dtype(spec.dtype.value)
    if array.dtype == wanted:
        return array
    if wanted.kind in "iu" and array.dtype.kind == "f":
        if not np.isfinite(array).all():
            return None
        real = array.astype(np.float64)
        whole = np.rint(real if spec.scale is None else real / spec.scale + (spec.zero_point or 0))
        if spec.scale is None and not (whole == real).all():
            return None
        limits = np.iinfo(wanted)
        clipped: Array = np.clip(whole, limits.min, limits.max).astype(wanted)
        return clipped
    with np.errstate(over="ignore"):
        other: Array = array.astype(wanted)
    return other


def layout_of(shape: tuple[int, ...]) -> str:
    """Guess the layout of image samples [a, b, c] by where a short axis lies; empty where both or neither end is short.

    >>> layout_of((3, 32, 32)), layout_of((32, 32, 3)), layout_of((8, 8, 8))
    ('NCHW', 'NHWC', '')
    """
    if len(shape) != 3:
        return ""
    first, last = 0 < shape[0] <= CHANNELS_LIKELY, 0 < shape[2] <= CHANNELS_LIKELY
    return "" if first == last else "NCHW" if first else "NHWC"


def _swapped(have: tuple[int, ...], spec: TensorSpec) -> tuple[str, str] | None:
    """Tell samples whose channels are at the other end, or missing."""
    want = spec.sample_shape
    if len(want) != 3:
        return None
    layout = spec.layout or layout_of(want) or "NCHW"
    if len(have) == 2:
        at = 0 if layout == "NCHW" else 2
        if want[at] == 1 and _fits(have, want[:at] + want[at + 1 :]):
            return (
                f"the axis of channels is missing, the model takes {layout}",
                f"save it with [{':, None' if at == 0 else '..., None'}]",
            )
        return None
    if len(have) != 3:
        return None
    for axes, given in ((_TO_FIRST, "NHWC"), (_TO_LAST, "NCHW")):
        if given != layout and _fits(_permuted(have, axes), want):
            return f"layout {given}, the model takes {layout}", f"save it with .transpose{axes}"
    return None


def _permuted(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis - 1] for axis in axes[1:])


def _fits(have: tuple[int, ...], want: tuple[int, ...]) -> bool:
    return len(have) == len(want) and all(b in {BATCH, a} for a, b in zip(have, want, strict=True))
