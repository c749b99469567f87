"""Where the samples of a batch come from: a directory, a table of numbers, or arrays; read one by one.

Decides which files of a directory are samples, and how a row of a CSV file becomes one. A batch may be larger than
memory, so only the arrays of one .npz or .npy are held at once. Whether a sample fits the model is `samples`' business.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeml.errors import ConfigError
from edgeml.inference import ModelMetadata, TensorMetadata

from .samples import fitted, read_samples

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.generic]

ARRAYS: Final = frozenset({".npy", ".npz", ".json"})
IMAGES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm"})
RAW: Final = ".bin"
COLUMNS_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample, [1, ...] for each input of the model, or why it is none."""

    name: str
    inputs: tuple[Array, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class SampleSource:
    """Samples in a stable order, and how many there are. `skipped` files of a directory are no samples."""

    count: int
    samples: Iterator[Sample]
    skipped: int = 0


def open_samples(path: Path, metadata: ModelMetadata) -> SampleSource:
    """Find the samples.

    Args:
        path: a directory of .npy, .npz, .json, .bin (the bytes of the model's one input) or images (those need Pillow);
            a .csv file with a sample a row, with or without a line of names; or an .npz, .npy or .json file with arrays.
        metadata: of the model that takes them.

    Raises:
        ConfigError: There is nothing there, or it cannot fit the model.
    """
    if path.is_dir():
        return _directory(path, metadata)
    if path.suffix == ".csv":
        return _table(path, metadata)
    arrays = read_samples(path, metadata)
    count = len(arrays[0])
    rows = (Sample(str(i), tuple(array[i : i + 1] for array in arrays)) for i in range(count))
    return SampleSource(count, rows)


def _directory(path: Path, metadata: ModelMetadata) -> SampleSource:
    try:
        files = sorted(one for one in path.iterdir() if one.is_file() and not one.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    known = [one for one in files if one.suffix.lower() in ARRAYS | IMAGES | {RAW}]
    if not known:
        raise ConfigError(
            f"no samples in {path}", hint=f"files that are: {', '.join(sorted(ARRAYS | IMAGES | {RAW}))}"
        )
    return SampleSource(len(known), (_file(one, metadata) for one in known), len(files) - len(known))


def _file(path: Path, metadata: ModelMetadata) -> Sample:
    """Read one file; what is wrong with it is the sample's error, not the batch's end."""
    try:
        suffix = path.suffix.lower()
        if suffix in IMAGES:
            return Sample(path.name, (_image(path, metadata),))
        if suffix == RAW:
            return Sample(path.name, (_raw(path, metadata),))
        arrays = read_samples(path, metadata)
        if len(arrays[0]) != 1:
            return Sample(path.name, error=f"{len(arrays[0])} samples in one file; one is expected")
        return Sample(path.name, tuple(arrays))
    except ConfigError as error:
        return Sample(path.name, error=error.message)


def _raw(path: Path, metadata: ModelMetadata) -> Array:
    import numpy as np

    from edgeml.tensors import DType

    spec = _only_input(metadata, path)
    shape = tuple(spec.shape[1:])
    dtype = np.dtype(DType.from_protocol_name(spec.datatype).value)
    if any(size < 1 for size in shape):
        raise ConfigError(f"{path}: the model's input has no fixed shape, bytes say none")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    expected = int(np.prod(shape)) * dtype.itemsize
    if len(data) != expected:
        raise ConfigError(f"{path} has {len(data)} bytes, a sample has {expected}")
    array: Array = np.frombuffer(data, dtype).reshape(1, *shape)
    return array


def _image(path: Path, metadata: ModelMetadata) -> Array:
    import numpy as np

    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ConfigError("images need Pillow", hint="pip install 'edgeml-fleet[tools]'") from error

    spec = _only_input(metadata, path)
    channels_last = spec.shape[-1] in (1, 3)
    grey = 3 not in (spec.shape[-1], spec.shape[1] if len(spec.shape) > 1 else 0)
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{path} is no image: {error}") from error
    if grey and len(spec.shape) == 4:
        pixels = pixels[:, :, np.newaxis]
    if not channels_last and pixels.ndim == 3:
        pixels = pixels.transpose(2, 0, 1)
    return fitted(pixels[np.newaxis], spec, path)


def _table(path: Path, metadata: ModelMetadata) -> SampleSource:
    import numpy as np

    spec = _only_input(metadata, path)
    columns = int(np.prod([size for size in spec.shape[1:] if size > 0]))
    if not 0 < columns <= COLUMNS_MAX:
        raise ConfigError(f"{path}: a sample of the model has {columns} numbers, which is no row of a table")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            first = next(csv.reader(file), [])
            lines = sum(1 for row in csv.reader(file) if row) + bool(first)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    has_names = bool(first) and not _is_number(first[0])
    count = lines - has_names
    if count < 1:
        raise ConfigError(f"{path} has no rows")
    return SampleSource(count, _rows(path, metadata, columns, has_names))


def _rows(path: Path, metadata: ModelMetadata, columns: int, has_names: bool) -> Iterator[Sample]:
    import numpy as np

    spec = metadata.inputs[0]
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(line for line in csv.reader(file) if line):
            if has_names and number == 0:
                continue
            name = str(number - has_names)
            if len(row) != columns:
                yield Sample(name, error=f"{len(row)} columns, the model takes {columns}")
                continue
            try:
                values = np.array([float(cell) if cell.strip() else np.nan for cell in row])
                shape = [size if size > 0 else 1 for size in spec.shape[1:]]
                yield Sample(name, (fitted(values.reshape(1, *shape), spec, path),))
            except (ValueError, ConfigError) as error:
                yield Sample(name, error=error.message if isinstance(error, ConfigError) else str(error))


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def _only_input(metadata: ModelMetadata, path: Path) -> TensorMetadata:
    if len(metadata.inputs) != 1:
        raise ConfigError(
            f"the model takes {len(metadata.inputs)} inputs, {path.name} holds one",
            hint="put them into .npz files, an array for each input",
        )
    return metadata.inputs[0]
