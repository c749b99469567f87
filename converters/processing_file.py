"""Reads the steps around a model from a file, and makes samples that go through them.

Decides the file (the manifest's `processing`, as JSON or TOML) and how a mistake in it is told. What steps there are is
`edgeml.steps`' business, whether they fit the model `edgeml.flow`'s. Format: docs/bundle-format.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from edgeml.errors import ConfigError, ManifestError
from edgeml.manifest import Manifest
from edgeml.steps import KINDS_AFTER, KINDS_BEFORE, Crop, Processing, Resize
from edgeml.tensors import TensorSpec

from .assemble import Array
from .record_file import read_record

_HINT: Final = "docs/bundle-format.md describes steps and has examples"


def read_processing(path: Path) -> Processing:
    """Read steps from a .json or .toml file.

    Raises:
        ConfigError: The file cannot be read, or does not say steps.
    """
    kinds = f"before: {', '.join(sorted(KINDS_BEFORE))}; after: {', '.join(sorted(KINDS_AFTER))}"
    return read_record(path, Processing, f"steps {kinds}. {_HINT}")


def check_fit(manifest: Manifest) -> None:
    """Refuse steps that do not fit the model.

    Raises:
        ConfigError: They do not; the message says which and why.
    """
    try:
        _ = manifest.surface
    except ManifestError as error:
        model = ", ".join(
            f"{spec.name} {spec.dtype.value} {list(spec.shape)}"
            for spec in (*manifest.inputs, *manifest.outputs)
        )
        raise ConfigError(error.message, hint=f"the model has {model}. {_HINT}") from error


def sized(manifest: Manifest) -> tuple[TensorSpec, ...]:
    """What callers give, with free sides made as long as the largest side that a step names: enough for every crop."""
    return tuple(_sized(spec, manifest.processing or Processing()) for spec in manifest.surface.inputs)


def check_samples(spec: TensorSpec, samples: Array) -> None:
    """Refuse samples [samples, ...] that are not what callers give.

    Raises:
        ConfigError: Another type or shape.
    """
    same_rank = samples.ndim == len(spec.shape)
    fits = same_rank and all(
        want in {-1, have} for have, want in zip(samples.shape[1:], spec.sample_shape, strict=True)
    )
    if not fits or samples.dtype.name != spec.dtype.value:
        raise ConfigError(
            f"evaluation_x holds {samples.dtype} samples of shape {list(samples.shape[1:])}; before its steps "
            f"{spec.name} is {spec.dtype.value} of shape {list(spec.sample_shape)}",
            hint="give samples as callers will: the steps are applied to them",
        )


def _sized(spec: TensorSpec, processing: Processing) -> TensorSpec:
    named = [
        (step.height, step.width)
        for one in processing.before
        if one.given is spec
        for step in one.steps
        if isinstance(step, Crop | Resize)
    ]
    sides = {letter: max((pair[at] for pair in named), default=-1) for at, letter in enumerate("HW")}
    shape = tuple(
        sides.get(letter, size) if size < 0 and at else size
        for at, (size, letter) in enumerate(
            zip(spec.shape, spec.layout or "?" * len(spec.shape), strict=True)
        )
    )
    return msgspec.structs.replace(spec, shape=shape)
