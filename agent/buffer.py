"""The telemetry buffer: rows that wait on disk until the fleet has stored them.

Decides the shape (one table a stream, a ring in order of its rowid, no secondary index), what goes first when it is
full (the oldest windows, then the oldest events), and which rows are dropped for what reason. At any time produced =
acknowledged + dropped + held: `tally` keeps that account. When to send what is `uplink`'s business.

Durability. A file of its own, WAL with synchronous=NORMAL. A kill loses the rows since the last commit: at most
COMMIT_ROWS, and none that were flushed or sent. A power cut loses at most the commits in the last LOG_PAGES pages of
the log. Neither breaks the file nor the counts, and no number is sent twice for different rows: `boot` is new with
every life. auto_vacuum stays off, for a full ring reuses its own free pages.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Final

import msgspec

from edgeml.atomic import storage_error
from edgeml.errors import StorageError
from edgeml.telemetry import (
    BATCH_BYTES_MAX,
    BATCH_RAW_BYTES_MAX,
    Batch,
    DropReason,
    Event,
    Loss,
    Stream,
    Window,
    encode_batch,
    encode_row,
)
from edgeml.twin import Ack

from .buffer_file import LOG_PAGES, FilePath, is_corrupt, is_full, open_file, sql, start_over
from .tally import read_tally

__all__ = ["LOG_PAGES", "Buffer", "BufferLimits"]

logger = logging.getLogger(__name__)

ROWS_PER_BATCH: Final = 100
COMMIT_ROWS: Final = 50
UNWRITTEN_ROWS_MAX: Final = 4 * COMMIT_ROWS
"""Rows that wait in memory while the disk refuses them; above it the oldest are dropped."""
EVICT_FRACTION: Final = 0.01
_ENVELOPE_BYTES: Final = 1024
_COMPRESSION_FIRST: Final = 4.0
"""By how much rows are thought to shrink before a batch has shown it: compressing too much is slow on a small device."""
_DROPPED_FIRST: Final = (Stream.WINDOWS, Stream.EVENTS)

Row = Window | Event


class BufferLimits(msgspec.Struct, frozen=True):
    """How much may wait. The file has at most `bytes_max` bytes (2 MiB if that is less), its log 512 KiB more."""

    rows_max: int = 50_000
    bytes_max: int = 64 << 20


class Buffer:
    """One device's buffer, for one life of its agent (`boot`). Not thread-safe.

    `quarantined` is the file that could not be read and was set aside for a new one; None if all is well.

    Raises:
        StorageError: The disk refused.
    """

    def __init__(self, path: FilePath, boot: str, limits: BufferLimits | None = None) -> None:
        self._path = path
        self._boot = boot
        self._limits = limits or BufferLimits()
        self._unwritten: list[tuple[Stream, int, bytes]] = []
        self._is_unsaved = False
        self._compression = _COMPRESSION_FIRST
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
        stream = Stream.WINDOWS if isinstance(row, Window) else Stream.EVENTS
        tally = self._tallies[stream]
        payload = encode_row(msgspec.structs.replace(row, seq=tally.produce()))
        if len(payload) > BATCH_RAW_BYTES_MAX - _ENVELOPE_BYTES:
            tally.drop_new(DropReason.TOO_LONG)
            self._is_unsaved = True
            logger.warning("a row of %d bytes in %s is too long to send", len(payload), stream.value)
            return tally.seq
        tally.hold(len(payload))
        self._unwritten.append((stream, tally.seq, payload))
        if len(self._unwritten) >= COMMIT_ROWS or self._is_over():
            self.flush()
        return tally.seq

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
        try:
            while found := self._oldest(stream, rows_max):
                boot, rows = found[0][1], _readable(found, stream, int(bytes_max * self._compression))
                while rows:
                    batch = self._batch(stream, boot, rows)
                    size = len(encode_batch(batch))
                    self._compression = sum(len(row[3]) for row in found[: len(rows)]) / size
                    if size <= bytes_max:
                        return batch
                    if len(rows) == 1:
                        break
                    rows = rows[: max(1, min(len(rows) - 1, len(rows) * bytes_max // size))]
                reason = DropReason.TOO_LONG if rows else DropReason.UNREADABLE
                logger.warning("a row in %s cannot be sent and is dropped: %s", stream.value, reason.value)
                self._drop(stream, 1, reason)
        except sqlite3.Error as error:
            self._survive(error)
        return None

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
            found = self._execute(stream, "SELECT id, boot, seq FROM $rows ORDER BY id LIMIT 1").fetchall()
            if not found or found[0][1] != ack.boot or ack.seq < found[0][2]:
                return 0
            # A ring: rows of one boot have consecutive ids and seqs, so no index on (boot, seq) is needed.
            most = ack.seq - found[0][2] + 1
            return self._remove(stream, min(most, self._tallies[stream].held), ack, None)
        except sqlite3.Error as error:
            self._survive(error)
            return 0

    def refuse(self, stream: Stream, boot: str, seq: int) -> bool:
        """Drop the oldest row if it is this one, which the fleet will never store; tell whether it was.

        Raises:
            StorageError: The disk refused; the row will be sent and refused again.
        """
        try:
            found = self._execute(stream, "SELECT boot, seq FROM $rows ORDER BY id LIMIT 1").fetchall()
            return found == [(boot, seq)] and self._drop(stream, 1, DropReason.REFUSED) == 1
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

    def _batch(self, stream: Stream, boot: str, rows: list[Row]) -> Batch:
        windows = tuple(row for row in rows if isinstance(row, Window))
        events = tuple(row for row in rows if isinstance(row, Event))
        return Batch(boot=boot, windows=windows, events=events, loss=self.loss(stream))

    def _oldest(self, stream: Stream, rows_max: int) -> list[tuple[int, str, int, bytes]]:
        return self._execute(
            stream, "SELECT id, boot, seq, payload FROM $rows ORDER BY id LIMIT ?", rows_max
        ).fetchall()

    def _write(self) -> None:
        with self._connection:
            for stream in Stream:
                rows = [(self._boot, seq, payload) for one, seq, payload in self._unwritten if one is stream]
                statement = "INSERT INTO $rows (boot, seq, payload) VALUES (?, ?, ?)"
                self._connection.executemany(sql(statement, stream), rows)
                self._tallies[stream].save(self._connection, stream, self._boot, unwritten=0)
        self._unwritten.clear()
        self._is_unsaved = False

    def _remove(self, stream: Stream, count: int, ack: Ack | None, reason: DropReason | None) -> int:
        """Delete at most `count` of the oldest rows: those of an ack, or any, which are dropped for a reason."""
        oldest = self._execute(
            stream, "SELECT id, boot, seq, length(payload) FROM $rows ORDER BY id LIMIT ?", count
        ).fetchall()
        if ack is not None:
            oldest = list(takewhile(lambda row: row[1] == ack.boot and row[2] <= ack.seq, oldest))
        if not oldest:
            return 0
        tally = replace(self._tallies[stream])
        tally.release(len(oldest), sum(row[3] for row in oldest), reason)
        with self._connection:
            self._execute(stream, "DELETE FROM $rows WHERE id <= ?", oldest[-1][0])
            tally.save(self._connection, stream, self._boot, len(self._unwritten_lengths(stream)))
        self._tallies[stream] = tally
        return len(oldest)

    def _drop(self, stream: Stream, count: int, reason: DropReason) -> int:
        return self._remove(stream, count, None, reason)

    def _unwritten_lengths(self, stream: Stream) -> list[int]:
        return [len(payload) for one, _, payload in self._unwritten if one is stream]

    def _evict(self) -> bool:
        """Give up a block of the oldest rows of the least important stream that has any on disk."""
        excess = sum(tally.held for tally in self._tallies.values()) - self._limits.rows_max
        block = max(1, int(self._limits.rows_max * EVICT_FRACTION), excess)
        return any(self._drop(stream, block, DropReason.EVICTED) for stream in _DROPPED_FIRST)

    def _make_room(self, error: sqlite3.Error) -> bool:
        try:
            return is_full(error) and self._evict()
        except sqlite3.Error:
            # A disk so full that not even the log of a deletion fits: the first error says it.
            self._undo()
            return False

    def _forget_oldest_unwritten(self) -> None:
        while len(self._unwritten) > UNWRITTEN_ROWS_MAX:
            index = next((i for i, row in enumerate(self._unwritten) if row[0] is Stream.WINDOWS), 0)
            stream, _, payload = self._unwritten.pop(index)
            self._tallies[stream].release(1, len(payload), DropReason.DISK_REFUSED)
            self._is_unsaved = True

    def _is_over(self) -> bool:
        tallies = self._tallies.values()
        return (
            sum(tally.held for tally in tallies) > self._limits.rows_max
            or sum(tally.held_bytes for tally in tallies) > self._limits.bytes_max
        )

    def _execute(self, stream: Stream, statement: str, *values: int) -> sqlite3.Cursor:
        return self._connection.execute(sql(statement, stream), values)

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
                tally.lose_file(self._unwritten_lengths(stream))
            self._is_unsaved = True
            with self._connection:
                for stream, tally in self._tallies.items():
                    unwritten = len(self._unwritten_lengths(stream))
                    tally.save(self._connection, stream, self._boot, unwritten)
        except (sqlite3.Error, OSError) as again:
            raise StorageError(
                f"cannot start telemetry over in {self._path}: {again}", hint="check the disk"
            ) from again
        logger.error("telemetry could not be read, was set aside as %s and starts over", self.quarantined)

    def _storage_error(self, error: sqlite3.Error) -> StorageError:
        hint = "free space on that file system" if is_full(error) else "check the disk"
        return StorageError(f"cannot keep telemetry in {self._path}: {error}", hint=hint)


def _readable(found: list[tuple[int, str, int, bytes]], stream: Stream, raw_bytes_max: int) -> list[Row]:
    """Decode the first rows of the oldest boot: one, or as many as fit, up to the first that cannot be read."""
    rows: list[Row] = []
    kind: type[Row] = Window if stream is Stream.WINDOWS else Event
    room = min(raw_bytes_max, BATCH_RAW_BYTES_MAX - _ENVELOPE_BYTES)
    for _, boot, seq, payload in found:
        room -= len(payload) + 1
        if boot != found[0][1] or (rows and room < 0):
            break
        try:
            row = msgspec.json.decode(payload, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, TypeError):
            break
        # Its ack would name another row: it could never be deleted, and all others would wait behind it.
        if row.seq != seq:
            break
        rows.append(row)
    return rows
