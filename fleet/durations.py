"""How people write spans of time, shares and waves on the command line.

Decides the notation and its limits; what they are used for is decided elsewhere.
"""

from __future__ import annotations

import math
import re
from typing import Final

from edgeml.errors import ConfigError

_UNITS_S: Final = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(s|min|m|h|d|w)", re.ASCII)


def parse_duration_s(text: str) -> float:
    """Read a span of time in seconds.

    Raises:
        ConfigError: It is none.

    >>> parse_duration_s("90s"), parse_duration_s("1h"), parse_duration_s("1.5d")
    (90.0, 3600.0, 129600.0)
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a span of time", hint="write 30s, 10m, 1h, 2d or 1w")
    return float(match[1]) * _UNITS_S[match[2]]


def parse_share(text: str) -> float:
    """Read a share, written as a percentage.

    Raises:
        ConfigError: It is none between 0% and 100%.

    >>> parse_share("5%"), parse_share("100%")
    (0.05, 1.0)
    """
    try:
        share = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1 or not text.strip().endswith("%"):
        raise ConfigError(f"{text!r} is no share", hint="write a percentage, for example 10%")
    return share


def parse_waves(text: str) -> tuple[float, ...]:
    """Read cumulative percentages of the fleet.

    Raises:
        ConfigError: Not numbers, not ascending, or not ending with the whole fleet.

    >>> parse_waves("5%,25%,100%")
    (0.05, 0.25, 1.0)
    """
    hint = "write ascending percentages that end with 100%, for example 5%,25%,100%"
    try:
        waves = tuple(float(part.strip().removesuffix("%")) / 100 for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{text!r} are no waves", hint=hint) from error
    rises = all(low < high for low, high in zip((0.0, *waves), waves, strict=False))
    if not rises or not all(map(math.isfinite, waves)) or waves[-1] != 1.0:
        raise ConfigError(f"{text!r} are no waves", hint=hint)
    return waves
