"""Where a device stands, read from its disk while the agent runs or not.

Decides what is shown; changes nothing.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeml.lock import is_held
from edgeml.twin import DeviceState, Outcome, Slot, Slots

from .config import LOCK
from .journal import peek
from .slots import SlotTable


class Status(msgspec.Struct, frozen=True):
    """What a person wants to know of a device."""

    slots: Slots
    state: DeviceState
    deployment: str | None
    outcome: Outcome | None
    reason: str
    running: bool

    def to_json(self) -> str:
        """As JSON."""
        return msgspec.json.encode(self).decode()

    def lines(self) -> list[str]:
        """As text."""
        return [
            f"agent     {'running' if self.running else 'not running'}",
            f"current   {_slot(self.slots.current)}",
            f"previous  {_slot(self.slots.previous)}",
            f"factory   {_slot(self.slots.factory)}",
            f"updates   {self.state.value}"
            + (f", last outcome {self.outcome.value}" if self.outcome else ""),
            *([f"reason    {self.reason}"] if self.reason else []),
        ]


def read_status(storage: Path) -> Status:
    """Read a device's storage.

    Raises:
        StateError: The journal or the slots cannot be read.
    """
    entry = peek(storage / "journal.db")
    return Status(
        slots=SlotTable(storage).slots,
        state=entry.state if entry else DeviceState.IDLE,
        deployment=entry.desired.deployment if entry and entry.desired else None,
        outcome=entry.outcome if entry else None,
        reason=entry.reason if entry else "",
        running=is_held(storage / LOCK),
    )


def _slot(slot: Slot | None) -> str:
    return f"{slot.release} ({slot.digest[:12]})" if slot else "none"
