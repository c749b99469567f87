"""The file of the telemetry buffer: how it is opened, when it is unreadable, and what becomes of it then.

Decides SQLite's settings, the tables and their version. A file of version 1 is turned into this version, in one
transaction. One that is damaged, or of a version not known here, is set aside as `*.corrupt` (the last one is kept) and
a new one begun: telemetry never stops an agent from starting. What is in the tables is `ring`'s and `tally`'s business.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from edgeml.telemetry import Stream

FilePath = Path | Literal[":memory:"]

PAGE_BYTES: Final = 4096
"""The unit of flash, and SQLite's default."""
PAGES_MIN: Final = 512
LOG_PAGES: Final = 64
"""Pages of the log after which they are synced into the file: what a power cut may take."""
SCHEMA_VERSION: Final = 2
"""1 kept rows one by one; such a file is read into blocks when it is opened."""
_CORRUPT: Final = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_TOOBIG,
    # Our statements never change and are understood by every file that is ours: this one is not what it was.
    sqlite3.SQLITE_ERROR,
}


@dataclass(frozen=True, slots=True)
class Opened:
    """An open file; `quarantined` is the one that was set aside for it."""

    connection: sqlite3.Connection
    quarantined: Path | None


def open_file(path: FilePath, bytes_max: int) -> Opened:
    """Open or create the file, mode 0600.

    Raises:
        sqlite3.Error: It cannot be opened for another reason than being unreadable.
        OSError: The directory or the file cannot be made.
    """
    connection = _connect(path, bytes_max)
    try:
        with damage_told():
            is_sound = _is_sound(connection)
        if is_sound:
            _create_tables(connection)
            return Opened(connection, None)
    except sqlite3.Error as error:
        connection.close()
        if not is_corrupt(error):
            raise
    return start_over(connection, path, bytes_max)


def start_over(connection: sqlite3.Connection, path: FilePath, bytes_max: int) -> Opened:
    """Close an unreadable file, set it aside and begin a new one.

    Raises:
        sqlite3.Error: The new one cannot be opened.
        OSError: The old one cannot be renamed.
    """
    connection.close()
    quarantined = None
    if isinstance(path, Path):
        quarantined = path.with_suffix(".corrupt")
        path.replace(quarantined)
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
    connection = _connect(path, bytes_max)
    _create_tables(connection)
    return Opened(connection, quarantined)


def sql(statement: str, stream: Stream) -> str:
    """Put the name of a stream's table of blocks in the place of `$rows`."""
    return statement.replace("$rows", f"{stream.value}_blocks")


def is_full(error: sqlite3.Error) -> bool:
    """Tell whether the disk, or the file's own limit, is reached."""
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def is_corrupt(error: sqlite3.Error) -> bool:
    """Tell whether the file is unreadable, whatever the disk does."""
    # Extended codes carry the primary one in their low byte.
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        # Python's own: text in the file that is no text.
        return isinstance(error, UnreadableError | sqlite3.OperationalError)
    return (code & 0xFF) in _CORRUPT


class UnreadableError(sqlite3.DatabaseError):
    """The file is damaged, and SQLite does not say so by its code."""


@contextmanager
def damage_told() -> Iterator[None]:
    """Turn what Python makes of a damaged schema into the error that it is.

    Raises:
        UnreadableError: SQLite's message quotes bytes of the file, and they are no text.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise UnreadableError(f"the schema is no text: {error}") from error


def _connect(path: FilePath, bytes_max: int) -> sqlite3.Connection:
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        with damage_told():
            _set_up(connection, bytes_max)
    except sqlite3.Error as error:
        if not is_corrupt(error):
            connection.close()
            raise
    return connection


def _set_up(connection: sqlite3.Connection, bytes_max: int) -> None:
    for setting in (
        f"page_size = {PAGE_BYTES}",
        "journal_mode = WAL",
        "synchronous = NORMAL",
        f"wal_autocheckpoint = {LOG_PAGES}",
        f"journal_size_limit = {2 * LOG_PAGES * PAGE_BYTES}",
        # A backstop: the buffer evicts by its own count before.
        f"max_page_count = {max(PAGES_MIN, bytes_max // PAGE_BYTES)}",
    ):
        connection.execute(f"PRAGMA {setting}")


def _is_sound(connection: sqlite3.Connection) -> bool:
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if not tables:
        return True
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    checked = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    return bool(version in {1, SCHEMA_VERSION} and checked == "ok")


def _create_tables(connection: sqlite3.Connection) -> None:
    with connection:
        # Python begins a transaction by itself only for rows. A file with half of its tables would be set aside.
        connection.execute("BEGIN IMMEDIATE")
        for stream in Stream:
            connection.execute(
                sql(
                    "CREATE TABLE IF NOT EXISTS $rows (id INTEGER PRIMARY KEY, boot TEXT NOT NULL, "
                    "first_seq INTEGER NOT NULL, rows INTEGER NOT NULL, payload BLOB NOT NULL)",
                    stream,
                )
            )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS counts (stream TEXT PRIMARY KEY, produced INTEGER NOT NULL, "
            "acknowledged INTEGER NOT NULL, dropped INTEGER NOT NULL, boot TEXT NOT NULL, seq INTEGER NOT NULL)"
        )
        connection.executemany(
            "INSERT OR IGNORE INTO counts VALUES (?, 0, 0, 0, '', 0)", [(one.value,) for one in Stream]
        )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS drops (stream TEXT NOT NULL, reason TEXT NOT NULL, dropped INTEGER NOT NULL, "
            "PRIMARY KEY (stream, reason)) WITHOUT ROWID"
        )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS sendings (stream TEXT PRIMARY KEY, sent INTEGER NOT NULL, boot TEXT NOT NULL, "
            "seq INTEGER NOT NULL) WITHOUT ROWID"
        )
        _pack_version_1(connection)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _pack_version_1(connection: sqlite3.Connection) -> None:
    """Read a file that kept rows one by one: each becomes a block. It is sent, or dropped, like any other."""
    for (name,) in connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name IN ('windows', 'events')"
    ).fetchall():
        connection.create_function("pack_row", 1, _packed, deterministic=True)
        connection.execute(
            f"INSERT INTO {name}_blocks (boot, first_seq, rows, payload) "  # noqa: S608 - one of two names of ours
            f"SELECT boot, seq, 1, pack_row(payload) FROM {name} ORDER BY id"
        )
        connection.execute(f"DROP TABLE {name}")


def _packed(payload: object) -> bytes:
    return zlib.compress(payload if isinstance(payload, bytes) else b"")
