"""Runs a bundle's steps around its model.

Decides the order of arrays through the steps, and what is refused of a caller's arrays that only now have a size. The
worker runs requests through it, the workstation golden vectors: the same code, so that these prove the steps too. Not
thread-safe. The arithmetic is in `kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np

from . import kernels
from .errors import ConfigError
from .flow import ELEMENTS_MAX, axis, is_fixed, trace
from .kernels import Array
from .manifest import Manifest
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
from .tensors import TensorSpec

CHUNK_SAMPLES: Final = 64
_Kernel: TypeAlias = Callable[[Array], Array]
_Tensors: TypeAlias = dict[str, Array]


class Pipeline:
    """The steps of one variant; none where its manifest has none.

    Raises:
        ManifestError: The steps do not fit; never of a manifest that `decode` gave.
    """

    def __init__(self, manifest: Manifest) -> None:
        processing = manifest.processing or Processing()
        prepared = {one.input: one for one in processing.before}
        self._inputs = manifest.inputs
        self._outputs = manifest.outputs
        self._before = [
            _Preparing(prepared[spec.name], spec) if spec.name in prepared else None
            for spec in manifest.inputs
        ]
        specs = {spec.name: spec for spec in (*manifest.inputs, *manifest.outputs)}
        self._prepares = bool(prepared)
        self._after = [_bind_after(step, specs) for step in processing.after]
        self._results = [one.spec.name for one in manifest.results]
        self._is_plain = not self._after and self._results == [spec.name for spec in manifest.outputs]
        self._watches_given = [is_fixed(given) for given in manifest.surface.inputs]

    def prepare(self, given: Sequence[Array]) -> list[Array]:
        """Make the model's inputs of what a caller gave; both [batch, ...] each.

        Raises:
            ConfigError: An image is smaller than a crop of it, a side is longer than SIDE_MAX, or the samples together would
                become more than ELEMENTS_MAX elements.
        """
        if not self._prepares:
            return list(given)
        return [
            array if one is None else one.run(array) for one, array in zip(self._before, given, strict=True)
        ]

    def finish(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> list[Array]:
        """Make what a caller gets of the model's inputs and outputs."""
        if self._is_plain:
            return list(outputs)
        tensors = {spec.name: array for spec, array in zip(self._inputs, inputs, strict=True)}
        tensors |= {spec.name: array for spec, array in zip(self._outputs, outputs, strict=True)}
        for step in self._after:
            step(tensors)
        return [tensors[name] for name in self._results]

    def answer(self, run: Callable[[Sequence[Array]], list[Array]], given: Sequence[Array]) -> list[Array]:
        """Answer a caller: prepare, `run` the model, finish.

        Raises:
            ConfigError: As `prepare`.
        """
        inputs = self.prepare(given)
        return self.finish(inputs, run(inputs))

    def watched(self, given: Sequence[Array], inputs: Sequence[Array]) -> list[Array]:
        """Choose what drift is counted on, as `Manifest.watched` says."""
        if not self._prepares:
            return list(given)
        return [
            mine if is_given else model
            for mine, model, is_given in zip(given, inputs, self._watches_given, strict=True)
        ]

    def prepare_samples(self, given: Sequence[Array]) -> tuple[Array, ...]:
        """Make the model's inputs of any number of samples, at most CHUNK_SAMPLES at a time.

        Raises:
            ConfigError: As `prepare`.
        """
        step = min((CHUNK_SAMPLES, *(one.samples_max for one in self._before if one is not None)))
        chunks = [
            self.prepare([array[first : first + step] for array in given])
            for first in range(0, len(given[0]), step)
        ]
        return tuple(np.concatenate(parts) for parts in zip(*chunks, strict=True))


class _Preparing:
    """The steps of one input."""

    def __init__(self, preparation: Preparation, target: TensorSpec) -> None:
        self._spec = preparation.given
        self._images = [
            at
            for at in (axis(self._spec, "H"), axis(self._spec, "W"))
            if at is not None and self._spec.shape[at] < 0
        ]
        spec = preparation.given
        self._kernels: list[_Kernel] = []
        self._largest = 1
        for step in preparation.steps:
            self._kernels.append(_bind_before(step, spec, target))
            spec = trace(spec, step, target)
            if is_fixed(spec):
                self._largest = max(self._largest, spec.sample_elements)

    @property
    def samples_max(self) -> int:
        """How many samples are certainly not too many; at least one."""
        return ELEMENTS_MAX // self._largest

    def run(self, array: Array) -> Array:
        """Make the model's input of an array that a caller gave."""
        for at in self._images:
            if array.shape[at] > SIDE_MAX:
                raise ConfigError(
                    f"{self._spec.name} has shape {list(array.shape)}; images have at most {SIDE_MAX} pixels a side"
                )
        # What is given is bounded already; a resize could make much of little.
        samples_max = self.samples_max
        if len(array) > samples_max and len(array) * self._largest > array.size:
            raise ConfigError(
                f"{self._spec.name} has {len(array)} samples; at most {samples_max} are prepared at once",
                hint="ask about fewer samples in a request",
            )
        for kernel in self._kernels:
            array = kernel(array)
        return np.ascontiguousarray(array)


