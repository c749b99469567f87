"""Row 18: telemetry takes all that it may, and there is still room for a deployment."""

from agent.buffer import LOG_PAGES, Buffer, BufferLimits
from agent.journal import Entry, Journal
from agent.slots import SlotTable, promote
from edgeml.atomic import write_bytes
from edgeml.ids import Digest, ModelName, ReleaseId
from edgeml.telemetry import Event, Stream
from edgeml.twin import Slot, Slots

TELEMETRY_BYTES = 2 << 20
LOG_BYTES = 4 * LOG_PAGES * 4096
BUNDLE_BYTES = 1 << 20
JOURNAL_BYTES = 256 << 10
M = ModelName("m")


def test_a_deployment_fits_beside_a_full_buffer(make_disk):
    disk = make_disk(TELEMETRY_BYTES + LOG_BYTES + BUNDLE_BYTES + JOURNAL_BYTES)
    buffer = Buffer(disk.path / "telemetry.db", "b1", BufferLimits(bytes_max=TELEMETRY_BYTES))
    journal, table = Journal(disk.path / "journal.db"), SlotTable(disk.path)
    for index in range(20_000):
        buffer.append(Event(seq=0, kind="k", at_ms=index, detail="d" * 400))
    loss = buffer.loss(Stream.EVENTS)
    assert loss.dropped == loss.reasons.evicted > 0, "nothing had to go: the buffer was never full"
    assert loss.produced == 20_000 == loss.dropped + buffer.held(Stream.EVENTS)
    slot = Slot(ReleaseId("m@1"), Digest("a" * 64), "t", 1)
    for generation in range(1, 20):
        journal.write(M, Entry(generation=generation))
        write_bytes(table.path(slot.digest), bytes([generation]) * BUNDLE_BYTES)
        table.path(slot.digest).unlink()
    write_bytes(table.path(slot.digest), b"m" * BUNDLE_BYTES)
    table.write(M, promote(Slots(), slot))
    # And telemetry goes on.
    buffer.append(Event(seq=0, kind="last", at_ms=1))
    buffer.close()
    journal.close()
    assert SlotTable(disk.path).slots(M).current == slot
