"""Pulls the monitored columns out of arrays.

Decides how each statistic is computed, identically on the workstation (reference) and on the device (observation).
Large inputs are thinned to at most THINNED_MAX evenly spaced elements first. Runs on batches of rows: one call per
few hundred inferences, never per inference.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from .manifest import ScoreKind
from .monitor import Column, Statistic
from .tensors import TensorSpec

THINNED_MAX: Final = 256
_OF_SCORES: Final = {Statistic.SCORE, Statistic.CONFIDENCE, Statistic.CLASS}
Floats = npt.NDArray[np.float32]


def thinned_size(elements: int) -> int:
    """How many of a sample's elements are kept."""
    return len(range(0, elements, thinning_step(elements)))


def thinning_step(elements: int) -> int:
    """Every how many elements one is kept."""
    return max(1, -(-elements // THINNED_MAX))


def thin(tensor: npt.NDArray[np.generic], samples: int) -> npt.NDArray[np.generic]:
    """View `samples` rows of a tensor as [samples, kept elements]."""
    flat = tensor.reshape(samples, -1)
    return flat[:, :: thinning_step(flat.shape[1])]


def signs(index: int, length: int) -> Floats:
    """Return the `index`-th fixed vector of +1 and -1, float32 [length].

    Bits of SHAKE-128, so that every library version on every device has the same ones.
    """
    bits = np.frombuffer(hashlib.shake_128(b"edgeml projection %d" % index).digest(-(-length // 8)), np.uint8)
    vector: Floats = np.unpackbits(bits)[:length].astype(np.float32) * 2 - 1
    return vector


def to_real(rows: npt.NDArray[np.generic], spec: TensorSpec) -> Floats:
    """Turn stored elements into the reals they stand for, float32."""
    real = rows.astype(np.float32)
    if spec.scale is not None:
        real = (real - np.float32(spec.zero_point or 0)) * np.float32(spec.scale)
    return real


def probabilities(scores: Floats, kind: ScoreKind) -> Floats:
    """Turn scores [rows, classes] into probabilities, float32."""
    if kind is not ScoreKind.LOGITS:
        return scores
    with np.errstate(over="ignore", invalid="ignore"):
        shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
        result: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return result


class Extractor:
    """Computes columns for rows of thinned tensors. Knows nothing of bins."""

    def __init__(self, columns: tuple[Column, ...], specs: tuple[TensorSpec, ...], kind: ScoreKind) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._kind = kind
        self._count = len(columns)
        self._groups = _grouped(columns)
        self._projections: dict[str, Floats] = {}
        for name, spec in self._specs.items():
            count = sum(
                column.tensor == name and column.statistic is Statistic.PROJECTION for column in columns
            )
            size = thinned_size(spec.sample_elements)
            if count:
                self._projections[name] = np.stack(
                    [signs(index, size) for index in range(count)]
                ).T / np.float32(np.sqrt(size))

    def extract(self, rows: dict[str, npt.NDArray[np.generic]]) -> Floats:
        """Compute columns.

        Args:
            rows: per tensor name, [rows, kept elements], as stored.

        Returns:
            float32 [columns, rows]; not finite where the input was not.
        """
        real = {name: to_real(array, self._specs[name]) for name, array in rows.items()}
        count = next(iter(real.values())).shape[0]
        result = np.empty((self._count, count), np.float32)
        scores = {
            name: probabilities(real[name], self._kind)
            for name in {group.tensor for group in self._groups if group.statistic in _OF_SCORES}
        }
        for group in self._groups:
            match group.statistic:
                case Statistic.ELEMENT:
                    result[group.positions] = real[group.tensor][:, group.indices].T
                case Statistic.MEAN:
                    result[group.positions] = real[group.tensor].mean(axis=1)
                case Statistic.STD:
                    result[group.positions] = real[group.tensor].std(axis=1)
                case Statistic.PROJECTION:
                    projected = real[group.tensor] @ self._projections[group.tensor]
                    result[group.positions] = projected[:, group.indices].T
                case Statistic.SCORE:
                    result[group.positions] = scores[group.tensor][:, group.indices].T
                case Statistic.CONFIDENCE:
                    result[group.positions] = scores[group.tensor].max(axis=1)
                case Statistic.CLASS:
                    result[group.positions] = _classes(scores[group.tensor])
        return result


@dataclass(frozen=True, slots=True)
class _Group:
    """Columns that are computed at once: one statistic of one tensor."""

    tensor: str
    statistic: Statistic
    positions: list[int]
    indices: list[int]


def _grouped(columns: tuple[Column, ...]) -> list[_Group]:
    groups: dict[tuple[str, Statistic], _Group] = {}
    for position, column in enumerate(columns):
        key = (column.tensor, column.statistic)
        group = groups.setdefault(key, _Group(*key, [], []))
        group.positions.append(position)
        group.indices.append(column.index)
    return list(groups.values())


def _classes(scores: Floats) -> Floats:
    classes: Floats = scores.argmax(axis=1).astype(np.float32)
    classes[~np.isfinite(scores).all(axis=1)] = np.nan
    return classes
