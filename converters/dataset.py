"""The data that a conversion is judged by: one .npz file, checked hard.

Decides which arrays there are, which element types, how much may be read, and what is refused before anything is
allocated for it. Whether the samples fit the model is told by the model (`sources/`).
"""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from edgeml.errors import ConfigError
from edgeml.ids import Digest, digest_of_file
from edgeml.reference import ROWS_MIN
from edgeml.tensors import DType

DATA_BYTES_MAX: Final = 4 << 30
CALIBRATION_MIN: Final = 16
EVALUATION_MIN: Final = ROWS_MIN
CALIBRATION_X: Final = "calibration_x"
EVALUATION_X: Final = "evaluation_x"
EVALUATION_Y: Final = "evaluation_y"
_HEADERS: Final = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

Array = npt.NDArray[np.generic]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples that a model is calibrated with, and others that it is judged by.

    `calibration_x` and `evaluation_x` are [samples, ...] in the model's input type, finite; `evaluation_y` is the class
    of each evaluation sample, int64 [samples], or None where there are no classes.
    """

    calibration_x: Array
    evaluation_x: Array
    evaluation_y: Labels | None
    sha256: Digest


def read_dataset(path: Path) -> Dataset:
    """Read the data of a conversion.

    Raises:
        ConfigError: The file or an array of it cannot be used; the message names the array.
    """
    arrays = _read(path, (CALIBRATION_X, EVALUATION_X, EVALUATION_Y))
    calibration = _samples(arrays, CALIBRATION_X, CALIBRATION_MIN)
    evaluation = _samples(arrays, EVALUATION_X, EVALUATION_MIN)
    if calibration.shape[1:] != evaluation.shape[1:] or calibration.dtype != evaluation.dtype:
        raise ConfigError(
            f"{CALIBRATION_X} has {_describe(calibration)}, {EVALUATION_X} has {_describe(evaluation)}",
            hint="both must be samples of the same model input",
        )
    return Dataset(calibration, evaluation, _labels(arrays, len(evaluation)), digest_of_file(path))


def read_evaluation(path: Path) -> Dataset:
    """Read `evaluation_x` and, if there, `evaluation_y`; `calibration_x` stays empty.

    Raises:
        ConfigError: The file or an array of it cannot be used; the message names the array.
    """
    arrays = _read(path, (EVALUATION_X, EVALUATION_Y))
    evaluation = _samples(arrays, EVALUATION_X, EVALUATION_MIN, kinds=frozenset(DType))
    return Dataset(evaluation[:0], evaluation, _labels(arrays, len(evaluation)), digest_of_file(path))


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
            return {name: _array(archive, present[name], name) for name in names if name in present}
    except OSError as error:
        raise ConfigError(
            f"cannot read data {path}: {error.strerror or error}", hint="check the path"
        ) from error
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, zlib.error) as error:
        raise ConfigError(f"{path} is no .npz file: {error}", hint="write it with numpy.savez") from error


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Array:
    try:
        with archive.open(info) as member:
            shape, dtype, header_bytes = _header(member)
        if dtype.hasobject:
            raise ConfigError(
                f"{name} holds Python objects", hint="give it a numeric type before you save it"
            )
        stated = math.prod(shape) * dtype.itemsize
        if stated + header_bytes != info.file_size:
            raise ConfigError(
                f"{name} states {stated} bytes and has {info.file_size - header_bytes}",
                hint="write the file again",
            )
        with archive.open(info) as member:
            array: Array = np.lib.format.read_array(member, allow_pickle=False)
    except ValueError as error:
        raise ConfigError(
            f"{name} cannot be read: {error}", hint="write the file again with numpy.savez"
        ) from error
    return array


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    version = np.lib.format.read_magic(member)
    if version not in _HEADERS:
        raise ValueError(f"unknown array format {version}")
    shape, _, dtype = _HEADERS[version](member)
    return shape, dtype, member.tell()


_MODEL_TYPES: Final = frozenset({DType.FLOAT32, DType.INT64, DType.INT32, DType.UINT8})


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


def _labels(arrays: dict[str, Array], samples: int) -> Labels | None:
    if EVALUATION_Y not in arrays:
        return None
    labels = arrays[EVALUATION_Y]
    if labels.dtype.kind not in "iu":
        raise ConfigError(
            f"{EVALUATION_Y} has type {labels.dtype}", hint="labels are class numbers: save them as int64"
        )
    if labels.shape != (samples,):
        raise ConfigError(
            f"{EVALUATION_Y} has shape {list(labels.shape)}, {EVALUATION_X} has {samples} samples",
            hint="give one label per evaluation sample",
        )
    return labels.astype(np.int64)


def _describe(array: Array) -> str:
    return f"{array.dtype} samples of shape {list(array.shape[1:])}"
