"""What must hold of a device's storage after any fault (I1, I2, I3 and I5 of the catalogue; I4 and I6 are each test's)."""

from agent.buffer import Buffer
from agent.journal import peek
from agent.slots import SlotTable
from edgeml.bundle import read_verified
from edgeml.ids import digest_of_file
from edgeml.runtime import open_session
from edgeml.telemetry import Stream
from edgeml.twin import DeviceState

LEFTOVERS = {"part", "chunks", "delta", "rebuilt", "bad"}
BUNDLES_OF_A_MODEL_MAX = 4
"""Three slots, and one in hand."""


def check(storage, storage_bytes=1 << 31):
    """Check a storage directory that no agent is writing; return its slot table."""
    table = SlotTable(storage)
    assert table.quarantined is None
    entries = peek(storage / "journal.db")
    for model in table.models:
        slots = table.slots(model)
        stranded = model in entries and entries[model].state is DeviceState.STRANDED
        # I1, I2: the variant that counts has the bytes it was verified with, and they can be loaded.
        assert slots.current is not None or stranded
        for slot in (slots.current, slots.previous, slots.factory):
            if slot is not None:
                with read_verified(table.path(slot.digest), slot.digest) as bundle:
                    bundle.verify()
                    assert bundle.manifest.release == slot.release
        if slots.current is not None:
            with read_verified(table.path(slots.current.digest), slots.current.digest) as bundle:
                assert open_session(bundle.model(), bundle.manifest.runtime).inputs == bundle.manifest.inputs
    _check_store(storage, max(1, len(table.models), len(entries)), storage_bytes)
    for entry in entries.values():
        attempts_max = entry.desired.policy.attempts_max if entry.desired else 1
        assert entry.attempt <= max(attempts_max, 3)
    _check_counts(storage)
    return table


def _check_store(storage, models, storage_bytes):
    store = storage / "store"
    if not store.exists():
        return
    names = sorted(path.name for path in store.iterdir())
    bundles = [name for name in names if name.endswith(".edgeml")]
    assert len(bundles) <= BUNDLES_OF_A_MODEL_MAX * models
    for name in bundles:
        # I2: a file under a bundle's name has that digest, whether a slot names it or not.
        assert digest_of_file(store / name) == name.removesuffix(".edgeml")
    others = set(names) - set(bundles)
    assert {name.rpartition(".")[2] for name in others} <= LEFTOVERS, names
    assert all((store / name).stat().st_size <= storage_bytes for name in names)
    assert not [path for path in (storage / "trust").rglob("*") if path.stat().st_size > 1 << 20]


def _check_counts(storage):
    """I3: every row is accounted for."""
    path = storage / "telemetry.db"
    if not path.exists():
        return
    buffer = Buffer(path, "invariants")
    assert buffer.quarantined is None
    for stream in Stream:
        loss = buffer.loss(stream)
        assert loss.produced == loss.acknowledged + loss.dropped + buffer.held(stream)
        assert loss.dropped == loss.reasons.total
    buffer.close()
