"""The substitution: which smaller variant may stand in for the one that is installed.

Decides that only another variant of the very same release may: users get answers of the version that was rolled out, only
less exact ones. Looked up in the slots, for nothing else is installed; a device has one if its fleet gave it one after
the other.
"""

from __future__ import annotations

from edgeml.errors import EdgemlError
from edgeml.ids import ModelName
from edgeml.twin import Slot, Slots

from .ledger import Ledger
from .slots import SlotTable


class Substitution:
    """The smaller variants of one device. Not thread-safe."""

    def __init__(self, table: SlotTable, ledger: Ledger) -> None:
        self._table = table
        self._ledger = ledger
        self._known: dict[ModelName, tuple[Slots, Slot | None]] = {}

    def smaller(self, model: ModelName) -> Slot | None:
        """Find the smallest variant of the release that is current; None if the current one is it."""
        slots = self._table.slots(model)
        known = self._known.get(model)
        if known is None or known[0] != slots:
            known = self._known[model] = slots, self._look(slots)
        return known[1]

    def _look(self, slots: Slots) -> Slot | None:
        current = slots.current
        if current is None:
            return None
        others = [
            slot
            for slot in (slots.previous, slots.factory)
            if slot is not None and slot.release == current.release and slot.digest != current.digest
        ]
        if not others:
            return None
        own = self._need_bytes(current)
        needs = [(need, slot) for slot in others if (need := self._need_bytes(slot)) is not None]
        need, slot = min(needs, key=lambda one: (one[0], one[1].digest), default=(0, None))
        return slot if own is not None and need < own else None

    def _need_bytes(self, slot: Slot) -> int | None:
        try:
            return self._ledger.expect(self._table.path(slot.digest), slot.digest)
        except EdgemlError:
            # A bundle that cannot be read stands in for none; whoever serves it says why.
            return None
