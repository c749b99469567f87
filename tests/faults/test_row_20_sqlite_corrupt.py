"""Row 20: databases damaged anywhere, without their log, or of a newer edgeml: set aside and reported, never a brick."""

import random
import shutil
import sqlite3

import pytest

from agent.buffer import Buffer
from agent.journal import Entry, Journal
from edgeml.ids import ModelName
from edgeml.telemetry import Event, Stream
from edgeml.twin import Ack

# The last four once kept an agent from starting, or its telemetry from moving: text in a schema or a column that is no
# text, a length beyond all bounds, a file format that SQLite does not know, a row whose number is another's.
SEEDS = (*range(60), 142, 339, 521, 736)
M = ModelName("m")
ENTRY = Entry(generation=7, release_counter=3, reason="r" * 6000)


def damage(path, seed):
    """Overwrite or cut a file at places that only the seed knows."""
    source = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(source.choice([1, 1, 3, 20])):
        begin = source.randrange(len(data))
        length = source.choice([1, 8, 300, 5000])
        data[begin : begin + length] = source.randbytes(len(data[begin : begin + length]))
    if not seed % 5:
        del data[source.randrange(len(data)) :]
    path.write_bytes(data)


def account(buffer):
    for stream in Stream:
        loss = buffer.loss(stream)
        assert loss.produced == loss.acknowledged + loss.dropped + buffer.held(stream)
        assert loss.dropped == loss.reasons.total
        assert min(loss.produced, loss.acknowledged, loss.dropped) >= 0
    return True


def test_a_buffer_damaged_anywhere_opens_and_its_account_adds_up(tmp_path):
    sound = tmp_path / "sound.db"
    buffer = Buffer(sound, "b1")
    for index in range(300):
        buffer.append(Event(seq=0, kind="k", at_ms=index, detail="d" * 200))
    buffer.flush()
    buffer.acknowledge(Ack(boot="b1", stream="events", seq=40))
    buffer.close()
    set_aside = 0
    for seed in SEEDS:
        path = tmp_path / f"{seed}.db"
        shutil.copy(sound, path)
        damage(path, seed)
        buffer = Buffer(path, "b2")
        set_aside += buffer.quarantined is not None
        assert account(buffer), seed
        buffer.append(Event(seq=0, kind="after", at_ms=1))
        while (batch := buffer.pending(Stream.EVENTS)) is not None:
            assert buffer.acknowledge(Ack(boot=batch.boot, stream="events", seq=batch.rows[-1].seq)) > 0, seed
            assert account(buffer), seed
        assert buffer.held(Stream.EVENTS) == 0
        buffer.close()
    assert 0 < set_aside < len(SEEDS)


def test_a_journal_damaged_anywhere_opens_and_can_be_written(tmp_path):
    sound = tmp_path / "sound.db"
    journal = Journal(sound)
    journal.write(M, ENTRY)
    journal.close()
    set_aside = 0
    for seed in SEEDS:
        path = tmp_path / str(seed) / "journal.db"
        path.parent.mkdir()
        shutil.copy(sound, path)
        damage(path, seed)
        journal = Journal(path)
        assert journal.load(M) is not None, seed
        set_aside += journal.quarantined is not None
        journal.write(M, Entry(generation=8))
        assert journal.load(M) == Entry(generation=8)
        journal.close()
        assert Journal(path).load(M) == Entry(generation=8)
    assert 0 < set_aside < len(SEEDS)


def test_files_without_their_log_are_what_they_were_before_it(tmp_path):
    """A kill leaves the log; then it is gone."""
    journal, buffer = Journal(tmp_path / "journal.db"), Buffer(tmp_path / "telemetry.db", "b1")
    journal.write(M, Entry(generation=1))
    journal._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    buffer.append(Event(seq=0, kind="k", at_ms=1))
    buffer.flush()
    buffer._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    journal.write(M, Entry(generation=2))
    buffer.append(Event(seq=0, kind="k", at_ms=2))
    buffer.flush()
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("journal.db", "telemetry.db"):
        shutil.copy(tmp_path / name, alone / name)
    journal.close()
    buffer.close()
    journal, buffer = Journal(alone / "journal.db"), Buffer(alone / "telemetry.db", "b2")
    assert (journal.load(M), journal.quarantined) == (Entry(generation=1), None)
    assert (buffer.held(Stream.EVENTS), buffer.quarantined) == (1, None)
    assert account(buffer)
    journal.close()
    buffer.close()


def set_newer(storage):
    for name, statement in (
        ("journal.db", "UPDATE machines SET version = 99"),
        ("telemetry.db", "PRAGMA user_version = 99"),
    ):
        connection = sqlite3.connect(storage / name)
        with connection:
            connection.execute(statement)
        connection.close()


@pytest.mark.processes
def test_an_agent_serves_with_both_databases_destroyed_and_says_that_they_were(make_agent, tmp_path):
    agent = make_agent(tmp_path / "state")
    agent.start()
    assert agent.serves()
    agent.process.kill()
    agent.process.wait()
    for name in ("journal.db", "telemetry.db"):
        path = agent.storage / name
        path.write_bytes(b"\xa5" * path.stat().st_size)
        # With its log SQLite would put the pages back, and nothing would be wrong.
        path.with_name(f"{name}-wal").unlink()
    agent.start()
    assert agent.serves()
    for name in ("journal.corrupt", "telemetry.corrupt"):
        assert f"{name} could not be read and was set aside" in agent.words()
    assert agent.stop() == 0
    assert agent.streams()["events"]["held"] == 2, "an event for each file"


@pytest.mark.processes
def test_an_agent_of_before_a_newer_journal_does_not_start_and_says_why(make_agent, tmp_path):
    agent = make_agent(tmp_path / "state")
    agent.start()
    assert agent.serves()
    assert agent.stop() == 0
    set_newer(agent.storage)
    agent.start()
    assert agent.process.wait(60) == 5
    assert "the journal has version 99; this edgeml reads 2" in agent.words()
    assert "update edgeml" in agent.words()
    assert "Traceback" not in agent.words()
    assert agent.bundle.read_bytes() == agent.content
