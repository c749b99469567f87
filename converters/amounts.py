"""Amounts that a person writes: `0.5%`, `5ms`, `200KB`.

Decides which units are known and what is refused because it would most likely mean something else. Pure.
"""

from __future__ import annotations

import math
from typing import Final

from edgeml.errors import ConfigError

BARE_FRACTION_MAX: Final = 0.1
_PERCENT_MAX: Final = 99.0
_ROUNDING: Final = 1e-9
"""Of a number of two digits: a drop of 0.02 may have been worked out as a little more."""
_MS: Final = {"us": 0.001, "ms": 1.0, "s": 1000.0}
_BYTES: Final = {
    "b": 1, "kb": 1000, "mb": 1_000_000, "gb": 1_000_000_000, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
}  # fmt: skip


def fraction(text: str) -> float:
    """Read `0.5%` or `0.005`. A bare 0.5 is refused: it would be 50 %, and mostly 0.5 % is meant.

    Raises:
        ConfigError: Neither, or not between 0 and 1.

    >>> fraction("0.5%"), fraction("0.01")
    (0.005, 0.01)
    """
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ConfigError(f"{text!r} is no drop", hint="write 0.5% or 0.005")
    if not percent and value > BARE_FRACTION_MAX:
        raise ConfigError(
            f"a drop of {text} would be {value:.0%}", hint=f"write {text}%, or {value:.0%} if you mean that"
        )
    return value


def drop_at_least(value: float) -> str:
    """Write the least drop of two digits that `fraction` reads as `value` or more; empty where it reads none so great.

    >>> drop_at_least(1 / 300), drop_at_least(0.02), drop_at_least(1.5)
    ('0.34%', '2%', '')
    """
    percent = value * 100
    if percent > _PERCENT_MAX:
        return ""
    step = 10.0 ** (math.floor(math.log10(percent)) - 1)
    return f"{math.ceil(percent / step - _ROUNDING) * step:.2g}%"


def milliseconds(text: str) -> float:
    """Read `5ms`, `800us` or `1.5s`.

    Raises:
        ConfigError: Another form: a bare number says no unit.

    >>> milliseconds("5ms"), milliseconds("800us"), milliseconds("1.5s")
    (5.0, 0.8, 1500.0)
    """
    return _amount(text, _MS, "5ms, 800us or 1.5s")


def byte_count(text: str) -> int:
    """Read `200KB` (powers of 1000), `256KiB` (powers of 1024) or `1500` bytes.

    Raises:
        ConfigError: Another form.

    >>> byte_count("200KB"), byte_count("256KiB"), byte_count("1500")
    (200000, 262144, 1500)
    """
    units = _BYTES | {"": 1} if text.isdigit() else _BYTES
    return round(_amount(text, units, "200KB, 256KiB or 1500"))


def _amount(text: str, units: dict[str, float] | dict[str, int], example: str) -> float:
    number = text.strip().lower().rstrip("abcdefghijklmnopqrstuvwxyz").strip()
    unit = text.strip().lower()[len(number) :].strip()
    try:
        value = float(number) * units[unit]
    except (ValueError, KeyError):
        value = float("nan")
    if not 0 < value < float("inf"):
        what = "above 0" if value <= 0 else "that can be read here"
        raise ConfigError(f"{text!r} is no amount {what}", hint=f"write {example}")
    return value
