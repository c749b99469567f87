"""Where a device stands, read from its disk while the agent runs or not.

Decides what is shown; changes nothing.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeml.ids import ModelName
from edgeml.lock import is_held
from edgeml.twin import DeviceState, Outcome, Slot, Slots

from . import freshness, standing
from .config import LOCK
from .freshness import Freshness
from .journal import Entry, peek
from .slots import SlotTable
from .standing import Standing


class ModelStatus(msgspec.Struct, frozen=True):
    """What a person wants to know of one model on a device."""

    model: ModelName
    slots: Slots
    state: DeviceState
    deployment: str | None
    outcome: Outcome | None
    reason: str

    def lines(self) -> list[str]:
        """As text."""
        return [
            f"model     {self.model}",
            f"current   {_slot(self.slots.current)}",
            f"previous  {_slot(self.slots.previous)}",
            f"factory   {_slot(self.slots.factory)}",
            f"updates   {self.state.value}"
            + (f", last outcome {self.outcome.value}" if self.outcome else ""),
            *([f"reason    {self.reason}"] if self.reason else []),
        ]


class Status(msgspec.Struct, frozen=True):
    """What a person wants to know of a device."""

    running: bool
    models: tuple[ModelStatus, ...]
    standing: Standing | None = None
    """Of the agent that runs."""
    freshness: Freshness = Freshness()
    """Of what the fleet signs, as this device has it."""

    def to_json(self) -> str:
        """As JSON."""
        return msgspec.json.encode(self).decode()

    def lines(self) -> list[str]:
        """As text, a paragraph for each model."""
        lines = [f"agent     {'running' if self.running else 'not running'}"]
        if self.freshness.frozen_since_ms is not None:
            lines.append(f"frozen    {self.freshness.describe()}")
        if self.standing is not None:
            lines += self.standing.lines()
        if not self.models:
            lines.append("models    none; flash a release, or let the fleet roll one out")
        for model in self.models:
            lines += ["", *model.lines()]
        return lines


def read_status(storage: Path) -> Status:
    """Read a device's storage.

    Raises:
        StateError: The journal or the slots cannot be read.
    """
    entries = peek(storage / "journal.db")
    table = SlotTable(storage)
    running = is_held(storage / LOCK)
    return Status(
        running=running,
        standing=standing.read(storage) if running else None,
        freshness=freshness.read(storage),
        models=tuple(
            _model(model, table.slots(model), entries.get(model, Entry()))
            for model in sorted({*entries, *table.models})
        ),
    )


def _model(model: ModelName, slots: Slots, entry: Entry) -> ModelStatus:
    return ModelStatus(
        model=model,
        slots=slots,
        state=entry.state,
        deployment=entry.desired.deployment if entry.desired else None,
        outcome=entry.outcome,
        reason=entry.reason,
    )


def _slot(slot: Slot | None) -> str:
    return f"{slot.release} ({slot.digest[:12]})" if slot else "none"
