"""The steps before and after a model, as data: what a bundle may ask of a device besides running the model.

Decides which steps there are, their fields, and the limits of each number. No code travels in a bundle: a step is one of
these, or the bundle is refused. Which tensor a step turns into which is `flow`'s business, the arithmetic `kernels`',
running them `pipeline`'s. Format: docs/bundle-format.md.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final, TypeAlias

import msgspec

from .tensors import DType, TensorSpec

SIDE_MAX: Final = 4096
"""Largest height or width that steps take or make."""
STEPS_MAX: Final = 32
BOXES_MAX: Final = 1000
"""Boxes that an answer may have."""

_Side: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=SIDE_MAX)]
_Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_Into: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?\Z")]
_PerChannel: TypeAlias = Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=1024)]
_Fraction: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Step(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="kind", tag=""
):
    """Base of all steps; `kind` in the file says which one it is."""


class Interpolation(enum.Enum):
    """How a new pixel is made of old ones. Pixels have their values at their centres."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"


class BoxForm(enum.Enum):
    """What the four numbers of a box are."""

    CORNERS = "corners"
    """Two opposite corners: y, x, y, x or x, y, x, y."""
    CENTRE = "centre"
    """The centre and the size: x, y, width, height or y, x, height, width."""


class Crop(Step, frozen=True, tag="crop"):
    """Keep the middle of an image. Its layout must have H and W."""

    height: _Side
    width: _Side


class Resize(Step, frozen=True, tag="resize"):
    """Bring an image to a size, whatever its aspect. Nearest keeps the type; bilinear gives float32."""

    height: _Side
    width: _Side
    interpolation: Interpolation = Interpolation.BILINEAR


class Normalise(Step, frozen=True, tag="normalise"):
    """float32 (x * scale - mean) / std; `mean` and `std` have one value, or one for each channel."""

    scale: float = 1.0
    mean: _PerChannel = (0.0,)
    std: _PerChannel = (1.0,)


class Standardise(Step, frozen=True, tag="standardise"):
    """float32 (x - m) / max(s, floor), where m and s are mean and deviation of each channel of each sample.

    For windows of sensors, whose offset and gain say nothing. Without a C in the layout: of each sample as a whole.
    """

    floor: Annotated[float, msgspec.Meta(gt=0)] = 1e-6


class Transpose(Step, frozen=True, tag="transpose"):
    """Put the dimensions into another order, for example NHWC to NCHW."""

    layout: Annotated[str, msgspec.Meta(pattern=r"\AN[A-Z]{0,7}\Z")]


class Reshape(Step, frozen=True, tag="reshape"):
    """Give each sample another shape with as many elements; the result has no layout."""

    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=1, le=1 << 24)], ...], msgspec.Meta(max_length=7)]


class Cast(Step, frozen=True, tag="cast"):
    """Make it another type: to integers by rounding to the nearest (half to even), NaN as 0, what is too large clipped."""

    dtype: DType


class Quantise(Step, frozen=True, tag="quantise"):
    """Make reals integers by the scale, zero point and type of the model's input."""


Before: TypeAlias = Crop | Resize | Normalise | Standardise | Transpose | Reshape | Cast | Quantise


class Dequantise(Step, frozen=True, tag="dequantise"):
    """Make a tensor of the model the float32 reals it stands for, by its scale and zero point."""

    tensor: _Name
    into: _Into | None = None


class Softmax(Step, frozen=True, tag="softmax"):
    """Make logits probabilities, over the last dimension."""

    tensor: _Name
    into: _Into | None = None


class Sigmoid(Step, frozen=True, tag="sigmoid"):
    """Make each logit a probability."""

    tensor: _Name
    into: _Into | None = None


class Threshold(Step, frozen=True, tag="threshold"):
    """Tell which elements are at or above a value: bool. NaN is not."""

    tensor: _Name
    at: float
    into: _Into | None = None


class TopK(Step, frozen=True, tag="top_k"):
    """The `count` highest of each sample's scores, and which classes they are: float32 and int64 [batch, count]."""

    tensor: _Name
    count: Annotated[int, msgspec.Meta(ge=1, le=BOXES_MAX)]
    scores_into: _Into = "scores"
    classes_into: _Into = "classes"


class SuppressOverlaps(Step, frozen=True, tag="suppress_overlaps"):
    """Non-maximum suppression: the best boxes, without those that overlap a better one of the same class.

    `boxes` is [batch, m, 4]; `scores` is [batch, m, classes], or [batch, m] for a single class. A pair of box and class
    counts if its score is at least `score_min`. Gives float32 [batch, count, 4] corners, float32 [batch, count] and int64
    [batch, count]; places without a box are zeros, of class -1.
    """

    boxes: _Name
    scores: _Name
    count: Annotated[int, msgspec.Meta(ge=1, le=BOXES_MAX)]
    overlap_max: _Fraction = 0.5
    """Largest intersection over union that two boxes of a class may have."""
    score_min: float = 0.0
    form: BoxForm = BoxForm.CORNERS
    boxes_into: _Into = "boxes"
    scores_into: _Into = "scores"
    classes_into: _Into = "classes"


class MeanSquaredError(Step, frozen=True, tag="mean_squared_error"):
    """How far a reconstruction is from the original: float32 [batch], the mean of squared differences of each sample.

    `original` is mostly an input, as the model takes it.
    """

    tensor: _Name
    original: _Name
    into: _Into = "score"


After: TypeAlias = Dequantise | Softmax | Sigmoid | Threshold | TopK | SuppressOverlaps | MeanSquaredError


class Preparation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a caller gives for one input of the model, and the steps that make the input of it.

    `given` may leave height and width free (-1) if a step fixes them.
    """

    input: _Name
    given: TensorSpec
    steps: Annotated[tuple[Before, ...], msgspec.Meta(max_length=STEPS_MAX)]


class Processing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All steps around a model.

    Steps of `after` read tensors by name: first the model's outputs and its inputs as it took them, then what earlier
    steps made. `results` names those that a caller gets, in their order; empty: the model's outputs, or what became of
    them.
    """

    before: Annotated[tuple[Preparation, ...], msgspec.Meta(max_length=64)] = ()
    after: Annotated[tuple[After, ...], msgspec.Meta(max_length=STEPS_MAX)] = ()
    results: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=64)] = ()


KINDS_BEFORE: Final = frozenset(
    str(one.__struct_config__.tag)
    for one in (Crop, Resize, Normalise, Standardise, Transpose, Reshape, Cast, Quantise)
)
KINDS_AFTER: Final = frozenset(
    str(one.__struct_config__.tag)
    for one in (Dequantise, Softmax, Sigmoid, Threshold, TopK, SuppressOverlaps, MeanSquaredError)
)


class _Kind(msgspec.Struct, frozen=True):
    kind: str


class _Steps(msgspec.Struct, frozen=True):
    steps: tuple[_Kind, ...] = ()


class _Kinds(msgspec.Struct, frozen=True):
    before: tuple[_Steps, ...] = ()
    after: tuple[_Kind, ...] = ()


def unknown_kind(data: bytes | msgspec.Raw) -> str | None:
    """Name the first kind of step in the JSON of a `Processing` that is not known here; None if all are.

    Raises:
        msgspec.ValidationError: It is not even roughly a `Processing`.
    """
    kinds = msgspec.json.decode(data, type=_Kinds | None)
    if kinds is None:
        return None
    for known, steps in [
        *((KINDS_BEFORE, one.steps) for one in kinds.before),
        (KINDS_AFTER, kinds.after),
    ]:
        for step in steps:
            if step.kind not in known:
                return step.kind
    return None
