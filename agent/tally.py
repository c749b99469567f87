"""The tally: what became of the rows of one stream.

Decides the account, produced = acknowledged + dropped (by reason) + held, how it is kept beside the rows in the same
transaction, and what is believed when file and account differ: the rows that are there, the counts that add up. Beside
it stands how many rows were sent at least once, and up to which: a row that is sent again counts once. When a row is
dropped, and why, is the buffer's business.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeml.telemetry import NO_DROPS, DropReason, Drops, Loss, Stream

from .buffer_file import sql
from .ring import BLOCK_OVERHEAD_BYTES

_KNOWN: Final = ", ".join(f"'{reason.value}'" for reason in DropReason)


@dataclass(slots=True)
class Tally:
    """What is known of one stream.

    `held` counts rows on disk and in memory, `held_bytes` what those on disk take. `seq` is the last number given out,
    and (`sent_boot`, `sent_seq`) the last row that was sent.
    """

    produced: int = 0
    acknowledged: int = 0
    drops: Drops = NO_DROPS
    seq: int = 0
    held: int = 0
    held_bytes: int = 0
    sent: int = 0
    sent_boot: str = ""
    sent_seq: int = 0

    @property
    def loss(self) -> Loss:
        """The account as it is sent."""
        return Loss(self.produced, self.acknowledged, self.drops.total, self.drops, self.sent)

    def produce(self) -> int:
        """Count a new row and return its number."""
        self.seq += 1
        self.produced += 1
        return self.seq

    def hold(self) -> None:
        """Count a row that waits from now on."""
        self.held += 1

    def is_sent(self, boot: str, seq: int) -> bool:
        """Tell whether a row that waits was sent before."""
        return boot == self.sent_boot and seq <= self.sent_seq

    def send(self, boot: str, seqs: Sequence[int]) -> None:
        """Count rows that are handed to the link; rows go in order, so those up to the last one sent went before."""
        self.sent += sum(not self.is_sent(boot, seq) for seq in seqs)
        if not self.is_sent(boot, seqs[-1]):
            self.sent_boot, self.sent_seq = boot, seqs[-1]

    def drop_new(self, reason: DropReason) -> None:
        """Count a row that was produced and never held."""
        self.drops = self.drops.plus(reason, 1)

    def release(self, rows: int, freed_bytes: int, reason: DropReason | None) -> None:
        """Count held rows as dropped for a reason, or as acknowledged if there is none."""
        self.held -= rows
        self.held_bytes -= freed_bytes
        if reason is None:
            self.acknowledged += rows
        else:
            self.drops = self.drops.plus(reason, rows)

    def lose_file(self, unwritten: int) -> None:
        """Count all that was in the file as dropped; what stays are that many rows in memory."""
        self.drops = self.drops.plus(DropReason.STARTED_OVER, self.held - unwritten)
        self.held = unwritten
        self.held_bytes = 0

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
        connection.execute(
            # What has not changed is not written: each of these tables is a page of the log.
            "INSERT INTO sendings VALUES (?, ?, ?, ?) ON CONFLICT (stream) DO UPDATE SET sent = excluded.sent, "
            "boot = excluded.boot, seq = excluded.seq WHERE sent <> excluded.sent OR seq <> excluded.seq",
            (stream.value, self.sent, self.sent_boot, self.sent_seq),
        )
        # What a newer agent counted for a reason of its own is in `unexplained` by now.
        connection.execute(
            f"DELETE FROM drops WHERE stream = ? AND reason NOT IN ({_KNOWN})",  # noqa: S608 - names of our own
            (stream.value,),
        )
        connection.executemany(
            "INSERT INTO drops VALUES (?, ?, ?) ON CONFLICT (stream, reason) DO UPDATE SET dropped = excluded.dropped "
            "WHERE dropped <> excluded.dropped",
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
    held, held_bytes = connection.execute(
        sql(
            "SELECT coalesce(sum(rows), 0), coalesce(sum(length(payload) + ?), 0) FROM $rows",
            stream,
        ),
        (BLOCK_OVERHEAD_BYTES,),
    ).fetchone()
    sent, sent_boot, sent_seq = _read_sendings(connection, stream)
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
        held_bytes=held_bytes,
        sent=sent,
        sent_boot=sent_boot,
        sent_seq=sent_seq,
    )


def _read_sendings(connection: sqlite3.Connection, stream: Stream) -> tuple[int, str, int]:
    found = connection.execute(
        "SELECT sent, boot, seq FROM sendings WHERE stream = ?", (stream.value,)
    ).fetchone()
    return (0, "", 0) if found is None else (found[0], found[1], found[2])


def _read_drops(connection: sqlite3.Connection, stream: Stream) -> Drops:
    rows = connection.execute(
        "SELECT reason, dropped FROM drops WHERE stream = ?", (stream.value,)
    ).fetchall()
    known = {reason.value for reason in DropReason}
    drops = NO_DROPS
    for name, count in rows:
        # A reason that only a newer agent knew still counts.
        drops = drops.plus(DropReason(name) if name in known else DropReason.UNEXPLAINED, count)
    return drops
