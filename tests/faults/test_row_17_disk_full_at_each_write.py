"""Row 17: the disk has any number of pages left when buffer, journal or slots write; then it has room again."""

import contextlib
import signal

import numpy as np
import pytest

from agent import Agent, service
from agent.ballast import PIECE_BYTES, PIECES
from agent.buffer import Buffer
from agent.journal import Entry, Journal, peek
from agent.slots import SlotTable, promote
from edgeml.errors import StorageError
from edgeml.ids import Digest, ModelName, ReleaseId
from edgeml.telemetry import Event, Stream
from edgeml.twin import DeviceState, Slot, Slots

from ..waiting import wait_for

SIZE_BYTES = 512 << 10
PAGE_BYTES = 4096
ROWS = 300
M = ModelName("m")


def slot(version):
    return Slot(ReleaseId(f"m@{version}"), Digest(f"{version:064x}"), "t", version)


def balanced(buffer):
    for stream in Stream:
        loss = buffer.loss(stream)
        assert loss.produced == loss.acknowledged + loss.dropped + buffer.held(stream)
        assert loss.dropped == loss.reasons.total
    return True


def test_the_buffer_with_any_number_of_pages_left(make_disk):
    disk = make_disk(SIZE_BYTES)
    refused = 0
    for pages in (*range(20), *range(20, 60, 4)):
        path = disk.path / f"{pages}.db"
        buffer = Buffer(path, "b1")
        disk.fill(pages * PAGE_BYTES)
        for index in range(ROWS):
            try:
                buffer.append(Event(seq=0, kind="k", at_ms=index, detail="d" * 300))
            except StorageError as error:
                refused += 1
                assert "free space" in error.hint or "check the disk" in error.hint  # noqa: PT017 - some rows fit
            assert balanced(buffer)
        disk.free()
        buffer.flush()
        assert buffer.loss(Stream.EVENTS).produced == ROWS
        buffer.close()
        again = Buffer(path, "b2")
        assert again.quarantined is None
        assert again.loss(Stream.EVENTS) == buffer.loss(Stream.EVENTS)
        assert again.held(Stream.EVENTS) == buffer.held(Stream.EVENTS)
        while (batch := again.pending(Stream.EVENTS)) is not None:
            assert again.refuse(Stream.EVENTS, batch.boot, batch.rows[0].seq)
            assert balanced(again)
        again.close()
        path.unlink()
    assert refused > 0, "the disk was never full"


def test_the_journal_and_the_slots_with_any_number_of_pages_left(make_disk):
    disk = make_disk(SIZE_BYTES)
    refused = 0
    for pages in range(40):
        storage = disk.path / str(pages)
        journal, table = Journal(storage / "journal.db"), SlotTable(storage)
        table.write(M, promote(Slots(), slot(1)))
        written = Entry(generation=1)
        journal.write(M, written)
        disk.fill(pages * PAGE_BYTES)
        for generation in range(2, 30):
            entry = Entry(generation=generation, reason="r" * 250 * generation)
            try:
                journal.write(M, entry)
                written = entry
            except StorageError:
                refused += 1
            assert peek(storage / "journal.db") == {M: written}
        slots = table.slots(M)
        with contextlib.suppress(StorageError):
            table.write(M, promote(slots, slot(2)))
            slots = table.slots(M)
        assert SlotTable(storage).slots(M) == slots
        # The power goes while the disk is full: an agent that cannot start says so, and loses nothing.
        journal.close()
        with contextlib.suppress(StorageError):
            Journal(storage / "journal.db").close()
        disk.free()
        journal = Journal(storage / "journal.db")
        assert journal.quarantined is None
        assert journal.load(M) == written
        journal.write(M, Entry(generation=99))
        assert peek(storage / "journal.db") == {M: Entry(generation=99)}
        journal.close()
        for path in storage.iterdir():
            path.unlink()
    assert refused > 0, "the disk was never full"


@pytest.mark.processes
def test_an_agent_serves_on_a_full_disk_and_counts_again_when_there_is_room(make_disk, make_agent):
    disk = make_disk(1 << 20)
    agent = make_agent(disk.path / "state")
    agent.start()
    assert agent.serves()
    # With that the journal's first write is behind it, which else would be refused first, again and again.
    agent.wait_for(lambda: agent.ask() and agent.streams()["windows"]["held"], "the first window")
    disk.fill()

    def refused():
        return agent.ask() and "cannot keep telemetry" in agent.words()

    agent.wait_for(refused, "the disk to be full")
    assert agent.serves()
    disk.free()
    before = agent.streams()["windows"]["held"]
    agent.wait_for(lambda: agent.ask() and agent.streams()["windows"]["held"] > before, "a window on disk")
    assert agent.serves()
    assert agent.stop() == 0
    agent.streams()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_an_agent_that_is_started_on_a_full_disk_serves_again_and_again(make_disk, make_agent, end):
    disk = make_disk(2 << 20)
    agent = make_agent(disk.path / "state")
    agent.start()
    assert agent.serves()
    agent.wait_for(lambda: len(pieces(agent)) == PIECES, "the ballast")
    disk.fill()
    for _ in range(3):
        agent.end(end)
        agent.start()
        assert agent.serves()
    disk.free()
    agent.end(end)
    agent.start()
    assert agent.serves()
    agent.wait_for(lambda: len(pieces(agent)) == PIECES, "the ballast again")
    agent.wait_for(
        lambda: agent.ask() and agent.streams()["windows"]["held"] > 0, "windows on disk, whose counts add up"
    )
    assert agent.stop() == 0
    assert "could not be read and was set aside" not in agent.words()


def test_a_journal_that_refuses_while_an_agent_begins_is_asked_again(make_agent, tmp_path, monkeypatch):
    """The disk became full between the first answer and the machines: the agent ended of it once."""
    installed = make_agent(tmp_path / "state")
    refused, real = [], Journal.write

    def write(journal, *given):
        if len(refused) < 3:
            refused.append(given)
            raise StorageError("no space left")
        return real(journal, *given)

    monkeypatch.setattr(Journal, "write", write)
    monkeypatch.setattr(service, "DISK_PAUSE_S", 0.05)
    with Agent(installed.settings) as agent:
        assert agent.infer({"x": np.ones((1, 4), np.float32)}).outputs
        wait_for(lambda: peek(installed.storage / "journal.db"), "the journal")
    assert len(refused) == 3
    assert peek(installed.storage / "journal.db")[ModelName("sample")].state is DeviceState.IDLE


def pieces(agent):
    directory = agent.storage / "ballast"
    return [path for path in directory.glob("*") if path.stat().st_blocks * 512 >= PIECE_BYTES]
