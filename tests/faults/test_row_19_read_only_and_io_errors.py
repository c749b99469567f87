"""Row 19: the file system turns read-only, or writes fail: no commit, no lost account, and the model goes on answering."""

import contextlib
import resource
import shutil

import pytest

from agent.buffer import Buffer
from agent.journal import Entry, Journal, peek
from agent.slots import SlotTable, promote
from edgeml.errors import StorageError
from edgeml.ids import Digest, ModelName, ReleaseId
from edgeml.telemetry import Event, Stream
from edgeml.twin import Ack, Slot, Slots

M = ModelName("m")


@contextlib.contextmanager
def failing_writes(above_bytes):
    """Let the kernel refuse to write beyond this offset of any file: SQLite sees a write that failed, not a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (above_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def event(index):
    return Event(seq=0, kind="k", at_ms=index, detail="d" * 300)


def slot(version):
    return Slot(ReleaseId(f"m@{version}"), Digest(f"{version:064x}"), "t", version)


@pytest.mark.parametrize("above_bytes", [0, 1, 5000, 20_000, 50_000])
def test_no_row_is_lost_or_counted_twice_when_writes_fail(tmp_path, above_bytes):
    path = tmp_path / "telemetry.db"
    buffer = Buffer(path, "b1")
    for index in range(60):
        buffer.append(event(index))
    buffer.flush()
    refused = 0
    with failing_writes(above_bytes):
        for index in range(600):
            try:
                buffer.append(event(index))
            except StorageError:
                refused += 1
            loss = buffer.loss(Stream.EVENTS)
            assert loss.produced == loss.dropped + buffer.held(Stream.EVENTS)
        with contextlib.suppress(StorageError):
            buffer.acknowledge(Ack(boot="b1", stream="events", seq=10))
    assert refused > 0
    assert buffer.quarantined is None
    buffer.flush()
    loss = buffer.loss(Stream.EVENTS)
    assert loss.produced == 660
    assert loss.dropped == loss.reasons.disk_refused
    buffer.close()
    again = Buffer(path, "b2")
    assert again.quarantined is None
    assert (again.loss(Stream.EVENTS), again.held(Stream.EVENTS)) == (loss, buffer.held(Stream.EVENTS))
    again.close()


@pytest.mark.parametrize("above_bytes", [0, 1, 5000, 20_000, 50_000])
def test_the_old_entry_and_the_old_slots_stand_when_writes_fail(tmp_path, above_bytes):
    journal, table = Journal(tmp_path / "journal.db"), SlotTable(tmp_path)
    written = Entry(generation=1)
    journal.write(M, written)
    table.write(M, promote(Slots(), slot(1)))
    slots, refused = table.slots(M), 0
    with failing_writes(above_bytes):
        for generation in range(2, 40):
            entry = Entry(generation=generation, reason="r" * 2000)
            try:
                journal.write(M, entry)
                written = entry
            except StorageError:
                refused += 1
            assert peek(tmp_path / "journal.db") == {M: written}
        with contextlib.suppress(StorageError):
            table.write(M, promote(slots, slot(2)))
            slots = table.slots(M)
    assert refused > 0
    journal.close()
    journal = Journal(tmp_path / "journal.db")
    assert (journal.load(M), journal.quarantined) == (written, None)
    assert SlotTable(tmp_path).slots(M) == slots
    journal.close()


@pytest.mark.processes
def test_an_agent_does_not_start_on_a_read_only_disk_and_says_why(make_disk, make_agent):
    disk = make_disk(2 << 20)
    agent = make_agent(disk.path / "state")
    agent.start()
    assert agent.serves()
    assert agent.stop() == 0
    before = agent.streams()
    disk.set_read_only()
    # A person can still look, with nothing that could be written beside the file.
    assert agent.streams() == before
    agent.start()
    assert agent.process.wait(60) == 5
    assert "Traceback" not in agent.words()
    assert "Read-only file system" in agent.words().splitlines()[-2]
    assert agent.bundle.read_bytes() == agent.content


@pytest.mark.processes
def test_an_agent_whose_files_are_taken_away_serves_on(make_agent, tmp_path):
    agent = make_agent(tmp_path / "state")
    agent.start()
    assert agent.serves()
    # With that the journal's first write is behind it, which else would be refused first, again and again.
    agent.wait_for(lambda: agent.ask() and agent.streams()["windows"]["held"], "the first window")
    size = (agent.storage / "telemetry.db").stat().st_size
    resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def refused():
        return agent.ask() and "cannot keep telemetry" in agent.words()

    agent.wait_for(refused, "a write to fail")
    assert agent.serves()
    resource.prlimit(
        agent.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    before = agent.streams()["windows"]["held"]
    agent.wait_for(lambda: agent.ask() and agent.streams()["windows"]["held"] > before, "a window on disk")
    assert agent.serves()
    assert agent.stop() == 0
    shutil.rmtree(agent.storage)
