"""Writes samples to a file that one can label and train on: numpy's .npz.

Decides its arrays. Under the name of each of the model's inputs, [samples, ...] as the model takes them; beside them
`sample_device`, `sample_boot`, `sample_seq`, `sample_request`, `sample_release`, `sample_why` (text), `sample_at_ms`,
`sample_predicted` (-1: none) and `sample_confidence` (NaN: none), which say where each came from and what the model
made of it. Nothing in it needs unpickling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from edgeml.atomic import replacing
from edgeml.errors import ConfigError
from edgeml.telemetry import Sample, SampledTensor

from .samples import StoredSample

SUFFIX: Final = ".npz"
PREFIX: Final = "sample_"
Array = npt.NDArray[np.generic]


class Exported(msgspec.Struct, frozen=True):
    """What was written."""

    samples: int
    inputs: dict[str, str]
    """Type and shape of the array of each input."""


def export(found: Iterable[StoredSample], out: Path) -> Exported:
    """Write samples, in the order they come.

    Raises:
        ConfigError: There are none, they do not have the same inputs, or the file's name does not end in .npz.
        StorageError: The disk refused; an older file of that name is untouched.
    """
    if out.suffix != SUFFIX:
        raise ConfigError(f"{out.name} does not end in {SUFFIX}", hint="the file is one for numpy.load")
    samples = list(found)
    if not samples:
        raise ConfigError(
            "no such samples are stored", hint="edgeml fleet samples ls; devices sample only if told to"
        )
    inputs = _inputs([one.sample for one in samples])
    with replacing(out) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **inputs, **_origins(samples))
    return Exported(
        len(samples), {name: f"{array.dtype} {list(array.shape)}" for name, array in inputs.items()}
    )


def _inputs(samples: list[Sample]) -> Mapping[str, Array]:
    looks = {_looks(sample) for sample in samples}
    if len(looks) > 1:
        models = sorted({sample.release for sample in samples})
        raise ConfigError(
            f"samples with different inputs do not fit into one file: {', '.join(models[:5])}",
            hint="choose a --model or a --release",
        )
    columns = zip(*(sample.inputs for sample in samples), strict=True)
    arrays = {column[0].name: np.stack([_array(tensor) for tensor in column]) for column in columns}
    clash = next((name for name in arrays if name.startswith(PREFIX)), None)
    if clash is not None:
        raise ConfigError(f"the model's input {clash} has a name that this file needs for itself")
    return arrays


def _looks(sample: Sample) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    return tuple((tensor.name, tensor.dtype.value, tensor.shape) for tensor in sample.inputs)


def _array(tensor: SampledTensor) -> Array:
    # The leading dimension is that of a batch of one; samples are stacked in its place.
    shape = tensor.shape[1:] if tensor.shape else ()
    return np.frombuffer(tensor.unpack(), np.dtype(tensor.dtype.value).newbyteorder("<")).reshape(shape)


def _origins(samples: list[StoredSample]) -> Mapping[str, Array]:
    rows = [one.sample for one in samples]
    origins: dict[str, Array] = {
        "device": np.array([one.device for one in samples]),
        "boot": np.array([one.boot for one in samples]),
        "seq": np.array([row.seq for row in rows], np.int64),
        "request": np.array([row.request for row in rows]),
        "release": np.array([row.release for row in rows]),
        "why": np.array([row.why.value for row in rows]),
        "at_ms": np.array([row.at_ms for row in rows], np.int64),
        "predicted": np.array([-1 if row.predicted is None else row.predicted for row in rows], np.int64),
        "confidence": np.array(
            [np.nan if row.confidence is None else row.confidence for row in rows], np.float64
        ),
    }
    return {f"{PREFIX}{name}": array for name, array in origins.items()}
