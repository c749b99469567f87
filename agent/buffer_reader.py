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
from edgeml.telemetry import Drops, Event, Stream, Window

from .buffer_file import SCHEMA_VERSION, damage_told, is_corrupt, sql
from .config import LOCK
from .tally import read_tally

if TYPE_CHECKING:
    import sqlite_utils

NAME: Final = "telemetry.db"
ROWS_PER_READ: Final = 200
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


class StreamView(msgspec.Struct, frozen=True):
    """The account of one stream: produced = acknowledged + dropped + held, as the file has it."""

    stream: Stream
    produced: int
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
class StoredRow:
    """One row as it is stored; `row` is None if it cannot be read any more."""

    stream: Stream
    boot: str
    seq: int
    row: Window | Event | None


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
    if not {"counts", *(stream.value for stream in Stream)} <= names:
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
    return int(database.table(stream.value).count)


def stored_rows(database: sqlite_utils.Database, stream: Stream) -> Iterator[StoredRow]:
    """Yield the rows that are there when it begins and still there when their turn comes, oldest first.

    Raises:
        sqlite3.Error: They cannot be read.
    """
    table = database.table(stream.value)
    [newest] = database.query(sql("SELECT coalesce(max(id), 0) AS id FROM $rows", stream))
    last = -1
    while True:
        # A list: the read ends here, not when the caller has dealt with the rows.
        rows = list(
            table.rows_where("id > ? AND id <= ?", [last, newest["id"]], order_by="id", limit=ROWS_PER_READ)
        )
        if not rows:
            return
        last = rows[-1]["id"]
        for row in rows:
            yield StoredRow(stream, row["boot"], row["seq"], _decode(stream, row["payload"]))


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
            "SELECT boot, count(*) AS rows, min(seq) AS first_seq, max(seq) AS last_seq, min(id) AS first_id, "
            "max(id) AS last_id, sum(length(payload)) AS payload_bytes FROM $rows GROUP BY boot ORDER BY min(id)",
            stream,
        )
    )
    boots = tuple(
        Boot(
            boot=one["boot"],
            rows=one["rows"],
            first_seq=one["first_seq"],
            last_seq=one["last_seq"],
            oldest_ms=_time_ms(database, stream, one["first_id"]),
            newest_ms=_time_ms(database, stream, one["last_id"]),
            payload_bytes=one["payload_bytes"],
        )
        for one in list(found)
    )
    return StreamView(
        stream=stream,
        produced=tally.produced,
        acknowledged=tally.acknowledged,
        dropped=tally.drops.total,
        held=tally.held,
        reasons=tally.drops,
        boots=boots,
    )


def _time_ms(database: sqlite_utils.Database, stream: Stream, row_id: int) -> int | None:
    row = _decode(stream, database.table(stream.value).get(row_id)["payload"])
    if row is None:
        return None
    return row.started_at_ms if isinstance(row, Window) else row.at_ms


def _decode(stream: Stream, payload: bytes) -> Window | Event | None:
    kind: type[Window | Event] = Window if stream is Stream.WINDOWS else Event
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, TypeError):
        return None
