"""Looks into a telemetry buffer, also while its agent runs.

Decides what is shown and how the file is read: through a connection that cannot write, and in short reads, for a reader
that lingers would keep the agent's log from being emptied. The shape of the file is `buffer_file`'s, the account
`tally`'s. Needs sqlite-utils, the [tools] extra; a device that only runs its agent has no use for either.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edgeml.errors import ConfigError, EdgemlError, IncompatibleError, StateError, StorageError
from edgeml.lock import is_held
from edgeml.telemetry import ROW_TYPES, Drops, Row, Stream, time_ms

from .buffer_file import SCHEMA_VERSION, damage_told, is_corrupt, sql
from .config import LOCK
from .ring import unpack
from .tally import read_tally

if TYPE_CHECKING:
    import sqlite_utils

NAME: Final = "telemetry.db"
BLOCKS_PER_READ: Final = 20
_BUSY_S: Final = 5.0


class Boot(msgspec.Struct, frozen=True):
    """Rows that one life of the agent left in one stream."""

    boot: str
    rows: int
    first_seq: int
    last_seq: int
    oldest_ms: int | None
    """Time of the first row that was written, Unix ms; None if it cannot be read."""
    newest_ms: int | None
    """Time of the last one."""
    payload_bytes: int
    """Size of the blocks they are packed in."""


class StreamView(msgspec.Struct, frozen=True):
    """The account of one stream: produced = acknowledged + dropped + held, as the file has it."""

    stream: Stream
    produced: int
    sent: int
    """Rows that were handed to the link at least once."""
    acknowledged: int
    dropped: int
    held: int
    reasons: Drops
    boots: tuple[Boot, ...]
    """Oldest first."""


class BufferView(msgspec.Struct, frozen=True):
    """All that a buffer holds, at one moment."""

    path: str
    agent_running: bool
    file_bytes: int
    """Size of the file and its log."""
    streams: tuple[StreamView, ...]


@dataclass(frozen=True, slots=True)
class ReadRow:
    """One row; `row` is None if it cannot be read any more."""

    stream: Stream
    boot: str
    seq: int
    row: Row | None


def sqlite_utils_library() -> Any:
    """Import sqlite-utils.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import sqlite_utils
    except ImportError as error:
        raise ConfigError(
            "'edgeml agent buffer' needs sqlite-utils, not installed here",
            hint="pip install 'edgeml-fleet[tools]'",
        ) from error
    return sqlite_utils


def find_buffer(storage: Path) -> Path:
    """Return the buffer's file.

    Raises:
        ConfigError: There is none.
    """
    path = storage / NAME
    if not path.is_file():
        raise ConfigError(f"no telemetry at {path}", hint="an agent that has run on that storage leaves it")
    return path


def file_bytes(path: Path) -> int:
    """Size of the file and its log."""
    log = Path(f"{path}-wal")
    return path.stat().st_size + (log.stat().st_size if log.exists() else 0)


@contextmanager
def reading(path: Path) -> Iterator[sqlite_utils.Database]:
    """Open a buffer for reading only.

    Raises:
        StateError: It is damaged, or no buffer.
        IncompatibleError: It is of a newer edgeml.
        StorageError: The disk refused.
    """
    library = sqlite_utils_library()
    connection: sqlite3.Connection | None = None
    try:
        with damage_told():
            connection = _connect(path)
            check_version(connection, path)
        yield library.Database(connection, execute_plugins=False)
    except sqlite3.Error as error:
        raise readable_error(error, path) from error
    finally:
        if connection is not None:
            connection.close()


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file whose shape is not known here.

    Raises:
        StateError: It is no buffer.
        IncompatibleError: It is of a newer edgeml.
        sqlite3.Error: It cannot be read.
    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise IncompatibleError(
            f"telemetry in {path} has version {version}; this edgeml reads {SCHEMA_VERSION}",
            hint="update edgeml",
        )
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if version == 1 and "windows" in names:
        raise IncompatibleError(
            f"telemetry in {path} is as an older agent left it",
            hint="an agent of this version turns it into its own when it starts",
        )
    if not {"counts", *(sql("$rows", stream) for stream in Stream)} <= names:
        raise StateError(f"{path} holds no telemetry", hint="an agent makes it when it starts")


