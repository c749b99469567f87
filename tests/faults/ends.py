"""How an update must have ended, told from the files of a device and of one model.

What holds of any storage is `invariants.check`.
"""

import hashlib

from agent.journal import peek
from agent.slots import SlotTable
from edgeml.ids import Digest
from edgeml.twin import DeviceState

AT_REST = frozenset({DeviceState.IDLE, DeviceState.STRANDED})
LEFT_BEHIND_MAX = 8
"""Files of killed writers that may lie about until somebody cleans; each life of an agent leaves a few at most."""


def whole(path, digest):
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def one_active_model(storage, model, releases):
    """I1, I2: the table names one current release, of those allowed, and what it names is on disk to the last bit."""
    table = SlotTable(storage)
    assert table.quarantined is None, "I1: the table of slots could not be read"
    slots = table.slots(model)
    found = slots.current.release if slots.current else None
    assert found in releases, f"I1: {found} is current, not one of {releases}"
    for slot in (slots.current, slots.previous, slots.factory):
        assert slot is None or whole(table.path(slot.digest), slot.digest), f"I2: {slot.release} is not whole"
    return slots


def at_rest(storage, model):
    """I4, I6: the machine is done, and what the journal says of its end is what the slots say."""
    entry = peek(storage / "journal.db").get(model)
    assert entry is not None, "I4: the journal knows nothing of the model"
    assert entry.state in AT_REST, f"I6: the machine is still {entry.state}"
    assert entry.waiting is None, "I6: a wish waits that nobody looks at"
    return entry


def bounded(storage):
    """I5: nothing lies in the store that no slot names, and little beside it that a killed writer left."""
    table = SlotTable(storage)
    named = {
        slot.digest
        for model in table.models
        for slot in (table.slots(model).current, table.slots(model).previous, table.slots(model).factory)
        if slot
    }
    found = (
        {Digest(path.name.partition(".")[0]) for path in table.store.iterdir()}
        if table.store.exists()
        else set()
    )
    assert found <= named, f"I5: {found - named} lie in the store and no slot names them"
    left = [
        path for path in storage.rglob(".*") if path.is_file() and not path.is_relative_to(storage / "inbox")
    ]
    assert len(left) <= LEFT_BEHIND_MAX, f"I5: {left} were left behind"
