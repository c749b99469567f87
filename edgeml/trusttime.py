"""Decides which time a device trusts.

A device without a battery-backed clock may start in 1970; time never goes back behind the latest time already trusted
(the floor), so a wrong clock can delay an update but never brings an expired release back to life. Only files are
read here, so that an agent can say whether it trusts its clock without loading what checks signatures.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FLOOR: Final = "time-floor"
_OLDEST_PLAUSIBLE_YEAR: Final = 2025
_NEWEST_PLAUSIBLE_YEAR: Final = 2100


@dataclass(frozen=True, slots=True)
class TrustedTime:
    """The time by which expiry is judged."""

    at_ms: int
    clock_trusted: bool
    """False if the machine's clock was behind what is already known (the floor was used instead), or cannot be right."""


def trusted_time(directory: Path, now_ms: int) -> TrustedTime:
    """Judge the machine's clock by what the trust directory knows.

    Args:
        directory: where the floor is kept; it may be missing.
        now_ms: what the machine's clock says.
    """
    oldest_ms, newest_ms = (
        int(dt.datetime(year, 1, 1, tzinfo=dt.UTC).timestamp() * 1000)
        for year in (_OLDEST_PLAUSIBLE_YEAR, _NEWEST_PLAUSIBLE_YEAR)
    )
    try:
        floor_ms = int((directory / FLOOR).read_text())
    except (OSError, ValueError):
        floor_ms = 0
    if not 0 <= floor_ms <= newest_ms:
        floor_ms = 0  # a damaged file
    if now_ms < floor_ms or now_ms > newest_ms:
        return TrustedTime(floor_ms, clock_trusted=False)
    return TrustedTime(now_ms, clock_trusted=now_ms >= oldest_ms)
