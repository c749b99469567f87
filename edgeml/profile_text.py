"""Writes a profile as the TOML that it can be read from.

Decides the form: a field a line, quantities as inline tables, nothing for what is not there. The standard library reads
TOML and does not write it; a profile needs only strings, arrays of strings and flat tables.
"""

from __future__ import annotations

import enum
import json
from typing import Any

import msgspec

from .profile import HardwareProfile, Quantity


def encode(profile: HardwareProfile) -> bytes:
    """Write a profile; `decode(encode(profile)) == profile`."""
    head: list[str] = []
    numbers: list[str] = []
    for field in msgspec.structs.fields(profile):
        value = getattr(profile, field.name)
        if value is None or value == field.default:
            continue
        (numbers if isinstance(value, Quantity) else head).append(f"{field.name} = {_written(value)}")
    return "\n".join([*head, "", *numbers, ""]).encode()


def _written(value: Any) -> str:
    if isinstance(value, Quantity):
        parts = (f"{name} = {_written(getattr(value, name))}" for name in value.__struct_fields__)
        return f"{{ {', '.join(parts)} }}"
    if isinstance(value, enum.Enum):
        return _written(value.value)
    if isinstance(value, str):
        # A JSON string is a TOML string, but for DEL, which JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_written, value))}]"
    return f"{int(value):_}" if float(value).is_integer() else repr(float(value))
