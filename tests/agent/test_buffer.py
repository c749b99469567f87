"""The buffer: rows in order, batches that fit, acks that may come late or twice, a ring that gives up the oldest."""

import base64
import random
import stat
import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.block import pack_lines, unpack_lines
from agent.buffer import ROWS_PER_BATCH, Buffer, BufferLimits
from edgeml.ids import Digest, ReleaseId
from edgeml.sketch import Sketch
from edgeml.telemetry import (
    BATCH_BYTES_MAX,
    Counters,
    DropReason,
    Drops,
    Event,
    Loss,
    Stream,
    Window,
    decode_batch,
    encode_batch,
    encode_row,
)
from edgeml.twin import Ack

DIGEST = Digest("ab" * 32)


def window(at_ms=0, sketch=None):
    return Window(
        seq=0, release=ReleaseId("m@1"), digest=DIGEST, started_at_ms=at_ms, duration_ms=1000,
        counters=Counters(inferences=5), sketch=sketch,
    )  # fmt: skip


def event(kind="note", detail=""):
    return Event(seq=0, kind=kind, at_ms=1, detail=detail)


def noise(length, seed=0):
    """Text that zlib cannot make much shorter."""
    return base64.b85encode(random.Random(seed).randbytes(length)).decode()[:length]


def wide_sketch(columns, seed=0, top=1 << 40):
    source = random.Random(seed)
    counts = tuple(tuple(source.randrange(top) for _ in range(32)) for _ in range(columns))
    return Sketch(DIGEST, 1, counts, (0,) * columns, (0,) * columns)


def ack(boot, stream, seq):
    return Ack(boot=boot, stream=stream.value, seq=seq)


def seqs(batch):
    return [row.seq for row in batch.rows]


def spoil_row(buffer, index, line):
    """Put another line in the place of a row in the oldest block of windows."""
    with buffer._connection as connection:
        id_, payload = connection.execute(
            "SELECT id, payload FROM windows_blocks ORDER BY id LIMIT 1"
        ).fetchone()
        lines = unpack_lines(payload)
        lines[index] = line
        connection.execute("UPDATE windows_blocks SET payload = ? WHERE id = ?", (pack_lines(lines), id_))


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


def test_rows_come_back_in_order_with_the_seq_they_were_given(open_buffer):
    buffer = open_buffer()
    assert [buffer.append(window(i)) for i in range(5)] == [1, 2, 3, 4, 5]
    assert [buffer.append(event(f"k{i}")) for i in range(2)] == [1, 2]
    batch = buffer.pending(Stream.WINDOWS)
    assert (batch.boot, seqs(batch), [row.started_at_ms for row in batch.windows]) == (
        "b1", [1, 2, 3, 4, 5], [0, 1, 2, 3, 4],
    )  # fmt: skip
    assert [row.kind for row in buffer.pending(Stream.EVENTS).events] == ["k0", "k1"]
    assert batch.loss == Loss(produced=5)
    assert decode_batch(encode_batch(batch)) == batch


def test_nothing_waits_in_a_new_buffer(open_buffer):
    buffer = open_buffer()
    assert buffer.pending(Stream.WINDOWS) is None
    assert buffer.pending(Stream.EVENTS) is None
    assert buffer.loss(Stream.WINDOWS) == Loss()
    assert buffer.quarantined is None


def test_a_buffer_in_memory_works_like_one_on_disk():
    buffer = Buffer(":memory:", "b1")
    buffer.append(window())
    assert seqs(buffer.pending(Stream.WINDOWS)) == [1]
    assert buffer.acknowledge(ack("b1", Stream.WINDOWS, 1)) == 1
    buffer.close()


def test_the_file_and_its_log_are_the_owners_alone(open_buffer, path):
    path.parent.mkdir()
    path.touch(0o666)
    buffer = open_buffer()
    buffer.append(window())
    buffer.flush()
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        assert stat.S_IMODE(name.stat().st_mode) == 0o600


def test_acknowledged_rows_are_deleted_and_counted(open_buffer):
    buffer = open_buffer()
    for _ in range(5):
        buffer.append(window())
    buffer.flush()
    assert buffer.acknowledge(ack("b1", Stream.WINDOWS, 3)) == 3
    assert seqs(buffer.pending(Stream.WINDOWS)) == [4, 5]
    assert buffer.loss(Stream.WINDOWS) == Loss(produced=5, acknowledged=3)


