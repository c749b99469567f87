"""Everything that may happen to a buffer, in any order: every row is acknowledged, dropped for its reason, or held."""

import itertools
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from agent.buffer import Buffer, BufferLimits
from agent.ring import BLOCK_OVERHEAD_BYTES
from edgeml.ids import Digest, ReleaseId
from edgeml.telemetry import Counters, DropReason, Event, Stream, Window
from edgeml.twin import Ack


def window():
    return Window(
        seq=0, release=ReleaseId("m@1"), digest=Digest("ab" * 32), started_at_ms=0, duration_ms=1000,
        counters=Counters(inferences=5),
    )  # fmt: skip


def event(detail=""):
    return Event(seq=0, kind="note", at_ms=1, detail=detail)


def ack(boot, stream, seq):
    return Ack(boot=boot, stream=stream.value, seq=seq)


class Life(RuleBasedStateMachine):
    """A buffer, and a model that keeps the account beside it."""

    directory: Path
    numbers = itertools.count()

    @initialize()
    def begin(self):
        self.path = self.directory / f"{next(self.numbers)}.db"
        self.boots = itertools.count()
        self.unwritten_before_kill = dict.fromkeys(Stream, 0)
        self.appended = dict.fromkeys(Stream, 0)
        self.acknowledged = dict.fromkeys(Stream, 0)
        self.dropped = {stream: dict.fromkeys(DropReason, 0) for stream in Stream}
        self.open()

    def open(self):
        self.boot = f"boot-{next(self.boots)}"
        self.buffer = Buffer(self.path, self.boot, BufferLimits(rows_max=30, bytes_max=16 << 10))

    @rule(count=st.integers(1, 25), big=st.sampled_from([0, 0, 0, 3000]))
    def append_events(self, count, big):
        for _ in range(count):
            self.buffer.append(event(detail="d" * big))
        self.appended[Stream.EVENTS] += count

    @rule(count=st.integers(1, 25))
    def append_windows(self, count):
        for _ in range(count):
            self.buffer.append(window())
        self.appended[Stream.WINDOWS] += count

    @rule(stream=st.sampled_from(Stream), part=st.floats(0, 1), twice=st.booleans())
    def send_and_acknowledge(self, stream, part, twice):
        batch = self.buffer.pending(stream)
        if batch is None:
            return
        count = int(len(batch.rows) * part)
        if count:
            answer = ack(batch.boot, stream, batch.rows[count - 1].seq)
            assert self.buffer.acknowledge(answer) == count
            self.acknowledged[stream] += count
            if twice:
                assert self.buffer.acknowledge(answer) == 0

    @rule()
    def append_what_no_batch_can_carry(self):
        self.buffer.append(event(detail="d" * (1 << 20)))
        self.buffer.flush()
        self.appended[Stream.EVENTS] += 1
        self.dropped[Stream.EVENTS][DropReason.TOO_LONG] += 1

    @rule(stream=st.sampled_from(Stream))
    def send_and_refuse_the_oldest(self, stream):
        batch = self.buffer.pending(stream)
        if batch is not None:
            assert self.buffer.refuse(stream, batch.boot, batch.rows[0].seq)
            assert not self.buffer.refuse(stream, batch.boot, batch.rows[0].seq)
            self.dropped[stream][DropReason.REFUSED] += 1

    @rule(stream=st.sampled_from(Stream))
    def spoil_the_oldest(self, stream):
        self.buffer.flush()
        with self.buffer._connection as connection:
            spoiled = connection.execute(
                f"UPDATE {stream.value}_blocks SET payload = zeroblob(length(payload)) "
                f"WHERE id = (SELECT min(id) FROM {stream.value}_blocks) RETURNING rows"
            ).fetchall()
        self.buffer.pending(stream)
        self.dropped[stream][DropReason.UNREADABLE] += spoiled[0][0] if spoiled else 0

    @rule()
    def break_the_file(self):
        self.buffer.flush()
        for stream in Stream:
            self.dropped[stream][DropReason.STARTED_OVER] += self.buffer.held(stream)
        self.buffer._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.buffer._connection.execute("PRAGMA cache_size = 0")
        with self.path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xa5" * (self.path.stat().st_size - 4096))
        self.append_windows(1)
        self.buffer.flush()
        assert self.buffer.quarantined is not None

    @rule()
    def flush(self):
        self.buffer.flush()

    @rule()
    def restart(self):
        self.buffer.close()
        self.open()

    @rule()
    def kill(self):
        for stream in Stream:
            lost = sum(one is stream for one, _, _ in self.buffer._unwritten)
            self.appended[stream] -= lost
        self.buffer._connection.close()
        self.open()

    @invariant()
    def every_row_is_accounted_for(self):
        if not hasattr(self, "buffer"):
            return
        for stream in Stream:
            loss = self.buffer.loss(stream)
            assert loss.produced == self.appended[stream]
            assert loss.acknowledged == self.acknowledged[stream]
            assert loss.produced == loss.acknowledged + loss.dropped + self.buffer.held(stream)
            assert loss.dropped == loss.reasons.total
            for reason in set(DropReason) - {DropReason.EVICTED}:
                assert loss.reasons.count(reason) == self.dropped[stream][reason], reason

    def teardown(self):
        if hasattr(self, "buffer"):
            self.buffer.flush()
            for stream in Stream:
                stored = self.buffer._connection.execute(
                    f"SELECT coalesce(sum(rows), 0) FROM {stream.value}_blocks"
                ).fetchone()[0]
                [sizes] = self.buffer._connection.execute(
                    f"SELECT coalesce(sum(length(payload) + {BLOCK_OVERHEAD_BYTES}), 0) FROM {stream.value}_blocks"
                ).fetchall()
                assert self.buffer._tallies[stream].held_bytes == sizes[0]
                assert stored == self.buffer.held(stream)
            assert sum(map(self.buffer.held, Stream)) <= 30
            self.buffer.close()


def test_produced_is_acknowledged_plus_dropped_plus_held_whatever_happens(tmp_path):
    Life.directory = tmp_path
    run_state_machine_as_test(Life, settings=settings(max_examples=25, stateful_step_count=25))
