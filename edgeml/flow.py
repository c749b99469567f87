"""What becomes of tensors on their way through a bundle's steps: names, types, shapes, meanings, without any data.

Decides whether steps fit each other and the model, what a caller gives and gets, and what drift is counted on. Needs no
numpy, for the device's supervisor checks requests by it. The steps themselves are `steps`, the arithmetic `kernels`.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Final

import msgspec

from .errors import ManifestError
from .steps import (
    SIDE_MAX,
    After,
    Before,
    Cast,
    Crop,
    Dequantise,
    Interpolation,
    MeanSquaredError,
    Normalise,
    Preparation,
    Processing,
    Quantise,
    Reshape,
    Resize,
    Sigmoid,
    Softmax,
    Standardise,
    SuppressOverlaps,
    Threshold,
    TopK,
    Transpose,
)
from .tensors import BATCH, DType, TensorSpec

ELEMENTS_MAX: Final = 1 << 24
"""Elements that a step may make of one sample, and of a request if they are more than it brought."""
_FLOATS: Final = frozenset({DType.FLOAT16, DType.FLOAT32, DType.FLOAT64})


class Meaning(enum.Enum):
    """What the elements of a result are."""

    VALUES = "values"
    SCORES = "scores"
    """The scores of a classifier, as its manifest says."""
    PROBABILITIES = "probabilities"
    """Scores of a classifier that a step made probabilities."""
    CLASSES = "classes"
    """Numbers of classes; -1 is none."""
    FLAGS = "flags"


@dataclass(frozen=True, slots=True)
class Traced:
    """A tensor on its way, and what it means."""

    spec: TensorSpec
    meaning: Meaning = Meaning.VALUES


def given(inputs: tuple[TensorSpec, ...], processing: Processing) -> tuple[TensorSpec, ...]:
    """What a caller gives, in the order of the model's inputs.

    Raises:
        ManifestError: The steps do not fit each other or the model.
    """
    prepared = {one.input: one for one in processing.before}
    names = {spec.name for spec in inputs}
    if len(prepared) != len(processing.before) or not set(prepared) <= names:
        raise ManifestError("the steps before the model name an input twice, or one that it has not")
    for spec in inputs:
        one = prepared.get(spec.name)
        if one is not None:
            _check_preparation(one, spec)
    specs = tuple(prepared[spec.name].given if spec.name in prepared else spec for spec in inputs)
    if len({spec.name for spec in specs}) != len(specs):
        raise ManifestError("two inputs that callers give have the same name")
    return specs


def results(
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    processing: Processing,
    *,
    classifies: bool,
) -> tuple[Traced, ...]:
    """What a caller gets.

    Args:
        inputs: the model's, as it takes them.
        outputs: the model's, as it gives them.
        processing: the steps.
        classifies: whether the first output holds a classifier's scores.

    Raises:
        ManifestError: The steps do not fit each other or the model.
    """
    known = {spec.name: Traced(spec) for spec in (*inputs, *outputs)}
    if processing.after and len(known) != len(inputs) + len(outputs):
        raise ManifestError("steps follow the model, and two of its tensors have the same name")
    if classifies:
        known[outputs[0].name] = Traced(outputs[0], Meaning.SCORES)
    for step in processing.after:
        for made in _after(step, known):
            known[made.spec.name] = made
    names = processing.results or tuple(spec.name for spec in outputs)
    missing = [name for name in names if name not in known]
    if missing or len(set(names)) != len(names):
        raise ManifestError(
            f"the results name {(missing or names)[0]!r}, which no step makes, or name it twice"
        )
    return tuple(known[name] for name in names)


def watched(inputs: tuple[TensorSpec, ...], processing: Processing) -> tuple[TensorSpec, ...]:
    """What drift is counted on: each input as it is given, if its shape is fixed, else as the model takes it."""
    return tuple(
        mine if is_fixed(mine) else model
        for mine, model in zip(given(inputs, processing), inputs, strict=True)
    )


def is_fixed(spec: TensorSpec) -> bool:
    """Whether every dimension but the first has a size."""
    return all(size >= 0 for size in spec.sample_shape)


def axis(spec: TensorSpec, letter: str) -> int | None:
    """Which dimension a letter of the layout stands for; None without one."""
    at = spec.layout.find(letter)
    return None if at < 0 else at


def trace(spec: TensorSpec, step: Before, target: TensorSpec) -> TensorSpec:
    """What one step before the model makes of a tensor; `target` is the model's input.

    Raises:
        ManifestError: The step does not fit.
    """
    replace = msgspec.structs.replace
    match step:
        case Crop():
            y, x = _image(spec, step)
            if step.height > _free_is_largest(spec.shape[y]) or step.width > _free_is_largest(spec.shape[x]):
                raise ManifestError(
                    f"a crop to {step.height} x {step.width} of a tensor of shape {list(spec.shape)}"
                )
            return replace(spec, shape=_with(spec.shape, {y: step.height, x: step.width}))
        case Resize():
            y, x = _image(spec, step)
            dtype = spec.dtype if step.interpolation is Interpolation.NEAREST else DType.FLOAT32
            return replace(spec, dtype=dtype, shape=_with(spec.shape, {y: step.height, x: step.width}))
        case Normalise():
            _check_normalise(spec, step)
            return replace(spec, dtype=DType.FLOAT32)
        case Standardise():
            _check_finite(step, step.floor)
            return replace(spec, dtype=DType.FLOAT32)
        case Transpose():
            if sorted(step.layout) != sorted(spec.layout):
                raise ManifestError(f"a transposition of {spec.layout or 'no layout'} to {step.layout}")
            order = [spec.layout.index(letter) for letter in step.layout]
            return replace(spec, shape=tuple(spec.shape[i] for i in order), layout=step.layout)
        case Reshape():
            if not is_fixed(spec) or math.prod(spec.sample_shape) != math.prod(step.shape):
                raise ManifestError(f"a reshape of {list(spec.sample_shape)} to {list(step.shape)}")
            return replace(spec, shape=(spec.shape[0], *step.shape), layout="")
        case Cast():
            return replace(spec, dtype=step.dtype)
        case Quantise():
            if target.scale is None or target.dtype in _FLOATS or spec.dtype not in _FLOATS:
                raise ManifestError(
                    f"quantise {spec.dtype.value} for {target.name!r}, of type {target.dtype.value} and scale {target.scale}"
                )
            return replace(spec, dtype=target.dtype)


def _check_preparation(one: Preparation, target: TensorSpec) -> None:
    spec = one.given
    if (
        not spec.name
        or len(spec.name) > 128
        or not spec.shape
        or len(spec.shape) != len(spec.layout or spec.shape)
    ):
        raise ManifestError(
            f"what is given for {one.input!r} has no name, no batch, or a layout of another rank"
        )
    if spec.layout and (not spec.layout.startswith("N") or len(set(spec.layout)) != len(spec.layout)):
        raise ManifestError(f"what is given for {one.input!r} has the layout {spec.layout!r}")
    if spec.scale is not None or spec.zero_point is not None:
        raise ManifestError(
            f"what is given for {one.input!r} has a scale; steps work on elements as they are"
        )
    if any(size < 1 and size != BATCH for size in spec.shape):
        raise ManifestError(f"what is given for {one.input!r} has shape {list(spec.shape)[:8]}")
    _check_size(spec)
    for step in one.steps:
        spec = trace(spec, step, target)
        _check_size(spec)
    fits = (
        spec.dtype is target.dtype
        and len(spec.shape) == len(target.shape)
        and spec.shape[0] == target.shape[0]
        and all(have == want or want < 0 for have, want in zip(spec.shape, target.shape, strict=True))
    )
    if not fits:
        raise ManifestError(
            f"the steps make {spec.dtype.value} {list(spec.shape)} for {target.name!r}, "
            f"the model takes {target.dtype.value} {list(target.shape)}"
        )


def _after(step: After, known: dict[str, Traced]) -> tuple[Traced, ...]:
    match step:
        case Dequantise():
            one = _read(known, step.tensor, step)
            if one.spec.scale is None or one.spec.dtype in _FLOATS:
                raise ManifestError(
                    f"dequantise {step.tensor!r}, which is of type {one.spec.dtype.value} without scale"
                )
            spec = _real(one.spec, step.into or step.tensor)
            return (Traced(spec, one.meaning),)
        case Softmax() | Sigmoid():
            one = _read(known, step.tensor, step, real=True)
            if isinstance(step, Softmax) and len(one.spec.shape) < 2:
                raise ManifestError(f"softmax of {step.tensor!r}, which has no classes")
            is_scores = one.meaning is Meaning.SCORES and isinstance(step, Softmax)
            meaning = Meaning.PROBABILITIES if is_scores else Meaning.VALUES
            return (Traced(_real(one.spec, step.into or step.tensor), meaning),)
        case Threshold():
            one = _read(known, step.tensor, step, real=True)
            _check_finite(step, step.at)
            return (Traced(TensorSpec(step.into or step.tensor, DType.BOOL, one.spec.shape), Meaning.FLAGS),)
        case TopK():
            shape = _read(known, step.tensor, step, real=True).spec.shape
            if len(shape) != 2 or shape[1] < step.count or step.scores_into == step.classes_into:
                raise ManifestError(f"the highest {step.count} of {step.tensor!r}, of shape {list(shape)}")
            return _found(shape[0], step.count, step)
        case SuppressOverlaps():
            return _suppressed(step, known)
        case MeanSquaredError():
            one = _read(known, step.tensor, step, real=True)
            other = _read(known, step.original, step, real=True)
            if one.spec.shape != other.spec.shape or not one.spec.shape:
                raise ManifestError(
                    f"the difference of {step.tensor!r}, {list(one.spec.shape)}, and {step.original!r}, {list(other.spec.shape)}"
                )
            return (Traced(TensorSpec(step.into, DType.FLOAT32, one.spec.shape[:1])),)


def _suppressed(step: SuppressOverlaps, known: dict[str, Traced]) -> tuple[Traced, ...]:
    boxes = _read(known, step.boxes, step, real=True).spec.shape
    scores = _read(known, step.scores, step, real=True).spec.shape
    _check_finite(step, step.score_min)
    fits = len(boxes) == 3 and boxes[2] == 4 and len(scores) in {2, 3} and boxes[:2] == scores[:2]
    names = {step.boxes_into, step.scores_into, step.classes_into}
    if not fits or len(names) != 3 or boxes[1] < 1 or (len(scores) == 3 and scores[2] < 1):
        raise ManifestError(f"overlaps of boxes of shape {list(boxes)} with scores of shape {list(scores)}")
    spec = TensorSpec(step.boxes_into, DType.FLOAT32, (boxes[0], step.count, 4))
    return (Traced(spec), *_found(boxes[0], step.count, step))


def _found(batch: int, count: int, step: TopK | SuppressOverlaps) -> tuple[Traced, Traced]:
    shape = (batch, count)
    return (
        Traced(TensorSpec(step.scores_into, DType.FLOAT32, shape)),
        Traced(TensorSpec(step.classes_into, DType.INT64, shape), Meaning.CLASSES),
    )


def _read(known: dict[str, Traced], name: str, step: After, *, real: bool = False) -> Traced:
    one = known.get(name)
    kind = step.__struct_config__.tag
    if one is None:
        raise ManifestError(f"{kind} of {name!r}, which there is not")
    if real and (one.spec.dtype not in _FLOATS or one.spec.scale is not None):
        raise ManifestError(f"{kind} of {name!r}, which is {one.spec.dtype.value}; dequantise it first")
    return one


def _real(spec: TensorSpec, name: str) -> TensorSpec:
    return TensorSpec(name, DType.FLOAT32, spec.shape, spec.layout)


def _image(spec: TensorSpec, step: Crop | Resize) -> tuple[int, int]:
    y, x = axis(spec, "H"), axis(spec, "W")
    if y is None or x is None:
        kind = step.__struct_config__.tag
        raise ManifestError(f"{kind} of a tensor with the layout {spec.layout or 'none'!r}, without H and W")
    return y, x


def _check_normalise(spec: TensorSpec, step: Normalise) -> None:
    _check_finite(step, step.scale, *step.mean, *step.std)
    if min(step.std) <= 0:
        raise ManifestError("normalise by a std that is not above 0")
    at = axis(spec, "C")
    channels = 1 if at is None else spec.shape[at]
    for values in (step.mean, step.std):
        if len(values) not in {1, channels}:
            raise ManifestError(f"normalise with {len(values)} values for {channels} channels")


def _check_finite(step: Before | After, *values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise ManifestError(f"{step.__struct_config__.tag} with a number that is not finite")


def _check_size(spec: TensorSpec) -> None:
    free = {at for at, size in enumerate(spec.shape) if at and size < 0}
    images = {axis(spec, "H"), axis(spec, "W")}
    if not free <= images:
        raise ManifestError(
            f"only height and width may be free besides the batch, not as in {list(spec.shape)[:8]}"
        )
    if any(spec.shape[at] > SIDE_MAX for at in images if at is not None):
        raise ManifestError(f"an image of shape {list(spec.shape)[:8]}; its sides are at most {SIDE_MAX}")
    if spec.sample_elements > ELEMENTS_MAX:
        raise ManifestError(
            f"samples of shape {list(spec.sample_shape)[:8]}, of more than {ELEMENTS_MAX} elements"
        )


def _with(shape: tuple[int, ...], sizes: dict[int, int]) -> tuple[int, ...]:
    return tuple(sizes.get(at, size) for at, size in enumerate(shape))


def _free_is_largest(size: int) -> int:
    return SIDE_MAX if size < 0 else size
