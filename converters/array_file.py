"""Reads one array of numpy's file format, from someone who may lie about its size.

Decides that an array is allocated only if the file holds all that its header states, and that nothing is unpickled. Which
arrays are wanted, and what is right about them, is decided by who reads.
"""

from __future__ import annotations

import math
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from edgeml.errors import ConfigError

ARRAY_BYTES_MAX: Final = 4 << 30
_HEADERS: Final = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

Array = npt.NDArray[np.generic]


def read_array(file: IO[bytes], length_bytes: int, name: str) -> Array:
    """Read an array.

    Args:
        file: at its beginning, and seekable.
        length_bytes: all that the file holds.
        name: of the array, for messages.

    Raises:
        ConfigError: It holds Python objects, states another length than it has, is too long, or is no array.
    """
    if length_bytes > ARRAY_BYTES_MAX:
        raise ConfigError(
            f"{name} has {length_bytes} bytes, more than {ARRAY_BYTES_MAX}",
            hint="some thousand samples are enough",
        )
    try:
        shape, dtype = _header(file)
        if dtype.hasobject:
            raise ConfigError(
                f"{name} holds Python objects", hint="give it a numeric type before you save it"
            )
        stated, held = math.prod(shape) * dtype.itemsize, length_bytes - file.tell()
        if stated != held:
            raise ConfigError(f"{name} states {stated} bytes and has {held}", hint="write the file again")
        file.seek(0)
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise ConfigError(
            f"{name} cannot be read: {error}", hint="write the file again with numpy.savez"
        ) from error
    return array


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"unknown array format {version}")
    shape, _, dtype = _HEADERS[version](file)
    return shape, dtype
