"""Slots: which variants are installed, and which one counts.

Decides the pointer table (current, previous, factory of each model) as one small file that is replaced atomically, so
that all three move together, and what a commit, a fall-back and a clean-up do to it. Bundles lie beside it under their
digests and are never changed. Nothing here loads a model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgeml import atomic
from edgeml.errors import StateError
from edgeml.ids import Digest, ModelName
from edgeml.twin import Slot, Slots

TABLE: Final = "slots.json"
STORE: Final = "store"


def promote(slots: Slots, slot: Slot) -> Slots:
    """Make a slot current. Doing it twice changes nothing.

    A variant that comes back from `previous` leaves nothing behind it: what was current had to go. The first
    variant ever committed becomes the factory slot.

    >>> a, b = (Slot(f"m@{v}", d * 64, "t", 1) for v, d in (("1", "a"), ("2", "b")))
    >>> two = promote(promote(Slots(), a), b)
    >>> two.current == b, two.previous == a, two.factory == a, promote(two, b) == two
    (True, True, True, True)
    >>> promote(two, a).previous is None
    True
    """
    if slots.current is not None and slots.current.digest == slot.digest:
        return slots
    if slots.previous is not None and slots.previous.digest == slot.digest:
        return Slots(current=slot, previous=None, factory=slots.factory)
    return Slots(current=slot, previous=slots.current, factory=slots.factory or slot)


def demote(slots: Slots) -> Slots:
    """Give up the current slot: the previous one counts, else the factory one, else none."""
    if slots.previous is not None:
        return Slots(current=slots.previous, previous=None, factory=slots.factory)
    if slots.factory is not None and slots.factory != slots.current:
        return Slots(current=slots.factory, previous=None, factory=slots.factory)
    return Slots(current=None, previous=None, factory=None)


class _Table(msgspec.Struct, frozen=True):
    """The file."""

    models: dict[ModelName, Slots]


class SlotTable:
    """The pointer table and the store of one device. Written by one thread at a time, read by any."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / TABLE
        self.store = directory / STORE
        self.quarantined: Path | None = None
        self._models = self._read()

    @property
    def models(self) -> tuple[ModelName, ...]:
        """The models that have slots."""
        return tuple(sorted(self._models))

    def slots(self, model: ModelName) -> Slots:
        """What is installed of a model."""
        return self._models.get(model, Slots())

    def path(self, digest: Digest) -> Path:
        """Where the bundle with this digest lies, or would lie."""
        return self.store / f"{digest}.edgeml"

    def write(self, model: ModelName, slots: Slots) -> None:
        """Replace the table atomically.

        Raises:
            StorageError: The disk refused; the old table stands.
        """
        if slots == self.slots(model):
            return
        models = {**self._models, model: slots}
        if slots == Slots():
            del models[model]
        atomic.write_bytes(self._path, msgspec.json.encode(_Table(models), order="sorted"))
        self._models = models

    def sync(self) -> None:
        """Make durable what the file says, also if an earlier life wrote it and died before it had done so.

        Raises:
            StorageError: The disk refused.
        """
        try:
            atomic.sync_file(self._path)
        except OSError as error:
            raise atomic.storage_error(error, self._path) from error

    def clean(self, wanted: Callable[[], frozenset[Digest]] = frozenset) -> int:
        """Remove bundles and partial files that no slot names; return how many.

        Args:
            wanted: what else is to be kept: bundles that are being fetched, or wait to be tried.

        Raises:
            StorageError: The disk refused.
        """
        removed = 0
        try:
            # Looked at before it is asked what is wanted: nothing that somebody begins to fetch meanwhile is removed.
            found = list(self.store.iterdir()) if self.store.exists() else []
            kept = wanted() | {
                slot.digest
                for slots in self._models.values()
                for slot in (slots.current, slots.previous, slots.factory)
                if slot
            }
            for path in found:
                if path.name.partition(".")[0] not in kept:
                    path.unlink(missing_ok=True)
                    removed += 1
        except OSError as error:
            raise atomic.storage_error(error, self.store) from error
        return removed

    def _read(self) -> dict[ModelName, Slots]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StateError(f"cannot read {self._path}: {error.strerror}", hint="check the disk") from error
        try:
            return msgspec.json.decode(data, type=_Table).models
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            # The file is replaced atomically, so this is a broken disk. Nothing in it can be trusted to be current.
            self.quarantined = self._path.with_suffix(".corrupt")
            self._path.replace(self.quarantined)
            return {}
