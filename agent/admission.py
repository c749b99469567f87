"""Admission: whether a model may be loaded beside the others, by the memory it is known to need.

Decides which measurement is believed (this device's own, else the manifest's, else a guess from the file's size), how
much is granted on it, whether the old variant of the model has to leave first, and says with numbers why something does
not fit. Pure: measuring is `worker`'s and `sensors`' business, what is done about memory that runs out later,
`governor`'s.

All workers are forked from one process that has imported what they need. Those pages exist once, so they are counted
once: a worker's own part is its peak less what it shares.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgeml.errors import BudgetError
from edgeml.ids import ModelName
from edgeml.manifest import RuntimeFamily

MARGIN_HERE: Final = 1.1
"""Granted on a peak that this device measured: requests may be larger than golden vectors."""
MARGIN_ELSEWHERE: Final = 1.2
"""Granted on a peak that another machine measured."""
FILE_FACTOR: Final = 2.5
"""Memory for each byte of a model file of which no peak is known."""
RUNTIME_BYTES: Final = {
    RuntimeFamily.ONNX: 40 << 20,
    RuntimeFamily.TFLITE: 20 << 20,
    RuntimeFamily.TORCHSCRIPT: 200 << 20,
}
"""What a runtime takes besides, where no peak is known."""
OWN_FRACTION_MIN: Final = 0.125
"""At least this part of a peak is the worker's own, whatever it is said to share."""
_MEBIBYTE: Final = 1 << 20


class PeakSource(enum.Enum):
    """Who measured a peak."""

    TRIAL = "trial"
    """This device, when the variant was on trial."""
    MANIFEST = "manifest"
    """The machine that made the bundle."""
    GUESS = "guess"
    """Nobody: it follows from the size of the file."""


@dataclass(frozen=True, slots=True)
class Peak:
    """Highest memory of a worker with one variant: measured here its own part, else with what it would share."""

    peak_bytes: int
    source: PeakSource

    def need_bytes(self, shared_bytes: int) -> int:
        """What is set aside for it, its own part."""
        match self.source:
            case PeakSource.TRIAL:
                return round(self.peak_bytes * MARGIN_HERE)
            case PeakSource.MANIFEST:
                return own_bytes(round(self.peak_bytes * MARGIN_ELSEWHERE), shared_bytes)
            case PeakSource.GUESS:
                return own_bytes(self.peak_bytes, shared_bytes)


@dataclass(frozen=True, slots=True)
class Room:
    """The memory of a device and who has how much of it."""

    budget_bytes: int | None
    """For all workers and what they share; None is no budget."""
    shared_bytes: int
    """What every worker shares, counted once."""
    granted: Mapping[ModelName, int]
    """What each model that serves was granted, its own part."""
    available_bytes: int | None = None
    """What processes of this device could still get; None where the kernel does not say."""
    reserve_bytes: int = 0
    """What must stay available for the rest of the device."""


class Placement(enum.Enum):
    """Where a new worker goes."""

    BESIDE = "beside"
    """Beside the model's old one, which serves until the new one is proven."""
    INSTEAD = "instead"
    """The old one has to be stopped first: both do not fit."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A variant may be loaded."""

    granted_bytes: int
    """Its own part, beside what is shared."""
    placement: Placement


def known_peak(trial_bytes: int | None, manifest_bytes: int, file_bytes: int, runtime: RuntimeFamily) -> Peak:
    """Choose the best measurement of a variant's peak memory; `trial_bytes` is the worker's own part.

    >>> known_peak(60 << 20, 90 << 20, 4 << 20, RuntimeFamily.ONNX).source.value
    'trial'
    >>> known_peak(None, 0, 4 << 20, RuntimeFamily.ONNX)
    Peak(peak_bytes=52428800, source=<PeakSource.GUESS: 'guess'>)
    """
    if trial_bytes is not None and trial_bytes > 0:
        return Peak(trial_bytes, PeakSource.TRIAL)
    if manifest_bytes > 0:
        return Peak(manifest_bytes, PeakSource.MANIFEST)
    return Peak(round(file_bytes * FILE_FACTOR) + RUNTIME_BYTES[runtime], PeakSource.GUESS)


def own_bytes(whole_bytes: int, shared_bytes: int) -> int:
    """Take from a worker's memory what it shares with all others.

    >>> own_bytes(60, 40), own_bytes(40, 40)
    (20, 5)
    """
    return max(whole_bytes - shared_bytes, round(whole_bytes * OWN_FRACTION_MIN))


def left_bytes(model: ModelName, room: Room) -> int | None:
    """Say what is left for a model's own part when all others have what they were granted; None without a budget."""
    if room.budget_bytes is None:
        return None
    others = sum(granted for name, granted in room.granted.items() if name != model)
    return room.budget_bytes - room.shared_bytes - others


def admit(model: ModelName, peak: Peak, room: Room) -> Admission:
    """Admit a variant, or refuse it with the numbers.

    Raises:
        BudgetError: It does not fit, even with the model's old variant gone; in bytes.
    """
    need = peak.need_bytes(room.shared_bytes)
    old = room.granted.get(model, 0)
    left = left_bytes(model, room)
    if left is not None and need > left:
        others = sum(granted for name, granted in room.granted.items() if name != model)
        raise BudgetError(
            f"{model} needs {_mib(need)} of memory ({_source(peak)}), {_mib(max(left, 0))} are left of the budget of "
            f"{_mib(room.budget_bytes or 0)}: other models have {_mib(others)}, {_mib(room.shared_bytes)} are shared",
            hint="raise budget.memory_bytes, remove a model, or roll out a smaller variant",
            budget=max(left, 0),
            observed=need,
            unit="bytes",
        )
    free = None if room.available_bytes is None else room.available_bytes - room.reserve_bytes
    if free is not None and need > free + old:
        raise BudgetError(
            f"{model} needs {_mib(need)} of memory ({_source(peak)}), this device has {_mib(max(free + old, 0))} to "
            f"give: {_mib(room.available_bytes or 0)} are available, {_mib(room.reserve_bytes)} are kept back",
            hint="something else on this device uses its memory",
            budget=max(free + old, 0),
            observed=need,
            unit="bytes",
        )
    beside = (left is None or need + old <= left) and (free is None or need <= free)
    return Admission(need, Placement.BESIDE if beside else Placement.INSTEAD)


def _source(peak: Peak) -> str:
    match peak.source:
        case PeakSource.TRIAL:
            return f"{_mib(peak.peak_bytes)} measured here"
        case PeakSource.MANIFEST:
            return f"peak {_mib(peak.peak_bytes)} in its manifest"
        case PeakSource.GUESS:
            return "guessed from its size, nobody measured it"


def _mib(count_bytes: int) -> str:
    return f"{count_bytes / _MEBIBYTE:.1f} MiB"
