"""Row 6: what lies under the current and the previous slot is damaged: the factory release serves, and it is said.

When nothing is left: `tests/agent/test_power_cut.py` (`test_no_slot_left_is_said_plainly`), and here with a real agent.
"""

import pytest

from agent.buffer import Buffer
from agent.slots import SlotTable
from edgeml.telemetry import Stream
from edgeml.twin import Ack, DeviceState

from .ends import one_active_model
from .points import MODEL, Life, stage

__all__ = ["stage"]
pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


def with_three_slots(stage, name):
    storage = stage.copy(name)
    for version in ("2.0.0", "4.0.0"):
        stage.flash(storage, version)
        assert stage.live(storage, storage.parent / version, version) == version
    slots = SlotTable(storage).slots(MODEL)
    assert [one.release for one in (slots.current, slots.previous, slots.factory)] == [
        f"{MODEL}@{version}" for version in ("4.0.0", "2.0.0", "1.0.0")
    ]
    return storage


def damage(storage, slot):
    path = SlotTable(storage).path(slot.digest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def events(storage):
    """What the device will say of all its lives; a batch holds one life's."""
    buffer = Buffer(storage / "telemetry.db", "look")
    found = []
    while (batch := buffer.pending(Stream.EVENTS)) is not None:
        found += [(row.kind, row.detail) for row in batch.rows]
        buffer.acknowledge(Ack(boot=batch.boot, stream="events", seq=batch.rows[-1].seq))
    buffer.close()
    return found


def test_the_factory_release_serves_and_the_fleet_is_told(stage):
    storage = with_three_slots(stage, "two")
    slots = SlotTable(storage).slots(MODEL)
    damage(storage, slots.current)
    damage(storage, slots.previous)
    life = Life(storage.parent / "life", storage)
    try:
        assert life.run_to(lambda: life.ask() == "1.0.0", "the factory release"), life.words()
        assert life.run_to(lambda: "runs on" in life.words(), "the agent to run")
        assert "Traceback" not in life.words()
    finally:
        assert life.stop() == 0
    one_active_model(storage, MODEL, {f"{MODEL}@1.0.0"})
    said = [detail for kind, detail in events(storage) if kind == "fell_back"]
    assert said == [f"{MODEL}@4.0.0 cannot be served; {MODEL}@1.0.0 serves instead"]


def test_with_all_of_them_damaged_the_agent_lives_and_a_new_release_rescues_it(stage):
    storage = with_three_slots(stage, "three")
    slots = SlotTable(storage).slots(MODEL)
    for slot in (slots.current, slots.previous, slots.factory):
        damage(storage, slot)
    life = Life(storage.parent / "life", storage)
    try:
        assert life.run_to(lambda: life.entry().state is DeviceState.STRANDED, "it to be stranded"), (
            life.words()
        )
        assert life.ask() is None
        assert "no slot of sample can be served" in life.entry().reason
        # A person flashes the same release once more: the machine comes out of it.
        stage.flash(storage, "4.0.0")
        assert life.run_to(lambda: life.ask() == "4.0.0", "the rescue"), life.words()
        assert "Traceback" not in life.words()
    finally:
        life.kill()