def readable_error(error: sqlite3.Error, path: Path) -> EdgemlError:
    """Say what SQLite refused, with what to do."""
    if is_corrupt(error):
        return StateError(
            f"telemetry in {path} cannot be read: {error}",
            hint="the agent sets a broken file aside when it starts",
        )
    return StorageError(f"cannot read telemetry in {path}: {error}", hint="check the disk")


def look(storage: Path) -> BufferView:
    """Read the account and what is held, in one short transaction.

    Raises:
        EdgemlError: As `find_buffer` and `reading`.
    """
    path = find_buffer(storage)
    with reading(path) as database:
        # One moment for all counts, else a row that is acknowledged meanwhile would be missing from both sides.
        database.conn.execute("BEGIN")
        streams = tuple(_view(database, stream) for stream in Stream)
        database.conn.rollback()
    return BufferView(str(path), is_held(storage / LOCK), file_bytes(path), streams)


def count_rows(database: sqlite_utils.Database, stream: Stream) -> int:
    """Rows of a stream in the file."""
    [total] = database.query(sql("SELECT coalesce(sum(rows), 0) AS rows FROM $rows", stream))
    return int(total["rows"])


def stored_rows(database: sqlite_utils.Database, stream: Stream) -> Iterator[ReadRow]:
    """Yield the rows that are there when it begins and still there when their turn comes, oldest first.

    Raises:
        sqlite3.Error: They cannot be read.
    """
    table = database.table(sql("$rows", stream))
    [newest] = database.query(sql("SELECT coalesce(max(id), 0) AS id FROM $rows", stream))
    last = -1
    while True:
        # A list: the read ends here, not when the caller has dealt with the rows.
        blocks = list(
            table.rows_where("id > ? AND id <= ?", [last, newest["id"]], order_by="id", limit=BLOCKS_PER_READ)
        )
        if not blocks:
            return
        last = blocks[-1]["id"]
        for block in blocks:
            for stored in unpack(block["boot"], block["first_seq"], block["rows"], block["payload"]):
                yield ReadRow(stream, stored.boot, stored.seq, _decode(stream, stored.payload))


def _connect(path: Path) -> sqlite3.Connection:
    address = path.resolve().as_uri()
    connection = sqlite3.connect(f"{address}?mode=ro", uri=True, timeout=_BUSY_S)
    try:
        connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        if Path(f"{path}-wal").exists():
            raise
        # A card mounted read-only: SQLite cannot make its shared memory there, and nobody can write either.
        connection = sqlite3.connect(f"{address}?mode=ro&immutable=1", uri=True, timeout=_BUSY_S)
    return connection


def _view(database: sqlite_utils.Database, stream: Stream) -> StreamView:
    tally = read_tally(database.conn, stream, boot="")
    found = database.query(
        sql(
            "SELECT boot, sum(rows) AS rows, min(first_seq) AS first_seq, max(first_seq + rows - 1) AS last_seq, "
            "min(id) AS first_id, max(id) AS last_id, sum(length(payload)) AS payload_bytes FROM $rows "
            "GROUP BY boot ORDER BY min(id)",
            stream,
        )
    )
    boots = tuple(
        Boot(
            boot=one["boot"],
            rows=one["rows"],
            first_seq=one["first_seq"],
            last_seq=one["last_seq"],
            oldest_ms=_time_ms(database, stream, one["first_id"], 0),
            newest_ms=_time_ms(database, stream, one["last_id"], -1),
            payload_bytes=one["payload_bytes"],
        )
        for one in list(found)
    )
    return StreamView(
        stream=stream,
        produced=tally.produced,
        sent=tally.sent,
        acknowledged=tally.acknowledged,
        dropped=tally.drops.total,
        held=tally.held,
        reasons=tally.drops,
        boots=boots,
    )


def _time_ms(database: sqlite_utils.Database, stream: Stream, block_id: int, index: int) -> int | None:
    block = database.table(sql("$rows", stream)).get(block_id)
    stored = unpack(block["boot"], block["first_seq"], block["rows"], block["payload"])[index]
    row = _decode(stream, stored.payload)
    return None if row is None else time_ms(row)


def _decode(stream: Stream, payload: bytes | None) -> Row | None:
    if payload is None:
        return None
    try:
        return msgspec.json.decode(payload, type=ROW_TYPES[stream])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
