"""The data that a conversion is judged by: one .npz file, checked hard.

Decides which arrays there are, which element types, how much may be read, and what is refused before anything is
allocated for it. Whether the samples fit the model is told by the model (`sources/`).
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeml.errors import ConfigError
from edgeml.ids import Digest, digest_of_file
from edgeml.reference import ROWS_MIN
from edgeml.tensors import DType

from .array_file import ARRAY_BYTES_MAX, Array, read_array

DATA_BYTES_MAX: Final = ARRAY_BYTES_MAX
CALIBRATION_MIN: Final = 16
EVALUATION_MIN: Final = ROWS_MIN
CALIBRATION_X: Final = "calibration_x"
EVALUATION_X: Final = "evaluation_x"
EVALUATION_Y: Final = "evaluation_y"
TRAIN_X: Final = "train_x"
TRAIN_Y: Final = "train_y"
TRAINING_MIN: Final = 64
"""Fewer samples than these teach a network nothing but themselves."""

Labels = npt.NDArray[np.int64]
Targets = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Training:
    """Samples that a step may train on: `x` [samples, ...], `y` their classes, int64, or what is to be answered, float64."""

    x: Array
    y: Labels | Targets


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples that a model is calibrated with, and others that it is judged by.

    `calibration_x` and `evaluation_x` are [samples, ...] in the model's input type, finite; `evaluation_y` is the class
    of each evaluation sample, int64 [samples], or None where there are no classes; `evaluation_targets` is what a
    regression is to answer, float64 [samples, ...], or None. `training` is None where nothing is given to train on.
    """

    calibration_x: Array
    evaluation_x: Array
    evaluation_y: Labels | None
    sha256: Digest
    evaluation_targets: Targets | None = None
    training: Training | None = None

    @property
    def truth(self) -> Labels | Targets | None:
        """What the evaluation samples should be answered with, if it is known."""
        return self.evaluation_y if self.evaluation_targets is None else self.evaluation_targets


def read_dataset(path: Path) -> Dataset:
    """Read the data of a conversion.

    Raises:
        ConfigError: The file or an array of it cannot be used; the message names the array.
    """
    arrays = _read(path, (CALIBRATION_X, EVALUATION_X, EVALUATION_Y, TRAIN_X, TRAIN_Y))
    calibration = _samples(arrays, CALIBRATION_X, CALIBRATION_MIN)
    evaluation = _samples(arrays, EVALUATION_X, EVALUATION_MIN)
    if calibration.shape[1:] != evaluation.shape[1:] or calibration.dtype != evaluation.dtype:
        raise ConfigError(
            f"{CALIBRATION_X} has {_describe(calibration)}, {EVALUATION_X} has {_describe(evaluation)}",
            hint="both must be samples of the same model input",
        )
    labels, targets = _truth(arrays, EVALUATION_Y, EVALUATION_X, len(evaluation))
    training = _training(arrays, evaluation)
    if training is not None and (targets is None) != (training.y.dtype.kind == "i"):
        raise ConfigError(
            f"{TRAIN_Y} has {training.y.dtype}, {EVALUATION_Y} has {arrays[EVALUATION_Y].dtype if EVALUATION_Y in arrays else 'nothing'}",
            hint="both must be classes (integers), or both what is to be answered (floats)",
        )
    return Dataset(calibration, evaluation, labels, digest_of_file(path), targets, training)


def read_evaluation(path: Path) -> Dataset:
    """Read `evaluation_x` and, if there, `evaluation_y`; `calibration_x` stays empty.

    Raises:
        ConfigError: The file or an array of it cannot be used; the message names the array.
    """
    arrays = _read(path, (EVALUATION_X, EVALUATION_Y))
    evaluation = _samples(arrays, EVALUATION_X, EVALUATION_MIN, kinds=frozenset(DType))
    labels, targets = _truth(arrays, EVALUATION_Y, EVALUATION_X, len(evaluation))
    return Dataset(evaluation[:0], evaluation, labels, digest_of_file(path), targets)


