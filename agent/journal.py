"""The journal: where the update machine stands, on disk before anything is done about it.

Decides the record and its durability (SQLite with synchronous=FULL in a file of its own: the telemetry's disk trouble
is not the machine's). One row, replaced in one transaction. A journal that cannot be read is set aside and reported;
the device then starts from its slots, which are kept elsewhere.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from pathlib import Path
from typing import Final

import msgspec

from edgeml.atomic import storage_error
from edgeml.errors import StateError, StorageError
from edgeml.ids import Digest
from edgeml.trustfacts import SignedFacts
from edgeml.twin import Desired, DeviceState, Outcome

from .buffer_file import UnreadableError, damage_told, is_corrupt

JOURNAL_VERSION: Final = 1
REFUSED_MAX: Final = 64


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that must survive a power cut, besides the slots."""

    state: DeviceState = DeviceState.IDLE
    generation: int = 0
    """Highest generation of `desired` that was looked at."""
    desired: Desired | None = None
    """The deployment in hand, or the last one."""
    source: str = ""
    """Directory the deployment comes from; empty for the fleet's server."""
    held: bool = False
    """Whether the deployment goes back to the previous slot."""
    facts: SignedFacts | None = None
    """What signed metadata say of the variant, once they were checked."""
    condemned: Digest | None = None
    """The variant that a rollback goes away from."""
    waiting: Desired | None = None
    """A newer `desired` that has to wait until the one in hand is done with."""
    attempt: int = 0
    restarts: int = 0
    outcome: Outcome | None = None
    reason: str = ""
    fetched_bytes: int = 0
    counters: dict[str, int] = msgspec.field(default_factory=dict)
    """Highest release counter committed, by model: the ratchet."""
    refused: tuple[Digest, ...] = ()
    """Content that is never tried again, newest last."""


def peek(path: Path) -> Entry | None:
    """Read a journal that an agent may be using; None if there is none.

    Raises:
        StateError: It cannot be read.
    """
    if not path.exists():
        return None
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
        try:
            row = connection.execute("SELECT entry FROM journal WHERE id = 1").fetchone()
        finally:
            connection.close()
        return Entry() if row is None else msgspec.json.decode(row[0], type=Entry)
    except (sqlite3.Error, msgspec.MsgspecError) as error:
        raise StateError(
            f"the journal {path} cannot be read: {error}",
            hint="the agent sets a broken journal aside when it starts",
        ) from error


class Journal:
    """One device's journal.

    Raises:
        StorageError: The disk refused.
        StateError: The journal is of a newer edgeml.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.quarantined: Path | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.boot = self._open()
            except sqlite3.Error as error:
                # Locked, or a full disk: the journal is sound, and the ratchet in it must not be lost.
                if not is_corrupt(error):
                    raise
                self.boot = self._start_over()
        except sqlite3.Error as error:
            raise StorageError(
                f"cannot open the journal {path}: {error}", hint="check the disk, and for another agent"
            ) from error
        except OSError as error:
            raise storage_error(error, path) from error

    def load(self) -> Entry:
        """Return the last entry written, or a fresh one.

        Raises:
            StateError: The journal is of a newer edgeml.
            StorageError: The disk refused.
        """
        try:
            try:
                with damage_told():
                    row = self._connection.execute(
                        "SELECT version, entry FROM journal WHERE id = 1"
                    ).fetchone()
            except sqlite3.Error as error:
                if not is_corrupt(error):
                    raise
                row = (0, b"")
            if row is None:
                return Entry()
            version, data = row
            if isinstance(version, int) and version > JOURNAL_VERSION:
                raise StateError(
                    f"the journal has version {version}; this edgeml reads {JOURNAL_VERSION}",
                    hint="update edgeml",
                )
            try:
                return msgspec.json.decode(data, type=Entry)
            except (msgspec.MsgspecError, UnicodeDecodeError, TypeError):
                self._start_over()
                return Entry()
        except sqlite3.Error as error:
            raise StorageError(
                f"cannot read the journal {self._path}: {error}", hint="check the disk"
            ) from error
        except OSError as error:
            raise storage_error(error, self._path) from error

    def write(self, entry: Entry) -> None:
        """Make an entry durable.

        Raises:
            StorageError: The disk refused; the old entry stands.
        """
        try:
            with self._connection:
                self._connection.execute(
                    "INSERT INTO journal (id, version, entry) VALUES (1, ?, ?) "
                    "ON CONFLICT (id) DO UPDATE SET version = excluded.version, entry = excluded.entry",
                    (JOURNAL_VERSION, msgspec.json.encode(entry)),
                )
        except sqlite3.Error as error:
            raise StorageError(
                f"cannot write the journal {self._path}: {error}", hint="free space on that file system"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _open(self) -> str:
        """Open the file and name this life of the agent: ordered, and never used twice even if the journal is lost."""
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        self._connection = sqlite3.connect(self._path, check_same_thread=False)
        try:
            with damage_told():
                return self._set_up()
        except sqlite3.Error:
            self._connection.close()
            raise

    def _set_up(self) -> str:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        # Now, not when the page is needed: a journal that cannot be written would stop every update to come.
        [checked] = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if checked != "ok":
            raise UnreadableError(checked)
        with self._connection:
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS journal (id INTEGER PRIMARY KEY, version INTEGER, entry BLOB)"
            )
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS boots (id INTEGER PRIMARY KEY AUTOINCREMENT)"
            )
            cursor = self._connection.execute("INSERT INTO boots DEFAULT VALUES")
        return f"{cursor.lastrowid:08d}-{secrets.token_hex(3)}"

    def _start_over(self) -> str:
        self._connection.close()
        self.quarantined = self._path.with_suffix(".corrupt")
        self._path.replace(self.quarantined)
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        return self._open()
