"""The buffer when the disk is full, locked, damaged or gone, and when the process is killed: counts stay exact."""

import base64
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from agent.buffer import COMMIT_ROWS, UNWRITTEN_ROWS_MAX, Buffer, BufferLimits
from agent.ring import BLOCK_ROWS
from edgeml.errors import StorageError
from edgeml.ids import Digest, ReleaseId
from edgeml.telemetry import Counters, Drops, Event, Loss, Stream, Window
from edgeml.twin import Ack

ROOT = Path(__file__).parents[2]
DIGEST = Digest("ab" * 32)


def window(at_ms=0, version="1"):
    return Window(
        seq=0, release=ReleaseId(f"m@{version}"), digest=DIGEST, started_at_ms=at_ms, duration_ms=1000,
        counters=Counters(inferences=5),
    )  # fmt: skip


def event(kind="note", detail=""):
    return Event(seq=0, kind=kind, at_ms=1, detail=detail)


def noise(length, seed=0):
    """Text that zlib cannot make much shorter."""
    return base64.b85encode(random.Random(seed).randbytes(length)).decode()[:length]


def ack(boot, stream, seq):
    return Ack(boot=boot, stream=stream.value, seq=seq)


def seqs(batch):
    return [row.seq for row in batch.rows]


def balanced(buffer):
    for stream in Stream:
        loss = buffer.loss(stream)
        assert loss.produced == loss.acknowledged + loss.dropped + buffer.held(stream)
        assert loss.dropped == loss.reasons.total
    return True


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "telemetry.db"


@pytest.fixture
def open_buffer(path):
    made = []

    def make(boot="b1", **limits):
        made.append(Buffer(path, boot, BufferLimits(**limits)))
        return made[-1]

    yield make
    for buffer in made:
        buffer._connection.close()


def fill_pages(buffer):
    """Leave SQLite no page to grow into: what ENOSPC looks like from inside."""
    pages = buffer._connection.execute("PRAGMA page_count").fetchone()[0]
    buffer._connection.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_costs_the_oldest_windows_and_nothing_else(open_buffer):
    buffer = open_buffer(rows_max=1000)
    for index in range(300):
        buffer.append(window(index, noise(300, index)))
    buffer.flush()
    fill_pages(buffer)
    for index in range(300):
        buffer.append(event(f"k{index}", noise(100, index)))
    buffer.flush()
    assert buffer.held(Stream.EVENTS) == 300
    assert 0 < buffer.loss(Stream.WINDOWS).reasons.evicted < 300
    assert balanced(buffer)


def test_a_disk_that_stays_full_is_a_storage_error_and_rows_wait_in_bounded_memory(open_buffer):
    buffer = open_buffer()
    fill_pages(buffer)
    for index in range(COMMIT_ROWS - 1):
        buffer.append(event(detail=noise(500, index)))
    with pytest.raises(StorageError) as raised:
        buffer.append(event(detail=noise(500)))
    assert "\n" not in raised.value.message
    assert "free space" in raised.value.hint
    for index in range(1000):
        with pytest.raises(StorageError):
            buffer.append(window(index) if index % 2 else event(detail=noise(500, index)))
    assert buffer.held(Stream.WINDOWS) + buffer.held(Stream.EVENTS) == UNWRITTEN_ROWS_MAX
    assert buffer.held(Stream.WINDOWS) == 0
    assert balanced(buffer)
    loss = buffer.loss(Stream.WINDOWS)
    assert loss == Loss(500, 0, 500, Drops(disk_refused=500))
    buffer._connection.execute("PRAGMA max_page_count = 100000")
    buffer.flush()
    assert buffer.pending(Stream.EVENTS) is not None
    assert balanced(buffer)
    buffer.close()
    assert open_buffer("b2").loss(Stream.WINDOWS) == loss


def test_a_file_that_another_process_locks_is_a_storage_error_and_is_left_alone(open_buffer, path):
    buffer = open_buffer()
    buffer._connection.execute("PRAGMA busy_timeout = 10")
    buffer.append(window())
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError):
        buffer.flush()
    other.execute("ROLLBACK")
    buffer.flush()
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError):
        buffer.acknowledge(ack("b1", Stream.WINDOWS, 1))
    assert buffer.loss(Stream.WINDOWS) == Loss(produced=1)
    other.execute("ROLLBACK")
    other.close()
    assert balanced(buffer)
    assert seqs(buffer.pending(Stream.WINDOWS)) == [1]
    assert buffer.quarantined is None


def test_a_directory_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        Buffer(tmp_path / "file" / "telemetry.db", "b1")


def filled(open_buffer, rows=400):
    buffer = open_buffer("b1")
    for index in range(rows):
        buffer.append(window(index))
    buffer.close()