def _bind_before(step: Before, spec: TensorSpec, target: TensorSpec) -> _Kernel:
    match step:
        case Crop():
            return _crop(step, spec)
        case Resize():
            axes, size = _image(spec), (step.height, step.width)
            nearest = step.interpolation is Interpolation.NEAREST
            kernel = kernels.resize_nearest if nearest else kernels.resize_bilinear
            return lambda array: kernel(array, axes, size)
        case Normalise():
            return _normalise(step, spec)
        case Standardise():
            channel = axis(spec, "C")
            over = tuple(at for at in range(1, len(spec.shape)) if at != channel)
            return lambda array: kernels.standardise(array, over, step.floor)
        case Transpose():
            order = [spec.layout.index(letter) for letter in step.layout]
            return lambda array: array.transpose(order)
        case Reshape():
            return lambda array: array.reshape(len(array), *step.shape)
        case Cast():
            dtype = np.dtype(step.dtype.value)
            return lambda array: kernels.cast(array, dtype)
        case Quantise():
            scale, zero, kind = _scale(target), target.zero_point or 0, np.dtype(target.dtype.value)
            return lambda array: kernels.quantise(array, scale, zero, kind)


def _crop(step: Crop, spec: TensorSpec) -> _Kernel:
    axes, size = _image(spec), (step.height, step.width)

    def run(array: Array) -> Array:
        if any(array.shape[at] < wanted for at, wanted in zip(axes, size, strict=True)):
            have = [array.shape[at] for at in axes]
            raise ConfigError(
                f"{spec.name} is {have[0]} x {have[1]} pixels, its middle {size[0]} x {size[1]} is wanted"
            )
        return kernels.crop(array, axes, size)

    return run


def _normalise(step: Normalise, spec: TensorSpec) -> _Kernel:
    shape = [1] * len(spec.shape)
    channel = axis(spec, "C")
    if channel is not None:
        shape[channel] = -1
    # (x * scale - mean) / std as one multiplication and one addition.
    std = np.asarray(step.std, np.float64)
    factor = (step.scale / std).astype(np.float32).reshape(shape if std.size > 1 else -1)
    offset = -np.asarray(step.mean, np.float64) / std
    shift = offset.astype(np.float32).reshape(shape if offset.size > 1 else -1)

    def run(array: Array) -> Array:
        result = np.multiply(array, factor, dtype=np.float32, casting="unsafe")
        result += shift
        return result

    return run


def _bind_after(step: After, specs: dict[str, TensorSpec]) -> Callable[[_Tensors], None]:
    match step:
        case Dequantise():
            spec = specs[step.tensor]
            scale, zero = _scale(spec), spec.zero_point or 0
            return _unary(lambda array: kernels.dequantise(array, scale, zero), step.tensor, step.into)
        case Softmax():
            return _unary(kernels.softmax, step.tensor, step.into)
        case Sigmoid():
            return _unary(kernels.sigmoid, step.tensor, step.into)
        case Threshold():
            return _unary(lambda array: _real(array) >= step.at, step.tensor, step.into)
        case TopK():
            return lambda tensors: _top_k(step, tensors)
        case SuppressOverlaps():
            return lambda tensors: _suppress(step, tensors)
        case MeanSquaredError():
            return lambda tensors: tensors.update(
                {step.into: kernels.mean_squared_error(tensors[step.tensor], tensors[step.original])}
            )


def _unary(kernel: _Kernel, name: str, into: str | None) -> Callable[[_Tensors], None]:
    def run(tensors: _Tensors) -> None:
        tensors[into or name] = kernel(tensors[name])

    return run


def _top_k(step: TopK, tensors: _Tensors) -> None:
    scores, classes = kernels.top_k(tensors[step.tensor], step.count)
    tensors |= {step.scores_into: scores, step.classes_into: classes}


def _suppress(step: SuppressOverlaps, tensors: _Tensors) -> None:
    boxes, scores = tensors[step.boxes], tensors[step.scores]
    if scores.ndim == 2:
        scores = scores[:, :, None]
    limits = (step.count, step.overlap_max, step.score_min)
    found = [
        kernels.suppress_overlaps(mine, its, limits, step.form)
        for mine, its in zip(boxes, scores, strict=True)
    ]
    names = (step.boxes_into, step.scores_into, step.classes_into)
    for name, parts in zip(names, zip(*found, strict=True), strict=True):
        tensors[name] = np.stack(parts)


def _image(spec: TensorSpec) -> tuple[int, int]:
    y, x = axis(spec, "H"), axis(spec, "W")
    assert y is not None
    assert x is not None
    return y, x


def _real(array: Array) -> kernels.Floats:
    return array.astype(np.float32)


def _scale(spec: TensorSpec) -> float:
    assert spec.scale is not None
    return spec.scale
