"""The telemetry buffer: rows that wait on disk until the fleet has stored them.

Decides the shape (one table a stream, rows in order of their rowid, no secondary index), what goes first when it is
full (the oldest windows, then the oldest events), and the exact counts of what was produced, acknowledged and dropped.
A file of its own, WAL with synchronous=NORMAL: a kill loses at most the rows since the last commit (`COMMIT_ROWS` or the
caller's `flush`), a power cut at most those since the last checkpoint; a loss is a gap that the fleet sees in `seq`.
When to send what is `uplink`'s business.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from edgeml.errors import StorageError
from edgeml.telemetry import BATCH_BYTES_MAX, Batch, Event, Loss, Stream, Window, encode_batch, encode_row
from edgeml.twin import Ack

ROWS_PER_BATCH: Final = 100
COMMIT_ROWS: Final = 50
EVICT_FRACTION: Final = 0.01
PAGE_BYTES: Final = 4096
_TABLES: Final = {Stream.WINDOWS: "windows", Stream.EVENTS: "events"}
_KINDS: Final = {Stream.WINDOWS: Window, Stream.EVENTS: Event}


class BufferLimits(msgspec.Struct, frozen=True):
    """How much may wait."""

    rows_max: int = 50_000
    bytes_max: int = 64 << 20


class Buffer:
    """One device's buffer, for one life of its agent (`boot`).

    Raises:
        StorageError: The disk refused.
    """

    def __init__(self, path: Path, boot: str, limits: BufferLimits | None = None) -> None:
        self._path = path
        self._boot = boot
        self._limits = limits or BufferLimits()
        self.quarantined: Path | None = None
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
                raise StorageError(f"no space for {path}", hint="free space on that file system") from error
            self._quarantine()
            self._open()
        self._seq = dict.fromkeys(Stream, 0)
        self._uncommitted = 0

    def append(self, row: Window | Event) -> int:
        """Keep a row; return the seq it was given.

        Raises:
            StorageError: The disk refuses even after the oldest rows were given up.
        """
        stream = Stream.WINDOWS if isinstance(row, Window) else Stream.EVENTS
        seq = self._seq[stream] + 1
        payload = encode_row(msgspec.structs.replace(row, seq=seq))
        for attempt in range(2):
            try:
                self._connection.execute(f"INSERT INTO {_TABLES[stream]} (boot, seq, payload) VALUES (?, ?, ?)", (self._boot, seq, payload))
                self._count(stream, produced=1)
                break
            except sqlite3.OperationalError as error:
                self._connection.rollback()
                if attempt or not self._evict():
                    raise StorageError(f"cannot keep telemetry in {self._path}: {error}", hint="free space on that file system") from error
        self._seq[stream] = seq
        self._uncommitted += 1
        if self._held > self._limits.rows_max:
            self._evict()
        if self._uncommitted >= COMMIT_ROWS:
            self.flush()
        return seq

    def flush(self) -> None:
        """Make what was appended durable against a kill.

        Raises:
            StorageError: The disk refused.
        """
        with self._mapped_errors():
            self._connection.commit()
        self._uncommitted = 0

    def pending(self, stream: Stream) -> Batch | None:
        """Return the oldest rows of one boot as a batch that fits the wire; None if nothing waits."""
        with self._mapped_errors():
            first = self._connection.execute(f"SELECT boot FROM {_TABLES[stream]} ORDER BY id LIMIT 1").fetchone()
            if first is None:
                return None
            rows = self._connection.execute(
                f"SELECT payload FROM {_TABLES[stream]} WHERE boot = ? ORDER BY id LIMIT ?", (first[0], ROWS_PER_BATCH)
            ).fetchall()
        decoded = [msgspec.json.decode(row[0], type=_KINDS[stream]) for row in rows]
        while True:
            batch = self._batch(stream, first[0], decoded)
            if len(encode_batch(batch)) <= BATCH_BYTES_MAX:
                return batch
            if len(decoded) == 1:
                # One row that no batch can carry: give it up, counted, rather than stop for ever.
                self._drop_first(stream)
                return self.pending(stream)
            decoded = decoded[: len(decoded) // 2]

    def acknowledge(self, ack: Ack) -> int:
        """Delete what the fleet has stored; return how many rows. Late, repeated and foreign acks change nothing."""
        try:
            stream = Stream(ack.stream)
        except ValueError:
            return 0
        with self._mapped_errors():
            cursor = self._connection.execute(f"DELETE FROM {_TABLES[stream]} WHERE boot = ? AND seq <= ?", (ack.boot, ack.seq))
            removed = cursor.rowcount
            if removed:
                self._count(stream, acknowledged=removed)
                self._held -= removed
            self._connection.commit()
        self._uncommitted = 0
        return removed

    def loss(self, stream: Stream) -> Loss:
        """Exact counts since the buffer was created."""
        row = self._connection.execute("SELECT produced, acknowledged, dropped FROM counts WHERE stream = ?", (stream.value,)).fetchone()
        return Loss(*row)

    def held(self, stream: Stream) -> int:
        """Rows that wait."""
        loss = self.loss(stream)
        return loss.produced - loss.acknowledged - loss.dropped

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._connection.close()

    def _batch(self, stream: Stream, boot: str, rows: list[Window | Event]) -> Batch:
        if stream is Stream.WINDOWS:
            return Batch(boot=boot, windows=tuple(row for row in rows if isinstance(row, Window)), loss=self.loss(stream))
        return Batch(boot=boot, events=tuple(row for row in rows if isinstance(row, Event)), loss=self.loss(stream))

    def _count(self, stream: Stream, produced: int = 0, acknowledged: int = 0, dropped: int = 0) -> None:
        self._connection.execute(
            "UPDATE counts SET produced = produced + ?, acknowledged = acknowledged + ?, dropped = dropped + ? WHERE stream = ?",
            (produced, acknowledged, dropped, stream.value),
        )
        self._held += produced

    def _evict(self) -> bool:
        """Give up a block of the oldest rows of the least important stream that has any."""
        block = max(1, int(self._limits.rows_max * EVICT_FRACTION))
        for stream, table in _TABLES.items():
            cursor = self._connection.execute(f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} ORDER BY id LIMIT ?)", (block,))
            if cursor.rowcount:
                self._count(stream, dropped=cursor.rowcount)
                self._held -= cursor.rowcount
                self._connection.commit()
                return True
        return False

    def _drop_first(self, stream: Stream) -> None:
        table = _TABLES[stream]
        self._connection.execute(f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} ORDER BY id LIMIT 1)")
        self._count(stream, dropped=1)
        self._held -= 1
        self._connection.commit()

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        self._connection = sqlite3.connect(self._path, check_same_thread=False)
        self._connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute(f"PRAGMA max_page_count = {max(64, self._limits.bytes_max // PAGE_BYTES)}")
        self._connection.execute("PRAGMA quick_check").fetchone()
        for table in _TABLES.values():
            self._connection.execute(
                f"CREATE TABLE IF NOT EXISTS {table} (id INTEGER PRIMARY KEY, boot TEXT NOT NULL, seq INTEGER NOT NULL, payload BLOB NOT NULL)"
            )
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS counts (stream TEXT PRIMARY KEY, produced INTEGER, acknowledged INTEGER, dropped INTEGER)"
        )
        for stream in Stream:
            self._connection.execute("INSERT OR IGNORE INTO counts VALUES (?, 0, 0, 0)", (stream.value,))
        self._connection.commit()
        self._held = sum(self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in _TABLES.values())

    def _quarantine(self) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()
        self.quarantined = self._path.with_suffix(".corrupt")
        self._path.replace(self.quarantined)
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StorageError(f"telemetry in {self._path}: {error}", hint="check the disk") from error
