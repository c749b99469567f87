"""Golden vectors: recorded inputs and outputs by which a device proves that it runs the model as it was verified.

Decides their file (a stored npz without pickles) and when two answers count as the same. Integer kernels differ by a
step or two between runtimes (two of them gave argmax agreement 1.000 with differences up to 2 steps), so equality is
never asked; the class must agree on nearly all samples and values must be close. Where a bundle has steps around its
model they are part of what is proven: inputs are recorded as callers give them, outputs as callers get them.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from .errors import ManifestError
from .flow import Meaning
from .manifest import Manifest

GOLDEN_BYTES_MAX: Final = 64 << 20
SAMPLES: Final = 16
AGREEMENT_MIN: Final = 0.9
TOLERANCE_FRACTION: Final = 0.05
"""Largest difference, as a fraction of the recorded outputs' range, that is no failure."""
_SCORES: Final = frozenset({Meaning.SCORES, Meaning.PROBABILITIES})
_DISCRETE: Final = frozenset({Meaning.CLASSES, Meaning.FLAGS})

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Golden:
    """Recorded requests: `inputs[i]` and `outputs[i]` are [samples, ...] of the i-th input and output of its surface."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]

    @property
    def samples(self) -> int:
        """How many requests were recorded."""
        return len(self.inputs[0])


@dataclass(frozen=True, slots=True)
class GoldenResult:
    """How answers compare with the recorded ones."""

    agreement: float
    difference_fraction: float
    passed: bool

    def describe(self) -> str:
        """One line for a report."""
        return (
            f"agreement {self.agreement:.3f}, largest difference {self.difference_fraction:.4f} of the range"
        )


def encode(golden: Golden) -> bytes:
    """Write golden vectors; equal arrays give equal bytes."""
    file = io.BytesIO()
    arrays = {f"input_{i}": array for i, array in enumerate(golden.inputs)}
    arrays |= {f"output_{i}": array for i, array in enumerate(golden.outputs)}
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def decode(data: bytes, manifest: Manifest) -> Golden:
    """Read golden vectors for a manifest's tensors, as callers see them.

    Raises:
        ManifestError: Too long, compressed, pickled, or not of the manifest's tensors.
    """
    manifest = manifest.surface
    if len(data) > GOLDEN_BYTES_MAX:
        raise ManifestError(f"the golden vectors have {len(data)} bytes, more than {GOLDEN_BYTES_MAX}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ManifestError("the golden vectors are compressed")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            inputs = tuple(file[f"input_{i}"] for i in range(len(manifest.inputs)))
            outputs = tuple(file[f"output_{i}"] for i in range(len(manifest.outputs)))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ManifestError(f"the golden vectors cannot be read: {error}") from error
    golden = Golden(inputs, outputs)
    for array, spec in zip((*inputs, *outputs), (*manifest.inputs, *manifest.outputs), strict=True):
        if (
            array.ndim != len(spec.shape)
            or str(array.dtype) != spec.dtype.value
            or len(array) != golden.samples
        ):
            raise ManifestError(
                f"the golden vectors of {spec.name} have another shape or type than the model"
            )
    return golden


def compare(recorded: Sequence[Array], observed: Sequence[Array], manifest: Manifest) -> GoldenResult:
    """Compare answers with the recorded ones, output by output.

    A classifier's scores agree on a sample if the highest is of the same class; classes and flags that a step found, if
    all are equal. Values are compared on the samples whose classes and flags agree: a box that swapped its place with
    another one is not compared with it.
    """
    difference = 0.0
    same = np.ones(len(recorded[0]), bool)
    agreement = 1.0
    for want, got, traced in zip(recorded, observed, manifest.results, strict=True):
        if want.shape != got.shape or not np.isfinite(got.astype(np.float64)).all():
            return GoldenResult(0.0, 1.0, passed=False)
        if traced.meaning in _DISCRETE:
            same &= (want == got).reshape(len(want), -1).all(axis=1)
        elif traced.meaning in _SCORES:
            agreement = float((_classes(want) == _classes(got)).mean())
    for want, got, traced in zip(recorded, observed, manifest.results, strict=True):
        if traced.meaning not in _DISCRETE and same.any():
            wanted, gotten = want.astype(np.float64), got.astype(np.float64)
            span = float(wanted.max() - wanted.min()) or 1.0
            difference = max(difference, float(np.abs(wanted - gotten)[same].max(initial=0.0)) / span)
    agreement = min(agreement, float(same.mean()))
    return GoldenResult(
        agreement, difference, agreement >= AGREEMENT_MIN and difference <= TOLERANCE_FRACTION
    )


def _classes(scores: Array) -> npt.NDArray[np.intp]:
    result: npt.NDArray[np.intp] = scores.reshape(len(scores), -1).argmax(axis=1)
    return result
