"""Reads a part of a manifest from a file that a person wrote.

Decides the forms (.json and .toml), how much is read, and how a mistake is told. What the part may say is its type's
business.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

import msgspec

from edgeml.errors import ConfigError

FILE_BYTES_MAX: Final = 1 << 18
_Record = TypeVar("_Record")


def read_record(path: Path, kind: type[_Record], hint: str) -> _Record:
    """Read a record from a .json or .toml file.

    Raises:
        ConfigError: The file cannot be read, or says something else; with this hint.
    """
    if path.suffix not in {".json", ".toml"}:
        raise ConfigError(f"{path.name} is neither .json nor .toml", hint=hint)
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{path.name} is longer than {FILE_BYTES_MAX} bytes", hint=hint)
    decode = msgspec.json.decode if path.suffix == ".json" else msgspec.toml.decode
    try:
        return decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path.name}: {error}", hint=hint) from error