def check_classes(labels: Labels, classes: int) -> None:
    """Refuse labels that name no class of the model.

    Raises:
        ConfigError: A label is below 0, or not below the number of classes.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ConfigError(
            f"{EVALUATION_Y} holds labels from {low} to {high}, the model has {classes} classes",
            hint=f"labels are class numbers from 0 to {classes - 1}",
        )


def _read(path: Path, names: tuple[str, ...]) -> dict[str, Array]:
    """Read arrays of an .npz, refusing what would need more memory than the file states or we allow."""
    try:
        with zipfile.ZipFile(path) as archive:
            present = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = [present[name] for name in names if name in present]
            total = sum(info.file_size for info in wanted)
            if total > DATA_BYTES_MAX:
                raise ConfigError(
                    f"the arrays in {path.name} take {total} bytes, more than {DATA_BYTES_MAX}",
                    hint="some thousand samples are enough",
                )
            arrays = {}
            for name in names:
                if name in present:
                    with archive.open(present[name]) as member:
                        arrays[name] = read_array(member, present[name].file_size, name)
            return arrays
    except OSError as error:
        raise ConfigError(
            f"cannot read data {path}: {error.strerror or error}", hint="check the path"
        ) from error
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, zlib.error) as error:
        raise ConfigError(f"{path} is no .npz file: {error}", hint="write it with numpy.savez") from error


_MODEL_TYPES: Final = frozenset(
    {DType.FLOAT32, DType.INT64, DType.INT32, DType.UINT8, DType.INT8, DType.INT16}
)


def _samples(
    arrays: dict[str, Array], name: str, least: int, kinds: frozenset[DType] = _MODEL_TYPES
) -> Array:
    if name not in arrays:
        raise ConfigError(
            f"the data have no array {name}", hint=f"save it: numpy.savez('data.npz', {name}=..., ...)"
        )
    array = arrays[name]
    names = sorted(kind.value for kind in kinds)
    if array.dtype.name not in names or not array.dtype.isnative:
        raise ConfigError(
            f"{name} has type {array.dtype}; models take {', '.join(names)}",
            hint=f"save {name}.astype('float32'), scaled as the model takes it"
            if array.dtype.kind == "f"
            else "save it in the type that the model takes",
        )
    if array.ndim < 2 or 0 in array.shape[1:]:
        raise ConfigError(
            f"{name} has shape {list(array.shape)}",
            hint="its first dimension counts samples, the others are one sample's",
        )
    if len(array) < least:
        raise ConfigError(
            f"{name} has {len(array)} samples, fewer than {least}",
            hint="give at least so many; some hundreds are better",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0])
        raise ConfigError(
            f"{name} holds NaN or infinity, first in sample {bad}", hint="remove or repair such samples"
        )
    return array


def _truth(
    arrays: dict[str, Array], name: str, samples_name: str, samples: int
) -> tuple[Labels | None, Targets | None]:
    """Read classes or targets, whichever the array's type says it holds."""
    if name not in arrays:
        return None, None
    truth = arrays[name]
    if len(truth.shape) < 1 or len(truth) != samples or (truth.dtype.kind in "iu" and truth.ndim != 1):
        raise ConfigError(
            f"{name} has shape {list(truth.shape)}, {samples_name} has {samples} samples",
            hint="give one label per sample",
        )
    if truth.dtype.kind in "iu":
        return truth.astype(np.int64), None
    if truth.dtype.kind != "f":
        raise ConfigError(
            f"{name} has type {truth.dtype}",
            hint="class numbers are integers; what a regression is to answer is float",
        )
    if not np.isfinite(truth).all():
        raise ConfigError(f"{name} holds NaN or infinity", hint="remove or repair such samples")
    return None, truth.astype(np.float64)


def _training(arrays: dict[str, Array], evaluation: Array) -> Training | None:
    if TRAIN_X not in arrays and TRAIN_Y not in arrays:
        return None
    if TRAIN_Y not in arrays:
        raise ConfigError(f"the data have {TRAIN_X} and no {TRAIN_Y}", hint="give both, or neither")
    samples = _samples(arrays, TRAIN_X, TRAINING_MIN)
    if samples.shape[1:] != evaluation.shape[1:] or samples.dtype != evaluation.dtype:
        raise ConfigError(
            f"{TRAIN_X} has {_describe(samples)}, {EVALUATION_X} has {_describe(evaluation)}",
            hint="both must be samples of the same model input",
        )
    labels, targets = _truth(arrays, TRAIN_Y, TRAIN_X, len(samples))
    y = labels if targets is None else targets
    assert y is not None
    return Training(samples, y)


def _describe(array: Array) -> str:
    return f"{array.dtype} samples of shape {list(array.shape[1:])}"
