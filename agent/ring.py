"""A ring of rows on disk: what waits of one stream, oldest first, packed into blocks.

Decides the block: rows of one boot with consecutive numbers, packed as `block` says. The newest block stays
open and is written anew with every commit until it is full, for a commit writes whole pages whatever it changes; so a
row costs a share of a page, and what has waited for long lies as dense as it goes over the wire. Deleting is from the
front: a block that is deleted in part says how many of its last rows still count. Who deletes what and why is
`buffer`'s business; transactions are the caller's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeml.telemetry import Stream

from .block import pack_lines, unpack_lines
from .buffer_file import sql

BLOCK_ROWS: Final = 50
BLOCK_RAW_BYTES: Final = 64 << 10
"""Rows are not joined to a block beyond this; a longer row has a block of its own."""
BLOCK_OVERHEAD_BYTES: Final = 64
"""What SQLite needs for a block besides its payload, about."""


@dataclass(frozen=True, slots=True)
class StoredRow:
    """One row; `payload` is None if its block cannot be read any more."""

    boot: str
    seq: int
    payload: bytes | None


@dataclass(frozen=True, slots=True)
class Removal:
    """What to delete: every block before one, and the first rows of that one."""

    rows: int
    freed_bytes: int
    whole_up_to: int
    cut_id: int = 0
    cut_rows: int = 0


@dataclass(frozen=True, slots=True)
class OpenBlock:
    """The newest block, while rows may still join it."""

    id: int
    boot: str
    first_seq: int
    lines: tuple[bytes, ...]
    bytes_held: int

    def takes(self, boot: str, seq: int, payload: bytes) -> bool:
        """Tell whether this row may join."""
        return (
            self.boot == boot
            and seq == self.first_seq + len(self.lines)
            and len(self.lines) < BLOCK_ROWS
            and sum(map(len, self.lines)) + len(payload) <= BLOCK_RAW_BYTES
        )


@dataclass(frozen=True, slots=True)
class Written:
    """What a write came to, once its transaction is committed."""

    opened: OpenBlock | None
    added_bytes: int


class Ring:
    """The ring of one stream. The open block is known only to the life that writes it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._open: OpenBlock | None = None

    def write(self, connection: sqlite3.Connection, boot: str, rows: Sequence[tuple[int, bytes]]) -> Written:
        """Put rows behind the newest; call `settle` once that is committed.

        Raises:
            sqlite3.Error: The disk refused.
        """
        block, added_bytes, index = self._open, 0, 0
        while index < len(rows):
            seq, payload = rows[index]
            if block is None or not block.takes(boot, seq, payload):
                block = OpenBlock(0, boot, seq, (), 0)
            lines = list(block.lines)
            room = BLOCK_RAW_BYTES - sum(map(len, lines))
            while (
                index < len(rows)
                and len(lines) < BLOCK_ROWS
                and rows[index][0] == block.first_seq + len(lines)
            ):
                room -= len(rows[index][1])
                if lines and room < 0:
                    break
                lines.append(rows[index][1])
                index += 1
            before_bytes = block.bytes_held
            block = self._put(connection, block, lines)
            added_bytes += block.bytes_held - before_bytes
        return Written(block, added_bytes)

    def settle(self, opened: OpenBlock | None) -> None:
        """Hear that a write is committed."""
        self._open = opened

    def oldest(self, connection: sqlite3.Connection, rows_max: int) -> list[StoredRow]:
        """Read the oldest rows, of one boot.

        Raises:
            sqlite3.Error: The file cannot be read.
        """
        found: list[StoredRow] = []
        # Every block holds a row at least.
        cursor = self._execute(
            connection, "SELECT boot, first_seq, rows, payload FROM $rows ORDER BY id LIMIT ?", rows_max
        )
        for boot, first_seq, rows, payload in cursor:
            if len(found) >= rows_max or (found and found[0].boot != boot):
                break
            found += unpack(boot, first_seq, rows, payload)
        cursor.close()
        return found[:rows_max]

    def newest(
        self, connection: sqlite3.Connection, boot: str, after_seq: int, rows_max: int
    ) -> list[StoredRow]:
        """Read the newest rows of a boot whose number is above this one, oldest first.

        Raises:
            sqlite3.Error: The file cannot be read.
        """
        found: list[StoredRow] = []
        cursor = self._execute(
            connection, "SELECT boot, first_seq, rows, payload FROM $rows ORDER BY id DESC LIMIT ?", rows_max
        )
        for one, first_seq, rows, payload in cursor:
            if len(found) >= rows_max or one != boot or first_seq + rows - 1 <= after_seq:
                break
            found = unpack(boot, first_seq, rows, payload) + found
        cursor.close()
        return [row for row in found if row.seq > after_seq][-rows_max:]

    def front(self, connection: sqlite3.Connection) -> tuple[str, int, int] | None:
        """Boot and number of the oldest row, and how many are in its block; None if there is none.

        Raises:
            sqlite3.Error: The file cannot be read.
        """
        found = self._execute(
            connection, "SELECT boot, first_seq, rows FROM $rows ORDER BY id LIMIT 1"
        ).fetchone()
        return None if found is None else (found[0], found[1], found[2])

    def removal(self, connection: sqlite3.Connection, count: int, upto: tuple[str, int] | None) -> Removal:
        """Plan to delete at most `count` of the oldest rows; with `upto`, only those of a boot, up to a number.

        Raises:
            sqlite3.Error: The file cannot be read.
        """
        removal = Removal(0, 0, 0)
        cursor = self._execute(
            connection, "SELECT id, boot, first_seq, rows, length(payload) FROM $rows ORDER BY id"
        )
        for id_, boot, first_seq, rows, payload_bytes in cursor:
            going = min(rows, count - removal.rows)
            if upto is not None:
                going = min(going, upto[1] - first_seq + 1) if boot == upto[0] else 0
            if going <= 0:
                break
            if going < rows:
                removal = Removal(removal.rows + going, removal.freed_bytes, removal.whole_up_to, id_, going)
                break
            removal = Removal(
                removal.rows + rows, removal.freed_bytes + payload_bytes + BLOCK_OVERHEAD_BYTES, id_
            )
        cursor.close()
        return removal

    def remove(self, connection: sqlite3.Connection, removal: Removal) -> None:
        """Delete what was planned.

        Raises:
            sqlite3.Error: The disk refused.
        """
        self._execute(connection, "DELETE FROM $rows WHERE id <= ?", removal.whole_up_to)
        self._execute(
            connection,
            "UPDATE $rows SET first_seq = first_seq + ?, rows = rows - ? WHERE id = ?",
            removal.cut_rows,
            removal.cut_rows,
            removal.cut_id,
        )
        # Nothing joins a block whose front is gone: it is small, and will follow soon.
        if self._open is not None and self._open.id <= max(removal.whole_up_to, removal.cut_id):
            self._open = None

    def _put(self, connection: sqlite3.Connection, block: OpenBlock, lines: list[bytes]) -> OpenBlock:
        payload = pack_lines(lines)
        if block.id:
            self._execute(
                connection,
                "UPDATE $rows SET rows = ?, payload = ? WHERE id = ?",
                len(lines),
                payload,
                block.id,
            )
            id_ = block.id
        else:
            cursor = self._execute(
                connection,
                "INSERT INTO $rows (boot, first_seq, rows, payload) VALUES (?, ?, ?, ?)",
                block.boot,
                block.first_seq,
                len(lines),
                payload,
            )
            id_ = cursor.lastrowid or 0
        held = len(payload) + BLOCK_OVERHEAD_BYTES
        return OpenBlock(id_, block.boot, block.first_seq, tuple(lines), held)

    def _execute(
        self, connection: sqlite3.Connection, statement: str, *values: int | str | bytes
    ) -> sqlite3.Cursor:
        return connection.execute(sql(statement, self._stream), values)


def unpack(boot: str, first_seq: int, rows: int, payload: object) -> list[StoredRow]:
    """Read a block: its last `rows` rows, the first of which has the number `first_seq`."""
    lines = unpack_lines(payload)
    if lines is None or len(lines) < rows:
        return [StoredRow(boot, first_seq + index, None) for index in range(rows)]
    return [StoredRow(boot, first_seq + i, line) for i, line in enumerate(lines[len(lines) - rows :])]