def overwrite(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


DAMAGE = {
    "not a database": lambda path: path.write_bytes(b"this is no database at all" * 100),
    "header": lambda path: overwrite(path, 0, b"\xff" * 100),
    "pages": lambda path: overwrite(path, 4096, os.urandom(path.stat().st_size - 4096)),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "another version": lambda path: set_version(path, 99),
}


def set_version(path, version):
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(open_buffer, path, damage):
    filled(open_buffer)
    DAMAGE[damage](path)
    before = path.read_bytes()
    buffer = open_buffer("b2")
    assert buffer.quarantined == path.with_suffix(".corrupt")
    assert buffer.quarantined.read_bytes()[100:] == before[100:]
    assert buffer.loss(Stream.WINDOWS) == Loss()
    buffer.append(window())
    assert seqs(buffer.pending(Stream.WINDOWS)) == [1]
    buffer.close()
    again = open_buffer("b3")
    assert again.quarantined is None


def test_an_empty_file_is_a_new_buffer(open_buffer, path):
    path.parent.mkdir()
    path.touch()
    assert open_buffer().quarantined is None


def test_damage_while_running_costs_the_rows_on_disk_and_is_counted(open_buffer, path):
    buffer = open_buffer()
    for index in range(400):
        buffer.append(window(index))
    buffer.append(event())
    buffer.flush()
    buffer._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = path.stat().st_size
    overwrite(path, 4096, b"\xa5" * (size - 4096))
    buffer._connection.execute("PRAGMA cache_size = 0")
    for _ in range(3):
        buffer.append(window())
    assert seqs(buffer.pending(Stream.WINDOWS)) == [401, 402, 403]
    assert buffer.quarantined == path.with_suffix(".corrupt")
    assert buffer.loss(Stream.WINDOWS) == Loss(403, 0, 400, Drops(started_over=400))
    assert buffer.loss(Stream.EVENTS) == Loss(1, 0, 1, Drops(started_over=1))
    buffer.close()
    again = open_buffer("b2")
    assert again.loss(Stream.WINDOWS) == Loss(403, 0, 400, Drops(started_over=400))


def test_rows_that_a_person_deleted_count_as_dropped(open_buffer, path):
    filled(open_buffer, 2 * BLOCK_ROWS + 10)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("DELETE FROM windows_blocks WHERE id = 2")
    connection.close()
    buffer = open_buffer("b2")
    assert buffer.loss(Stream.WINDOWS) == Loss(
        2 * BLOCK_ROWS + 10, 0, BLOCK_ROWS, Drops(unexplained=BLOCK_ROWS)
    )
    assert buffer.acknowledge(ack("b1", Stream.WINDOWS, BLOCK_ROWS - 2)) == BLOCK_ROWS - 2
    assert seqs(buffer.pending(Stream.WINDOWS)) == [
        BLOCK_ROWS - 1, BLOCK_ROWS, *range(2 * BLOCK_ROWS + 1, 2 * BLOCK_ROWS + 11)
    ]  # fmt: skip
    assert balanced(buffer)


def test_what_an_agent_without_reasons_dropped_is_unexplained_and_what_it_counts_later_too(open_buffer, path):
    filled(open_buffer, 10)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("DELETE FROM drops")
        connection.execute("UPDATE counts SET produced = 14, dropped = 4 WHERE stream = 'windows'")
    buffer = open_buffer("b2")
    assert buffer.loss(Stream.WINDOWS) == Loss(14, 0, 4, Drops(unexplained=4))
    buffer.refuse(Stream.WINDOWS, "b1", 1)
    buffer.close()
    # It runs once more: what it knows is one number.
    with connection:
        connection.execute("UPDATE counts SET produced = 16, dropped = 7 WHERE stream = 'windows'")
    buffer = open_buffer("b3")
    assert buffer.loss(Stream.WINDOWS) == Loss(16, 0, 7, Drops(refused=1, unexplained=6))
    # A newer one counts for a reason that is not known here; the sum stays what it was, however often it is read.
    buffer.close()
    with connection:
        connection.execute("UPDATE counts SET produced = 18, dropped = 9 WHERE stream = 'windows'")
        connection.execute("INSERT INTO drops VALUES ('windows', 'struck_by_lightning', 2)")
    connection.close()
    for boot in ("b4", "b5"):
        buffer = open_buffer(boot)
        buffer.append(event())
        assert buffer.loss(Stream.WINDOWS) == Loss(18, 0, 9, Drops(refused=1, unexplained=8))
        assert balanced(buffer)
        buffer.close()


def test_rows_that_a_kill_took_from_memory_were_never_counted(open_buffer):
    buffer = open_buffer()
    buffer.append(window())
    buffer.flush()
    buffer.append(window())
    buffer.acknowledge(ack("b1", Stream.WINDOWS, 1))
    assert buffer.loss(Stream.WINDOWS) == Loss(produced=2, acknowledged=1)
    buffer._connection.close()
    assert open_buffer("b2").loss(Stream.WINDOWS) == Loss(produced=1, acknowledged=1)


KILLED = """
import sys
from pathlib import Path
from agent.buffer import Buffer
from edgeml.telemetry import Event
buffer = Buffer(Path(sys.argv[1]), sys.argv[2])
for index in range(10**6):
    buffer.append(Event(seq=0, kind="tick", at_ms=index))
    if index % 7 == 0:
        buffer.flush()
        print(index + 1, flush=True)
"""


@pytest.mark.processes
def test_kill_9_loses_at_most_what_was_not_flushed_and_breaks_nothing(open_buffer, path):
    flushed = {}
    for boot in ("b1", "b2", "b3"):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path), boot],
            stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        lines = list(itertools.islice(process.stdout, 40))
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        process.wait(60)
        process.stdout.close()
        flushed[boot] = int([line for line in lines if line.endswith("\n")][-1])
    buffer = open_buffer("b4")
    assert buffer.quarantined is None
    assert balanced(buffer)
    seen = {boot: [] for boot in flushed}
    while (batch := buffer.pending(Stream.EVENTS)) is not None:
        seen[batch.boot] += seqs(batch)
        buffer.acknowledge(ack(batch.boot, Stream.EVENTS, seqs(batch)[-1]))
    for boot, last in flushed.items():
        assert seen[boot] == list(range(1, len(seen[boot]) + 1))
        assert last <= len(seen[boot]) <= last + COMMIT_ROWS
    assert buffer.loss(Stream.EVENTS).dropped == 0