@pytest.mark.parametrize(
    "late",
    [
        ack("b1", Stream.WINDOWS, 2), ack("b1", Stream.WINDOWS, 3), ack("b1", Stream.WINDOWS, 0), ack("b1", Stream.WINDOWS, -9),
        ack("b0", Stream.WINDOWS, 99), ack("", Stream.WINDOWS, 99), Ack(boot="b1", stream="other", seq=99), ack("b1", Stream.EVENTS, 99),
    ],
    ids=str,
)  # fmt: skip
def test_late_repeated_and_foreign_acks_change_nothing(open_buffer, late):
    buffer = open_buffer()
    for _ in range(5):
        buffer.append(window())
    buffer.flush()
    buffer.acknowledge(ack("b1", Stream.WINDOWS, 3))
    assert buffer.acknowledge(late) == 0
    assert seqs(buffer.pending(Stream.WINDOWS)) == [4, 5]
    assert balanced(buffer)


@pytest.mark.parametrize("seq", [5, 6, 1 << 62, 1 << 200])
def test_an_ack_beyond_the_last_row_deletes_what_there_is(open_buffer, seq):
    buffer = open_buffer()
    for _ in range(5):
        buffer.append(window())
    buffer.flush()
    assert buffer.acknowledge(ack("b1", Stream.WINDOWS, seq)) == 5
    assert balanced(buffer)


def test_rows_of_an_earlier_boot_are_sent_first_and_alone(open_buffer):
    first = open_buffer("b1")
    for _ in range(3):
        first.append(window())
    first.close()
    second = open_buffer("b2")
    assert second.append(window()) == 1
    batch = second.pending(Stream.WINDOWS)
    assert (batch.boot, seqs(batch)) == ("b1", [1, 2, 3])
    assert second.acknowledge(ack("b2", Stream.WINDOWS, 1)) == 0
    assert second.acknowledge(ack("b2", Stream.WINDOWS, 99)) == 0
    assert second.acknowledge(ack("b1", Stream.WINDOWS, 99)) == 3
    batch = second.pending(Stream.WINDOWS)
    assert (batch.boot, seqs(batch), batch.loss) == ("b2", [1], Loss(produced=4, acknowledged=3))


def test_a_buffer_opened_again_in_the_same_life_goes_on_counting(open_buffer):
    buffer = open_buffer("b1")
    buffer.append(window())
    buffer.flush()
    buffer.acknowledge(ack("b1", Stream.WINDOWS, 1))
    buffer.close()
    assert open_buffer("b1").append(window()) == 2


def test_a_batch_has_at_most_a_hundred_rows(open_buffer):
    buffer = open_buffer()
    for _ in range(250):
        buffer.append(window())
    assert len(buffer.pending(Stream.WINDOWS).rows) == ROWS_PER_BATCH


@given(
    lengths=st.lists(st.integers(0, 60_000), min_size=1, max_size=8),
    bytes_max=st.sampled_from([2_000, 9_000, BATCH_BYTES_MAX]),
)
@settings(max_examples=40)
def test_batches_never_exceed_their_size_and_all_rows_are_sent_or_counted(lengths, bytes_max):
    buffer = Buffer(":memory:", "b1")
    for index, length in enumerate(lengths):
        buffer.append(event(detail=noise(length, index)))
    sent = []
    while (batch := buffer.pending(Stream.EVENTS, bytes_max)) is not None:
        assert len(encode_batch(batch)) <= bytes_max
        assert seqs(batch) == sorted(seqs(batch))
        sent += seqs(batch)
        assert buffer.acknowledge(ack("b1", Stream.EVENTS, sent[-1])) == len(batch.rows)
    assert len(sent) == len(set(sent))
    lost = len(lengths) - len(sent)
    assert buffer.loss(Stream.EVENTS) == Loss(len(lengths), len(sent), lost, Drops(too_long=lost))
    fit_alone = {
        i + 1 for i, length in enumerate(lengths)
        if len(encode_batch_of_one(i + 1, length)) <= bytes_max
    }  # fmt: skip
    # The counts of loss in the envelope differ by a digit or two.
    assert all(
        seq in sent for seq in fit_alone if len(encode_batch_of_one(seq, lengths[seq - 1])) < bytes_max - 64
    )
    buffer.close()


def encode_batch_of_one(seq, length):
    from edgeml.telemetry import Batch

    return encode_batch(
        Batch(boot="b1", events=(Event(seq=seq, kind="note", at_ms=1, detail=noise(length, seq - 1)),))
    )


def test_a_batch_that_would_inflate_beyond_what_the_fleet_reads_is_made_smaller(open_buffer):
    buffer = open_buffer()
    # Twenty kilobytes each, and all alike: a hundred of them compress to less than a batch.
    for _ in range(220):
        buffer.append(window(sketch=wide_sketch(50)))
    sent = []
    while (batch := buffer.pending(Stream.WINDOWS)) is not None:
        assert decode_batch(encode_batch(batch)) == batch
        sent.append(buffer.acknowledge(ack("b1", Stream.WINDOWS, seqs(batch)[-1])))
    assert sum(sent) == 220
    assert 40 < max(sent) < ROWS_PER_BATCH


