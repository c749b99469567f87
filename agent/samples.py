"""Samples in a file, as one model takes them.

Decides which arrays of a .npz, .npy or .json file go to which input, and which changes of type lose nothing that
matters. Asking about them is `infer`'s business.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from edgeml.errors import ConfigError, ManifestError
from edgeml.inference import ModelMetadata, TensorMetadata
from edgeml.tensors import DType

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.generic]

FILE_BYTES_MAX: Final = 1 << 30


def read_samples(path: Path, metadata: ModelMetadata) -> list[Array]:
    """Read one array per input of the model, [samples, ...], of the model's types.

    Reals are quantized if the model takes quantized integers and says how.

    Raises:
        ConfigError: The file cannot be read or does not fit the model.
    """
    arrays = _read_arrays(path)
    names = [spec.name for spec in metadata.inputs]
    if len(names) == 1 and names[0] not in arrays:
        arrays = {names[0]: next(iter(arrays.values()))}
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ConfigError(f"{path} has no array {missing[0]}", hint=f"the model takes {', '.join(names)}")
    samples = [fitted(arrays[spec.name], spec, path) for spec in metadata.inputs]
    if len({len(array) for array in samples}) != 1 or not len(samples[0]):
        raise ConfigError(f"{path} has no samples, or not equally many for each input")
    return samples


def _read_arrays(path: Path) -> dict[str, Array]:
    import numpy as np

    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigError(f"{path} is longer than {FILE_BYTES_MAX} bytes")
        if path.suffix == ".json":
            content = msgspec.json.decode(path.read_bytes())
            named = content if isinstance(content, dict) else {"": content}
            arrays = {name: np.asarray(value) for name, value in named.items()}
        else:
            loaded = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                arrays = {"": loaded}
            else:
                with loaded:
                    arrays = dict(loaded)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror or error}", hint="give a .npz or .json file"
        ) from error
    except (ValueError, EOFError, RecursionError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path} holds no arrays: {error}", hint="give a .npz or .json file") from error
    if not arrays or any(array.dtype.kind not in "fiub" for array in arrays.values()):
        raise ConfigError(f"{path} holds no arrays of numbers", hint="give a .npz or .json file")
    return arrays


def fitted(array: Array, spec: TensorMetadata, path: Path) -> Array:
    """Bring an array, [samples, ...] or a single sample, to what the input takes.

    Raises:
        ConfigError: It does not fit; `path` is named in the message.
    """
    import numpy as np

    sample_shape = spec.shape[1:]
    if array.ndim == len(sample_shape):
        array = array[np.newaxis]
    fits = array.ndim == len(spec.shape) and all(
        want in (-1, size) for size, want in zip(array.shape[1:], sample_shape, strict=True)
    )
    if not fits or spec.shape[0] not in {-1, 1}:
        raise ConfigError(
            f"{path}: {spec.name} has shape {list(array.shape)}, the model takes {list(spec.shape)}, one sample at a time"
        )
    dtype = np.dtype(_dtype(spec).value)
    scale = spec.parameters.scale
    if scale is not None and array.dtype.kind == "f" and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        steps = np.rint(array.astype(np.float64) / scale) + (spec.parameters.zero_point or 0)
        quantized: Array = np.clip(steps, limits.min, limits.max).astype(dtype)
        return quantized
    if not np.can_cast(array.dtype, dtype, "same_kind") and not _lossless(array, dtype):
        raise ConfigError(f"{path}: {spec.name} is {array.dtype}, the model takes {dtype}")
    return np.ascontiguousarray(array.astype(dtype))


def _lossless(array: Array, dtype: np.dtype[np.generic]) -> bool:
    """Tell whether integers that JSON made int64 or float64 survive the cast."""
    return array.dtype.kind in "iub" and dtype.kind in "iu" and bool((array.astype(dtype) == array).all())


def _dtype(spec: TensorMetadata) -> DType:
    try:
        return DType.from_protocol_name(spec.datatype)
    except ValueError as error:
        raise ManifestError(f"the agent's answer is not an answer: {error}") from error
