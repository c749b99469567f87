"""The tally: what became of the rows of one stream.

Decides the account, produced = acknowledged + dropped (by reason) + held, how it is kept beside the rows in the same
transaction, and what is believed when file and account differ: the rows that are there, the counts that add up. When
a row is dropped, and why, is the buffer's business.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from edgeml.telemetry import NO_DROPS, DropReason, Drops, Loss, Stream

from .buffer_file import sql

ROW_OVERHEAD_BYTES: Final = 32
"""What SQLite needs for a row besides its payload, about."""


@dataclass(slots=True)
class Tally:
    """What is known of one stream; `held` counts rows on disk and in memory, `seq` is the last number given out."""

    produced: int = 0
    acknowledged: int = 0
    drops: Drops = NO_DROPS
    seq: int = 0
    held: int = 0
    held_bytes: int = 0

    @property
    def loss(self) -> Loss:
        """The account as it is sent."""
        return Loss(self.produced, self.acknowledged, self.drops.total, self.drops)

    def produce(self) -> int:
        """Count a new row and return its number."""
        self.seq += 1
        self.produced += 1
        return self.seq

    def hold(self, payload_bytes: int) -> None:
        """Count a row that waits from now on."""
        self.held += 1
        self.held_bytes += payload_bytes + ROW_OVERHEAD_BYTES

    def drop_new(self, reason: DropReason) -> None:
        """Count a row that was produced and never held."""
        self.drops = self.drops.plus(reason, 1)

    def release(self, rows: int, payload_bytes: int, reason: DropReason | None) -> None:
        """Count held rows as dropped for a reason, or as acknowledged if there is none."""
        self.held -= rows
        self.held_bytes -= payload_bytes + rows * ROW_OVERHEAD_BYTES
        if reason is None:
            self.acknowledged += rows
        else:
            self.drops = self.drops.plus(reason, rows)

    def lose_file(self, unwritten: list[int]) -> None:
        """Count all that was in the file as dropped; what stays are rows in memory, of these payload bytes."""
        self.drops = self.drops.plus(DropReason.STARTED_OVER, self.held - len(unwritten))
        self.held = len(unwritten)
        self.held_bytes = sum(unwritten) + len(unwritten) * ROW_OVERHEAD_BYTES

    def save(self, connection: sqlite3.Connection, stream: Stream, boot: str, unwritten: int) -> None:
        """Write the account in the caller's transaction, without the rows that are only in memory.

        Raises:
            sqlite3.Error: The disk refused.
        """
        connection.execute(
            "UPDATE counts SET produced = ?, acknowledged = ?, dropped = ?, boot = ?, seq = ? WHERE stream = ?",
            (
                self.produced - unwritten,
                self.acknowledged,
                self.drops.total,
                boot,
                self.seq,
                stream.value,
            ),
        )
        # All anew: what a newer agent counted for a reason of its own is in `unexplained` by now.
        connection.execute("DELETE FROM drops WHERE stream = ?", (stream.value,))
        connection.executemany(
            "INSERT INTO drops VALUES (?, ?, ?)",
            [
                (stream.value, reason.value, self.drops.count(reason))
                for reason in DropReason
                if self.drops.count(reason)
            ],
        )


def read_tally(connection: sqlite3.Connection, stream: Stream, boot: str) -> Tally:
    """Read the account of a file and make it add up; `seq` goes on only in the same boot.

    Raises:
        sqlite3.Error: It cannot be read.
    """
    produced, acknowledged, dropped, last_boot, seq = connection.execute(
        "SELECT produced, acknowledged, dropped, boot, seq FROM counts WHERE stream = ?", (stream.value,)
    ).fetchone()
    held, payload_bytes = connection.execute(
        sql("SELECT count(*), coalesce(sum(length(payload)), 0) FROM $rows", stream)
    ).fetchone()
    drops = _read_drops(connection, stream)
    # Rows deleted by hand were never counted as dropped; those of an agent without reasons, only in `dropped`.
    missing = produced - acknowledged - held
    drops = drops.plus(DropReason.UNEXPLAINED, max(0, dropped - drops.total, missing - drops.total))
    return Tally(
        produced=acknowledged + drops.total + held,
        acknowledged=acknowledged,
        drops=drops,
        seq=seq if last_boot == boot else 0,
        held=held,
        held_bytes=payload_bytes + held * ROW_OVERHEAD_BYTES,
    )


def _read_drops(connection: sqlite3.Connection, stream: Stream) -> Drops:
    # A file that no agent with reasons has opened yet has no such table; only a reader that may not write sees that.
    if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'drops'").fetchone():
        return NO_DROPS
    rows = connection.execute(
        "SELECT reason, dropped FROM drops WHERE stream = ?", (stream.value,)
    ).fetchall()
    known = {reason.value for reason in DropReason}
    drops = NO_DROPS
    for name, count in rows:
        # A reason that only a newer agent knew still counts.
        drops = drops.plus(DropReason(name) if name in known else DropReason.UNEXPLAINED, count)
    return drops
