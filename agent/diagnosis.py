"""The diagnosis: how bad it is with the device, cause by cause.

Decides which reading is which level, and that a level rises at once and falls by one after it has been better, by a
margin, for DWELL_S; so no cause can flap. Pure: readings come from `sensors` and `usage`. What a level means for the
models is `governor`'s business.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from edgeml.ids import ModelName

DWELL_S: Final = 30.0
"""A level holds at least this long, and so long it has to be better before it falls by one."""
RESERVE_BYTES: Final = 32 << 20
"""Memory that is kept available for the rest of the device."""


class Level(enum.IntEnum):
    """How bad it is, of one cause or of all."""

    CALM = 0
    THROTTLE = 1
    """Every model works a part of the time."""
    FALL_BACK = 2
    """Those that have a smaller variant use it."""
    SHED = 3
    """All but the most valuable model turn requests away."""
    EVICT = 4
    """One worker after the other is taken away, except the most valuable one, which turns requests away."""
    LAST = 5
    """That one too."""


class Cause(enum.Enum):
    """Why."""

    NONE = "none"
    TEMPERATURE = "temperature"
    MEMORY = "memory"
    """The budget of memory."""
    DEVICE_MEMORY = "device_memory"
    """What the whole device has left."""
    PRESSURE = "pressure"
    """Time that processes lost waiting for memory."""
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Usage:
    """One model's share of the device."""

    memory_bytes: int
    """Its worker's now, shared pages left out; 0 without one."""
    granted_bytes: int
    """What admission set aside for it."""
    cpu_cores: float = 0.0
    idle_s: float = 0.0
    """Since it last answered."""
    priority: int = 0
    """The higher, the more valuable."""
    smaller: bool = False
    """Whether a smaller variant of the same release is installed."""
    back_bytes: int = 0
    """What its worker would take more if it went back from a smaller variant; 0 if it does not use one."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read; None where this device cannot say."""

    models: Mapping[ModelName, Usage]
    """Every model that is meant to serve, those that were taken away too."""
    shared_bytes: int = 0
    available_bytes: int | None = None
    pressure_percent: float | None = None
    """Time in which some process waited for memory, in the last 10 s (PSI `some avg10`)."""
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What models may use; None is no limit."""

    memory_bytes: int | None = None
    cpu_cores: float | None = None
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True)
class Ailment:
    """A level, and the reading that says so."""

    level: Level
    cause: Cause
    observed: float
    limit: float


@dataclass(frozen=True, slots=True)
class Held:
    """The level that a cause is held at."""

    ailment: Ailment
    bad_s: float
    """When it was last as bad as that, or the level last fell."""


WELL: Final = Ailment(Level.CALM, Cause.NONE, 0.0, 0.0)
_HEAT_C: Final = (
    (0.0, Level.THROTTLE),
    (3.0, Level.FALL_BACK),
    (6.0, Level.SHED),
    (10.0, Level.EVICT),
    (15.0, Level.LAST),
)
"""Degrees above the limit, and the level there."""
_USED: Final = 0.9
"""Part of the budget of memory above which smaller variants are used."""
_AVAILABLE: Final = ((2.0, Level.FALL_BACK), (1.0, Level.SHED), (0.5, Level.EVICT))
"""Parts of the reserve below which a level counts. Never the last one: the kernel takes workers first."""
_PRESSURE_PERCENT: Final = ((10.0, Level.FALL_BACK), (20.0, Level.SHED), (40.0, Level.EVICT))
_RELIEF_C: Final = 3.0
_RELIEF: Final = 0.9
"""Part of any other limit below which it has become better."""


def diagnose(facts: Facts, limits: Limits) -> tuple[Ailment, ...]:
    """Say how bad it is, cause by cause, without those that cannot be read or have no limit.

    >>> [one.level.name for one in diagnose(Facts({}, temperature_c=84.0), Limits(temperature_c=80.0))]
    ['FALL_BACK']
    """
    return _ailments(facts, limits, 1.0, 0.0)


def used_bytes(facts: Facts) -> int:
    """All workers together, and what they share."""
    return facts.shared_bytes + sum(usage.memory_bytes for usage in facts.models.values())


def cores(facts: Facts) -> float:
    """Processor time of all workers, in cores."""
    return sum(usage.cpu_cores for usage in facts.models.values())


def hold(before: Mapping[Cause, Held], facts: Facts, limits: Limits, now_s: float) -> Mapping[Cause, Held]:
    """Move the level of each cause: up at once, down by one after it was better, or not readable, for DWELL_S."""
    relieved = {one.cause: one.level for one in _ailments(_as_before(facts), limits, _RELIEF, _RELIEF_C)}
    after = {cause: _unread(held, now_s) for cause, held in before.items()}
    for found in diagnose(facts, limits):
        held = before.get(found.cause)
        if held is None or found.level >= held.ailment.level:
            after[found.cause] = Held(found, now_s)
            continue
        level, bad_s = held.ailment.level, held.bad_s
        if relieved[found.cause] >= level:
            bad_s = now_s
        elif now_s - bad_s >= DWELL_S:
            level, bad_s = Level(level - 1), now_s
        after[found.cause] = Held(replace(found, level=level), bad_s)
    return MappingProxyType(after)


def _as_before(facts: Facts) -> Facts:
    """Count memory as if no model used a smaller variant: what that gave back is no reason to take it again."""
    more = sum(usage.back_bytes for usage in facts.models.values())
    if not more:
        return facts
    available = facts.available_bytes
    return replace(
        facts,
        shared_bytes=facts.shared_bytes + more,
        available_bytes=None if available is None else max(available - more, 0),
    )


def _unread(held: Held, now_s: float) -> Held:
    """Hold a cause that cannot be read: a sensor that fails while it is hot is no sign of cold."""
    if held.ailment.level is Level.CALM or now_s - held.bad_s < DWELL_S:
        return held
    return Held(replace(held.ailment, level=Level(held.ailment.level - 1)), now_s)


def _ailments(facts: Facts, limits: Limits, relief: float, relief_c: float) -> tuple[Ailment, ...]:
    found = []
    if limits.temperature_c is not None and facts.temperature_c is not None:
        above = facts.temperature_c - limits.temperature_c + relief_c
        level = max((one for step, one in _HEAT_C if above >= step), default=Level.CALM)
        found.append(Ailment(level, Cause.TEMPERATURE, facts.temperature_c, limits.temperature_c))
    if limits.memory_bytes is not None:
        used = used_bytes(facts)
        level = Level.FALL_BACK if used > limits.memory_bytes * _USED * relief else Level.CALM
        found.append(Ailment(level, Cause.MEMORY, used, limits.memory_bytes))
    if facts.available_bytes is not None:
        available = facts.available_bytes * relief
        level = max((one for part, one in _AVAILABLE if available < RESERVE_BYTES * part), default=Level.CALM)
        found.append(Ailment(level, Cause.DEVICE_MEMORY, facts.available_bytes, RESERVE_BYTES))
    if facts.pressure_percent is not None:
        percent = facts.pressure_percent
        level = max((one for step, one in _PRESSURE_PERCENT if percent >= step * relief), default=Level.CALM)
        found.append(Ailment(level, Cause.PRESSURE, percent, _PRESSURE_PERCENT[0][0]))
    if limits.cpu_cores is not None:
        used_cores = cores(facts)
        level = Level.THROTTLE if used_cores > limits.cpu_cores * relief else Level.CALM
        found.append(Ailment(level, Cause.CPU, used_cores, limits.cpu_cores))
    return tuple(found)
