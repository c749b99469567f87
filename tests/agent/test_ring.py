"""The ring on disk: rows come back as they went in, however they were cut into commits and however many went away."""

import sqlite3
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.block import MARK
from agent.buffer import Buffer
from agent.buffer_file import open_file
from agent.ring import BLOCK_RAW_BYTES, BLOCK_ROWS, Ring, unpack
from edgeml.telemetry import Event, Loss, Stream, encode_row
from edgeml.twin import Ack

EVENTS = Stream.EVENTS


@pytest.fixture
def connection():
    made = open_file(":memory:", 1 << 20).connection
    yield made
    made.close()


def put(ring, connection, rows, boot="b1"):
    with connection:
        written = ring.write(connection, boot, rows)
    ring.settle(written.opened)
    return written.added_bytes


def blocks(connection):
    return [row for (row,) in connection.execute("SELECT rows FROM events_blocks ORDER BY id")]


def test_commits_of_one_row_join_one_block(connection):
    ring = Ring(EVENTS)
    for seq in range(1, BLOCK_ROWS + 4):
        put(ring, connection, [(seq, b"%d" % seq)])
    assert blocks(connection) == [BLOCK_ROWS, 3]


def test_a_gap_a_new_boot_and_much_data_begin_a_block(connection):
    ring = Ring(EVENTS)
    put(ring, connection, [(1, b"a"), (2, b"b"), (4, b"d")])
    put(ring, connection, [(1, b"x")], "b2")
    put(ring, connection, [(2, b"y" * BLOCK_RAW_BYTES), (3, b"z")], "b2")
    assert blocks(connection) == [2, 1, 1, 1, 1]
    assert ring.front(connection) == ("b1", 1, 2)


def test_nothing_joins_a_block_that_lost_its_front(connection):
    ring = Ring(EVENTS)
    put(ring, connection, [(1, b"a"), (2, b"b")])
    removal = ring.removal(connection, 1, None)
    assert (removal.rows, removal.freed_bytes) == (1, 0)
    with connection:
        ring.remove(connection, removal)
    put(ring, connection, [(3, b"c")])
    assert [(row.seq, row.payload) for row in ring.oldest(connection, 9)] == [(2, b"b"), (3, b"c")]


@given(data=st.data())
@settings(max_examples=60)
def test_it_is_a_queue(data):
    connection = open_file(":memory:", 8 << 20).connection
    ring, model, seq, held_bytes = Ring(EVENTS), [], 0, 0
    for _ in range(data.draw(st.integers(1, 12))):
        count = data.draw(st.integers(0, 70))
        rows = [(seq + i + 1, encode_row(Event(seq + i + 1, "k", i))) for i in range(count)]
        seq += count
        held_bytes += put(ring, connection, rows)
        model += rows
        gone = data.draw(st.integers(0, 90))
        upto = data.draw(st.sampled_from([None, "b1", "b0"]))
        limit = data.draw(st.integers(0, seq + 3))
        removal = ring.removal(connection, gone, None if upto is None else (upto, limit))
        with connection:
            ring.remove(connection, removal)
        expected = [row for row in model[:gone] if upto is None or (upto == "b1" and row[0] <= limit)]
        assert removal.rows == len(expected)
        model = model[len(expected) :]
        held_bytes -= removal.freed_bytes
        assert [(row.seq, row.payload) for row in ring.oldest(connection, 10_000)] == model
        [stored] = connection.execute("SELECT total(length(payload) + 64) FROM events_blocks").fetchone()
        assert stored == held_bytes
    connection.close()


@pytest.mark.parametrize(
    "payload", [b"", b"\xff", "text", None, zlib.compress(b"a")[:-3], zlib.compress(b"only one")]
)
def test_a_block_that_cannot_be_read_still_says_how_many_rows_it_had(payload):
    assert [(row.seq, row.payload) for row in unpack("b1", 7, 2, payload)] == [(7, None), (8, None)]


VERSION_1 = """
CREATE TABLE windows (id INTEGER PRIMARY KEY, boot TEXT NOT NULL, seq INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE TABLE events (id INTEGER PRIMARY KEY, boot TEXT NOT NULL, seq INTEGER NOT NULL, payload BLOB NOT NULL);
CREATE TABLE counts (stream TEXT PRIMARY KEY, produced INTEGER NOT NULL, acknowledged INTEGER NOT NULL,
  dropped INTEGER NOT NULL, boot TEXT NOT NULL, seq INTEGER NOT NULL);
INSERT INTO counts VALUES ('windows', 0, 0, 0, '', 0), ('events', 9, 4, 1, 'b1', 9);
PRAGMA user_version = 1;
"""


def version_1(path):
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1)
    with connection:
        for seq in range(6, 10):
            connection.execute(
                "INSERT INTO events (boot, seq, payload) VALUES ('b1', ?, ?)",
                (seq, encode_row(Event(seq, "k", seq))),
            )
    connection.close()


def test_a_file_that_kept_rows_one_by_one_is_read_and_loses_nothing(tmp_path):
    path = tmp_path / "telemetry.db"
    version_1(path)
    buffer = Buffer(path, "b2")
    assert buffer.quarantined is None
    loss = buffer.loss(EVENTS)
    assert (loss.produced, loss.acknowledged, loss.dropped) == (9, 4, 1)
    buffer.append(Event(0, "new", 1))
    batch = buffer.pending(EVENTS)
    assert (batch.boot, [row.seq for row in batch.rows]) == ("b1", [6, 7, 8, 9])
    assert buffer.acknowledge(Ack(boot="b1", stream="events", seq=9)) == 4
    assert [row.kind for row in buffer.pending(EVENTS).rows] == ["new"]
    buffer.close()
    again = Buffer(path, "b3")
    assert again.loss(EVENTS) == Loss(10, 8, 1, loss.reasons)
    assert again.loss(Stream.SAMPLES) == Loss()
    again.close()


def test_a_file_of_format_2_is_read_and_written_on(tmp_path):
    """Its blocks are deflated lines; new ones are packed by columns beside them."""
    path = tmp_path / "telemetry.db"
    buffer = Buffer(path, "b1")
    for number in range(3):
        buffer.append(Event(0, "k", number))
    buffer.close()
    connection = sqlite3.connect(path)
    with connection:
        lines = [encode_row(Event(seq, "old", 1)) for seq in (1, 2, 3)]
        connection.execute("UPDATE events_blocks SET payload = ?", (zlib.compress(b"\n".join(lines)),))
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    buffer = Buffer(path, "b2")
    assert buffer.quarantined is None
    for number in range(20):
        buffer.append(Event(0, "new", number))
    assert [row.kind for row in buffer.pending(EVENTS).rows] == ["old"] * 3
    assert buffer.acknowledge(Ack(boot="b1", stream="events", seq=3)) == 3
    assert [row.at_ms for row in buffer.pending(EVENTS).rows] == list(range(20))
    assert buffer.loss(EVENTS).acknowledged == 3
    buffer.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (3,)
    [payload] = connection.execute("SELECT payload FROM events_blocks").fetchone()
    connection.close()
    assert payload.startswith(MARK)
