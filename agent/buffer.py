"""The telemetry buffer: rows that wait on disk until the fleet has stored them.

Decides what goes first when it is full (the oldest samples, then the oldest windows, then the oldest events), and which
rows are dropped for what reason. At any time produced = acknowledged + dropped + held: `tally` keeps that account,
`ring` the rows, `timeline` what is known of the clock they were dated by. When to send what is `uplink`'s business.

Durability. A file of its own, WAL with synchronous=NORMAL. A kill loses the rows since the last commit: at most
COMMIT_ROWS, none older than FLUSH_S, and none that were flushed or sent. A power cut loses at most the commits since
the log was synced last: none older than SYNC_S + FLUSH_S, and at most LOSS_ROWS_MAX rows. That needs `tick` every
second or so. Neither breaks the file nor the counts, and no number is sent twice for different rows: `boot` is new
with every life. auto_vacuum stays off, for a full ring reuses its own free pages.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from edgeml.atomic import storage_error
from edgeml.clock import Clock, SystemClock
from edgeml.errors import StorageError
from edgeml.telemetry import (
    BATCH_BYTES_MAX,
    PRIORITIES,
    Batch,
    DropReason,
    Loss,
    Row,
    Stream,
    encode_row,
    moved,
    stream_of,
)
from edgeml.twin import Ack

from .batcher import ROW_BYTES_MAX, Batcher
from .buffer_file import LOG_PAGES, FilePath, is_corrupt, is_full, open_file, start_over
from .ring import Ring, StoredRow
from .tally import read_tally
from .timeline import Timeline, offset_ms
from .unwritten import Unwritten

__all__ = ["LOG_PAGES", "Buffer", "BufferLimits"]

logger = logging.getLogger(__name__)

ROWS_PER_BATCH: Final = 100
COMMIT_ROWS: Final = 50
UNWRITTEN_ROWS_MAX: Final = 4 * COMMIT_ROWS
"""Rows that wait in memory while the disk refuses them; above it the oldest are dropped."""
FLUSH_S: Final = 5.0
"""Seconds that a row waits in memory at most."""
SYNC_S: Final = 60.0
"""Seconds that a commit waits for being synced at most."""
LOSS_ROWS_MAX: Final = LOG_PAGES // 2 * COMMIT_ROWS + COMMIT_ROWS
"""Rows that a power cut takes at most: a commit writes two pages of the log at least."""
EVICT_FRACTION: Final = 0.01
_DROPPED_FIRST: Final = tuple(reversed(PRIORITIES))


class BufferLimits(msgspec.Struct, frozen=True):
    """How much may wait. The file has at most `bytes_max` bytes (2 MiB if that is less), its log 512 KiB more."""

    rows_max: int = 50_000
    bytes_max: int = 64 << 20


class Buffer:
    """One device's buffer, for one life of its agent (`boot`). Not thread-safe. Rows are dated by `clock`.

    `quarantined` is the file that could not be read and was set aside for a new one; None if all is well.

    Raises:
        StorageError: The disk refused.
    """

    def __init__(
        self, path: FilePath, boot: str, limits: BufferLimits | None = None, clock: Clock | None = None
    ) -> None:
        self._path = path
        self.boot = boot
        self._limits = limits or BufferLimits()
        self._clock = clock or SystemClock()
        self._timeline = Timeline()
        self._rings = {stream: Ring(stream) for stream in Stream}
        self._batchers = {stream: Batcher(stream, partial(self._date, stream)) for stream in Stream}
        self._unwritten = Unwritten()
        self._unsynced_since_s: float | None = None
        self._is_unsaved = False
        try:
            opened = open_file(path, self._limits.bytes_max)
            self._connection = opened.connection
            self.quarantined = opened.quarantined
            self._tallies = {stream: read_tally(opened.connection, stream, boot) for stream in Stream}
        except sqlite3.Error as error:
            raise StorageError(f"cannot open telemetry in {path}: {error}", hint="check the disk") from error
        except OSError as error:
            raise storage_error(error, Path(path)) from error

    def append(self, row: Row) -> int:
        """Keep a row and return the seq it was given; the row's own seq means nothing.

        Raises:
            StorageError: The disk refused even after the oldest rows were given up. The row is counted and waits in memory.
        """
        stream = stream_of(row)
        tally = self._tallies[stream]
        payload = encode_row(msgspec.structs.replace(row, seq=tally.produce()))
        if len(payload) > ROW_BYTES_MAX:
            tally.drop_new(DropReason.TOO_LONG)
            self._is_unsaved = True
            logger.warning("a row of %d bytes in %s is too long to send", len(payload), stream.value)
            return tally.seq
        tally.hold()
        self._timeline.dated(stream, tally.seq, offset_ms(self._clock))
        self._unwritten.add(stream, tally.seq, payload, self._clock.monotonic_s())
        if len(self._unwritten) >= COMMIT_ROWS or self._is_over():
            self.flush()
        return tally.seq

    def refuse_new(self, stream: Stream, rows: int) -> None:
        """Count rows that were made and are too long to be kept at all."""
        for _ in range(rows):
            self._tallies[stream].produce()
            self._tallies[stream].drop_new(DropReason.TOO_LONG)
            self._is_unsaved = True

    def tick(self) -> None:
        """Write what has waited for FLUSH_S, and sync what was written SYNC_S ago.

        Raises:
            StorageError: The disk refused even after the oldest rows were given up.
        """
        now_s = self._clock.monotonic_s()
        if self._unwritten and now_s - self._unwritten.since_s >= FLUSH_S:
            self.flush()
        if self._unsynced_since_s is not None and now_s - self._unsynced_since_s >= SYNC_S:
            try:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                self._unsynced_since_s = None
            except sqlite3.Error as error:
                self._survive(error)

    def flush(self) -> None:
        """Write what was appended and counted; it then survives a kill.

        Raises:
            StorageError: The disk refused even after the oldest rows were given up. What is unwritten waits in memory.
        """
        started_over = False
        while self._unwritten or self._is_unsaved:
            try:
                self._write()
            except sqlite3.Error as error:
                self._undo()
                if is_corrupt(error) and not started_over:
                    started_over = True
                    self._survive(error)
                elif not self._make_room(error):
                    self._forget_oldest_unwritten()
                    raise self._storage_error(error) from error
        try:
            while self._is_over() and self._evict():
                pass
        except sqlite3.Error as error:
            self._survive(error)

    def pending(
        self, stream: Stream, bytes_max: int = BATCH_BYTES_MAX, rows_max: int = ROWS_PER_BATCH
    ) -> Batch | None:
        """Return the oldest rows of one boot, at most `rows_max` and `bytes_max` compressed; None if nothing waits.

        What is returned was flushed, so a row that was sent is a row that survives a kill. A row that no batch can
        carry, or that cannot be read any more, is dropped and counted rather than let it stop all others.

        Raises:
            StorageError: The disk refused.
        """
        self.flush()
        ring = self._rings[stream]
        try:
            while found := ring.oldest(self._connection, rows_max):
                batch = self._batchers[stream].fill(found, self.loss(stream), bytes_max)
                if isinstance(batch, Batch):
                    return batch
                logger.warning("a row in %s cannot be sent and is dropped: %s", stream.value, batch.value)
                self._drop(stream, 1, batch)
        except sqlite3.Error as error:
            self._survive(error)
        return None

    def newest(self, stream: Stream, after_seq: int, rows_max: int) -> Batch | None:
        """Return the newest rows of this life that are on disk and above a number; None if there are none.

        Raises:
            StorageError: The disk refused.
        """
        ring = self._rings[stream]
        try:
            found = ring.newest(self._connection, self.boot, after_seq, rows_max)
        except sqlite3.Error as error:
            self._survive(error)
            return None
        if not found:
            return None
        # The fields that rows have ahead of their turn have longer names.
        batch = self._batchers[stream].fill(found, self.loss(stream), BATCH_BYTES_MAX - 64)
        return batch if isinstance(batch, Batch) else None

    def send(self, stream: Stream, batch: Batch) -> None:
        """Count a batch of `pending` as sent, on disk, before it is handed to the link.

        Raises:
            StorageError: The disk refused; the batch is not to be sent.
        """
        tally = self._tallies[stream]
        if tally.is_sent(batch.boot, batch.rows[-1].seq):
            return
        tally.send(batch.boot, [row.seq for row in batch.rows])
        if batch.boot == self.boot:
            self._timeline.sent(stream, batch.rows[-1].seq, offset_ms(self._clock))
        self._is_unsaved = True
        self.flush()

    def acknowledge(self, ack: Ack) -> int:
        """Delete what the fleet has stored and return how many rows. Late, repeated and foreign acks change nothing.

        Only the oldest boot's rows are ever sent, so an ack of any other boot is late or foreign.

        Raises:
            StorageError: The disk refused; the rows will be sent and acknowledged again.
        """
        try:
            stream = Stream(ack.stream)
        except ValueError:
            return 0
        try:
            return self._remove(stream, self._tallies[stream].held, ack, None)
        except sqlite3.Error as error:
            self._survive(error)
            return 0

    def refuse(self, stream: Stream, boot: str, seq: int) -> bool:
        """Drop the oldest row if it is this one, which the fleet will never store; tell whether it was.

        Raises:
            StorageError: The disk refused; the row will be sent and refused again.
        """
        try:
            front = self._rings[stream].front(self._connection)
            return (
                front is not None
                and front[:2] == (boot, seq)
                and self._drop(stream, 1, DropReason.REFUSED) == 1
            )
        except sqlite3.Error as error:
            self._survive(error)
            return False

    def loss(self, stream: Stream) -> Loss:
        """Exact counts since the buffer was created. A dropped row may have been stored if its ack was lost."""
        return self._tallies[stream].loss

    def held(self, stream: Stream) -> int:
        """Rows that wait, in memory and on disk."""
        return self._tallies[stream].held

    def close(self) -> None:
        """Flush and close.

        Raises:
            StorageError: The disk refused the last rows; the file is closed all the same.
        """
        try:
            self.flush()
        finally:
            self._connection.close()

    def _date(self, stream: Stream, stored: StoredRow, row: Row) -> Row:
        if stored.boot != self.boot:
            return row
        shift_ms = self._timeline.shift_ms(stream, stored.seq, offset_ms(self._clock))
        return moved(row, shift_ms) if shift_ms else row

    def _write(self) -> None:
        written = {}
        with self._connection:
            for stream, ring in self._rings.items():
                rows = self._unwritten.of(stream)
                written[stream] = ring.write(self._connection, self.boot, rows)
                if rows or self._is_unsaved:
                    self._tallies[stream].save(self._connection, stream, self.boot, unwritten=0)
        for stream, one in written.items():
            self._rings[stream].settle(one.opened)
            self._tallies[stream].held_bytes += one.added_bytes
        self._unwritten.clear()
        self._is_unsaved = False
        self._on_commit()

    def _remove(self, stream: Stream, count: int, ack: Ack | None, reason: DropReason | None) -> int:
        """Delete at most `count` of the oldest rows: those of an ack, or any, which are dropped for a reason."""
        ring = self._rings[stream]
        upto = None if ack is None else (ack.boot, ack.seq)
        removal = ring.removal(self._connection, count, upto)
        if not removal.rows:
            return 0
        tally = replace(self._tallies[stream])
        tally.release(removal.rows, removal.freed_bytes, reason)
        with self._connection:
            ring.remove(self._connection, removal)
            tally.save(self._connection, stream, self.boot, self._unwritten.count(stream))
        self._tallies[stream] = tally
        self._on_commit()
        return removal.rows

    def _drop(self, stream: Stream, count: int, reason: DropReason) -> int:
        return self._remove(stream, count, None, reason)

    def _on_commit(self) -> None:
        if self._unsynced_since_s is None:
            self._unsynced_since_s = self._clock.monotonic_s()

    def _evict(self) -> bool:
        """Give up a block of the oldest rows of the least important stream that has any on disk."""
        excess = sum(tally.held for tally in self._tallies.values()) - self._limits.rows_max
        for stream in _DROPPED_FIRST:
            # Of what is held as well: a few samples may take the room of all events.
            held = min(self._limits.rows_max, self._tallies[stream].held)
            if self._drop(stream, max(1, int(held * EVICT_FRACTION), excess), DropReason.EVICTED):
                return True
        return False

    def _make_room(self, error: sqlite3.Error) -> bool:
        """Give up a whole block: cutting one may take a page that there is not."""
        if not is_full(error):
            return False
        try:
            for stream in _DROPPED_FIRST:
                front = self._rings[stream].front(self._connection)
                if front is not None:
                    return self._drop(stream, front[2], DropReason.EVICTED) > 0
            return False  # noqa: TRY300 - nothing is on disk
        except sqlite3.Error:
            # A disk so full that not even the log of a deletion fits: the first error says it.
            self._undo()
            return False

    def _forget_oldest_unwritten(self) -> None:
        while len(self._unwritten) > UNWRITTEN_ROWS_MAX:
            self._tallies[self._unwritten.forget_one()].release(1, 0, DropReason.DISK_REFUSED)
            self._is_unsaved = True

    def _is_over(self) -> bool:
        tallies = self._tallies.values()
        return (
            sum(tally.held for tally in tallies) > self._limits.rows_max
            or sum(tally.held_bytes for tally in tallies) + self._unwritten.bytes > self._limits.bytes_max
        )

    def _undo(self) -> None:
        # SQLite may have rolled back by itself, or be unable to: either way nothing was written.
        with suppress(sqlite3.Error):
            self._connection.rollback()

    def _survive(self, error: sqlite3.Error) -> None:
        """Start over if the file is corrupt; the rows on disk are then counted as dropped.

        Raises:
            StorageError: It is something else, or cannot be started over.
        """
        self._undo()
        if not is_corrupt(error):
            raise self._storage_error(error) from error
        try:
            opened = start_over(self._connection, self._path, self._limits.bytes_max)
            self._connection, self.quarantined = opened.connection, opened.quarantined
            # The account first, as a whole: the file is gone whether or not the new one can be written.
            for stream, tally in self._tallies.items():
                self._rings[stream].settle(None)
                tally.lose_file(self._unwritten.count(stream))
            self._is_unsaved = True
            with self._connection:
                for stream, tally in self._tallies.items():
                    tally.save(self._connection, stream, self.boot, self._unwritten.count(stream))
        except (sqlite3.Error, OSError) as again:
            raise StorageError(
                f"cannot start telemetry over in {self._path}: {again}", hint="check the disk"
            ) from again
        logger.error("telemetry could not be read, was set aside as %s and starts over", self.quarantined)

    def _storage_error(self, error: sqlite3.Error) -> StorageError:
        hint = "free space on that file system" if is_full(error) else "check the disk"
        return StorageError(f"cannot keep telemetry in {self._path}: {error}", hint=hint)
