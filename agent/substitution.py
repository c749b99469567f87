"""The substitution: which smaller variant may stand in for the one that is installed.

Decides that only another variant of the very same release may: users get answers of the version that was rolled out, only
less exact ones. Looked up in the slots, for nothing else is installed; a device has one if its fleet gave it one after
the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeml.errors import EdgemlError
from edgeml.ids import Digest, ModelName
from edgeml.twin import Slot, Slots

from .ledger import Ledger
from .slots import SlotTable


@dataclass(frozen=True, slots=True)
class _StandIn:
    """The smaller variant, and what the current one needs more."""

    slot: Slot
    back_bytes: int


class Substitution:
    """The smaller variants of one device. Not thread-safe."""

    def __init__(self, table: SlotTable, ledger: Ledger) -> None:
        self._table = table
        self._ledger = ledger
        self._known: dict[ModelName, tuple[Slots, _StandIn | None]] = {}

    def smaller(self, model: ModelName) -> Slot | None:
        """Find the smallest variant of the release that is current; None if the current one is it."""
        found = self._find(model)
        return None if found is None else found.slot

    def back_bytes(self, model: ModelName, digest: Digest) -> int:
        """Say how much more memory the current variant needs than the one that serves, if that stands in; else 0."""
        found = self._find(model)
        return found.back_bytes if found is not None and found.slot.digest == digest else 0

    def _find(self, model: ModelName) -> _StandIn | None:
        slots = self._table.slots(model)
        known = self._known.get(model)
        if known is None or known[0] != slots:
            # Bundles are opened for this: once for every change of the slots.
            known = self._known[model] = slots, self._look(slots)
        return known[1]

    def _look(self, slots: Slots) -> _StandIn | None:
        current = slots.current
        if current is None:
            return None
        others = [
            slot
            for slot in (slots.previous, slots.factory)
            if slot is not None and slot.release == current.release and slot.digest != current.digest
        ]
        own = self._need_bytes(current) if others else None
        needs = [(need, slot) for slot in others if (need := self._need_bytes(slot)) is not None]
        need, slot = min(needs, key=lambda one: (one[0], one[1].digest), default=(0, None))
        if own is None or slot is None or need >= own:
            return None
        return _StandIn(slot, own - need)

    def _need_bytes(self, slot: Slot) -> int | None:
        try:
            return self._ledger.expect(self._table.path(slot.digest), slot.digest)
        except EdgemlError:
            # A bundle that cannot be read stands in for none; whoever serves it says why.
            return None