def test_a_row_no_batch_can_carry_is_dropped_and_counted(open_buffer):
    buffer = open_buffer()
    buffer.append(window())
    buffer.append(window(sketch=wide_sketch(400)))
    buffer.append(window())
    buffer.append(event(detail="x" * (2 << 20)))
    assert seqs(buffer.pending(Stream.WINDOWS)) == [1]
    buffer.acknowledge(ack("b1", Stream.WINDOWS, 1))
    assert seqs(buffer.pending(Stream.WINDOWS)) == [3]
    assert buffer.loss(Stream.WINDOWS) == Loss(3, 1, 1, Drops(too_long=1))
    assert buffer.loss(Stream.EVENTS) == Loss(1, 0, 1, Drops(too_long=1))


def test_reasons_are_on_the_wire_only_when_rows_were_dropped(open_buffer):
    open_buffer("b1").close()
    buffer = open_buffer("b2")
    buffer.append(window())
    assert b"reasons" not in zlib.decompress(encode_batch(buffer.pending(Stream.WINDOWS)))
    buffer.refuse(Stream.WINDOWS, "b2", 1)
    buffer.append(window())
    assert b'"reasons":{"refused":1}' in zlib.decompress(encode_batch(buffer.pending(Stream.WINDOWS)))


def test_a_row_too_long_to_hold_is_counted_in_the_next_life_too(open_buffer):
    buffer = open_buffer("b1")
    buffer.append(event(detail="x" * (2 << 20)))
    buffer.close()
    assert open_buffer("b2").loss(Stream.EVENTS) == Loss(1, 0, 1, Drops(too_long=1))


def test_a_row_that_cannot_be_read_any_more_is_dropped_and_counted(open_buffer):
    buffer = open_buffer()
    for _ in range(3):
        buffer.append(window())
    buffer.flush()
    spoil_row(buffer, 1, b'{"seq": "two"}')
    assert seqs(buffer.pending(Stream.WINDOWS)) == [1]
    buffer.acknowledge(ack("b1", Stream.WINDOWS, 1))
    assert seqs(buffer.pending(Stream.WINDOWS)) == [3]
    assert buffer.loss(Stream.WINDOWS) == Loss(3, 1, 1, Drops(unreadable=1))


@pytest.mark.parametrize("wrong", [9999, 0, 1])
def test_a_row_whose_number_was_damaged_is_dropped_and_stops_no_other(open_buffer, wrong):
    buffer = open_buffer()
    for _ in range(4):
        buffer.append(window())
    buffer.flush()
    spoil_row(buffer, 1, encode_row(msgspec.structs.replace(window(), seq=wrong)))
    sent = []
    while (batch := buffer.pending(Stream.WINDOWS)) is not None:
        sent += seqs(batch)
        assert buffer.acknowledge(ack("b1", Stream.WINDOWS, sent[-1])) == len(batch.rows)
        assert balanced(buffer)
    assert sent == [1, 3, 4]
    assert buffer.loss(Stream.WINDOWS) == Loss(4, 3, 1, Drops(unreadable=1))


def test_a_full_ring_gives_up_the_oldest_windows_before_any_event(open_buffer):
    buffer = open_buffer(rows_max=200)
    for _ in range(100):
        buffer.append(event())
    for _ in range(1000):
        buffer.append(window())
    buffer.flush()
    assert buffer.loss(Stream.EVENTS).dropped == 0
    held = buffer.held(Stream.WINDOWS) + buffer.held(Stream.EVENTS)
    assert 200 - 2 <= held <= 200
    assert seqs(buffer.pending(Stream.WINDOWS))[0] == 1000 - buffer.held(Stream.WINDOWS) + 1
    for _ in range(500):
        buffer.append(event())
    buffer.flush()
    assert buffer.held(Stream.WINDOWS) == 0
    assert buffer.loss(Stream.EVENTS).dropped > 0
    for stream in Stream:
        assert buffer.loss(stream).reasons.count(DropReason.EVICTED) == buffer.loss(stream).dropped
    assert balanced(buffer)


def test_the_file_stays_within_its_bytes_however_much_is_appended(open_buffer, path):
    bytes_max = 3 << 20
    buffer = open_buffer(bytes_max=bytes_max)
    for index in range(6000):
        buffer.append(window(index, wide_sketch(3, index)))
    buffer.flush()
    assert balanced(buffer)
    assert buffer.loss(Stream.WINDOWS).dropped > 0
    assert path.stat().st_size <= bytes_max
    assert Path(f"{path}-wal").stat().st_size <= 1 << 20
    assert seqs(buffer.pending(Stream.WINDOWS))
