"""Gives the free pages of a telemetry buffer back to the disk.

Decides when: only while no agent runs, and none can start until it is done, for a vacuum holds the file for as long as
it takes. An agent never does it by itself: a full ring reuses its own pages, and flash wears.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec

from edgeml.errors import StorageError
from edgeml.lock import Lock

from .buffer_file import damage_told, is_full
from .buffer_reader import check_version, file_bytes, find_buffer, readable_error, sqlite_utils_library
from .config import LOCK


class Vacuumed(msgspec.Struct, frozen=True):
    """Size of the file and its log."""

    before_bytes: int
    after_bytes: int


def vacuum(storage: Path) -> Vacuumed:
    """Make the file as small as what it holds.

    Raises:
        ConfigError: There is no buffer, an agent runs on it, or sqlite-utils is missing.
        StateError: The buffer is damaged.
        IncompatibleError: It is of a newer edgeml.
        StorageError: The disk refused; the file is as before.
    """
    library = sqlite_utils_library()
    path = find_buffer(storage)
    lock = Lock(storage / LOCK, f"an agent runs on {storage}", "stop it first; its telemetry stays")
    connection: sqlite3.Connection | None = None
    try:
        before_bytes = file_bytes(path)
        connection = sqlite3.connect(path)
        with damage_told():
            check_version(connection, path)
        database = library.Database(connection, execute_plugins=False)
        database.vacuum()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        return Vacuumed(before_bytes, file_bytes(path))
    except sqlite3.Error as error:
        if is_full(error):
            raise StorageError(
                f"no space to vacuum {path}", hint="it takes as much again for a while: free space first"
            ) from error
        raise readable_error(error, path) from error
    finally:
        if connection is not None:
            connection.close()
        lock.release()
