"""The standing: what the governor makes of the device just now, for a person who asks.

Decides what is kept in a small file beside the slots, by which `edgeml agent status` can tell without asking the agent,
and its words. It is no record: after a power cut it may be old or gone.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import msgspec

logger = logging.getLogger(__name__)

FILE: Final = "standing.json"
_MEBIBYTE: Final = 1 << 20


class ModelStanding(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is done to one model, and what it uses."""

    model: str
    measure: str
    duty: float
    memory_bytes: int
    granted_bytes: int
    cpu_cores: float


class Standing(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the governor knows of the device."""

    level: str
    reason: str
    enforced: str
    """`kernel` if control groups keep workers within the budget, `watched` if only the agent does."""
    used_bytes: int
    budget_bytes: int | None
    temperature_c: float | None
    network_bytes: int
    network_budget_bytes: int | None
    decisions: int
    """Since the agent started."""
    at_ms: int
    models: tuple[ModelStanding, ...] = ()

    def lines(self) -> list[str]:
        """As text."""
        why = f" ({self.reason})" if self.reason else ""
        lines = [
            f"budget    {self.level}{why}, {self.enforced}, {self.decisions} decisions",
            f"memory    {_of(self.used_bytes, self.budget_bytes)}",
            f"network   {_of(self.network_bytes, self.network_budget_bytes)} today",
        ]
        if self.temperature_c is not None:
            lines.append(f"heat      {self.temperature_c:.1f} °C")
        lines += [
            f"  {one.model}: {_measure(one)}, "
            f"{one.memory_bytes / _MEBIBYTE:.1f} of {one.granted_bytes / _MEBIBYTE:.1f} MiB, {one.cpu_cores:.2f} cores"
            for one in self.models
        ]
        return lines


def write(storage: Path, standing: Standing) -> None:
    """Replace the file. Not synced, and a disk that refuses is only logged: nothing depends on it."""
    path = storage / FILE
    try:
        fresh = path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(standing))
        fresh.replace(path)
    except OSError as error:
        logger.debug("%s cannot be written: %s", path, error)


def read(storage: Path) -> Standing | None:
    """Read the file; None if there is none that can be read."""
    try:
        return msgspec.json.decode((storage / FILE).read_bytes(), type=Standing)
    except (OSError, msgspec.MsgspecError):
        return None


def _of(used_bytes: int, budget_bytes: int | None) -> str:
    used = used_bytes / _MEBIBYTE
    return f"{used:.1f} MiB" if budget_bytes is None else f"{used:.1f} of {budget_bytes / _MEBIBYTE:.1f} MiB"


def _measure(model: ModelStanding) -> str:
    """What is done to a model, in words that a person at the device understands."""
    if model.measure == "none":
        return "left alone"
    slowed = f" {model.duty * 100:.0f} %" if 0 < model.duty < 1 else ""
    return f"{model.measure.replace('_', ' ')}{slowed}"
