"""The journal: where the update machines stand, on disk before anything is done about it.

Decides the record and its durability (SQLite with synchronous=FULL in a file of its own: the telemetry's disk trouble
is not the machines'). One row a model, replaced in one transaction. A journal that cannot be read is set aside and
reported, and goes on with those of its rows that can be; the device then starts from its slots, which are kept
elsewhere.
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
from edgeml.ids import Digest, ModelName, is_name
from edgeml.trustfacts import SignedFacts
from edgeml.twin import Desired, DeviceState, Outcome

from .buffer_file import UnreadableError, damage_told, is_corrupt

JOURNAL_VERSION: Final = 2
REFUSED_MAX: Final = 64


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """All of one model that must survive a power cut, besides its slots."""

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
    release_counter: int = 0
    """Highest release counter committed: the ratchet."""
    refused: tuple[Digest, ...] = ()
    """Content that is never tried again, newest last."""


def peek(path: Path) -> dict[ModelName, Entry]:
    """Read a journal that an agent may be using; empty if there is none.

    Raises:
        StateError: It cannot be read.
    """
    if not path.exists():
        return {}
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
        try:
            # An agent that starts for the first time makes the file before it makes the table.
            found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'machines'").fetchone()
            wanted = "SELECT model, entry FROM machines ORDER BY model"
            rows = connection.execute(wanted).fetchall() if found else []
        finally:
            connection.close()
        return {ModelName(model): msgspec.json.decode(entry, type=Entry) for model, entry in rows}
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
        self.boot = ""
        """Name of this life of the agent."""
        self._entries: dict[ModelName, Entry] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open()
            except sqlite3.Error as error:
                # Locked, or a full disk: the journal is sound, and the ratchets in it must not be lost.
                if not is_corrupt(error):
                    raise
                self._start_over()
        except sqlite3.Error as error:
            raise StorageError(
                f"cannot open the journal {path}: {error}", hint="check the disk, and for another agent"
            ) from error
        except OSError as error:
            raise storage_error(error, path) from error

    @property
    def models(self) -> tuple[ModelName, ...]:
        """The models it has entries of."""
        return tuple(sorted(self._entries))

    def load(self, model: ModelName) -> Entry:
        """Return the last entry of a model that was written, or a fresh one."""
        return self._entries.get(model, Entry())

    def write(self, model: ModelName, entry: Entry) -> None:
        """Make an entry durable.

        Raises:
            StorageError: The disk refused; the old entry stands.
        """
        try:
            self._insert(model, entry)
        except sqlite3.Error as error:
            raise StorageError(
                f"cannot write the journal {self._path}: {error}", hint="free space on that file system"
            ) from error
        self._entries[model] = entry

    def forget(self, model: ModelName) -> None:
        """Remove a model's entry.

        Raises:
            StorageError: The disk refused; the entry stands.
        """
        try:
            with self._connection:
                self._connection.execute("DELETE FROM machines WHERE model = ?", (model,))
        except sqlite3.Error as error:
            raise StorageError(
                f"cannot write the journal {self._path}: {error}", hint="free space on that file system"
            ) from error
        self._entries.pop(model, None)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _insert(self, model: ModelName, entry: Entry) -> None:
        with self._connection:
            self._connection.execute(
                "INSERT INTO machines (model, version, entry) VALUES (?, ?, ?) "
                "ON CONFLICT (model) DO UPDATE SET version = excluded.version, entry = excluded.entry",
                (model, JOURNAL_VERSION, msgspec.json.encode(entry)),
            )

    def _read(self) -> None:
        """Read all entries; start over with the good ones if one is bad.

        Raises:
            StateError: The journal is of a newer edgeml.
            sqlite3.Error: The disk refused, or the file is damaged.
        """
        self._entries = {}
        with damage_told():
            rows = self._connection.execute("SELECT model, version, entry FROM machines").fetchall()
        bad = False
        for model, version, data in rows:
            if isinstance(version, int) and version > JOURNAL_VERSION:
                raise StateError(
                    f"the journal has version {version}; this edgeml reads {JOURNAL_VERSION}",
                    hint="update edgeml",
                )
            try:
                entry = msgspec.json.decode(data, type=Entry)
            except (msgspec.MsgspecError, UnicodeDecodeError, TypeError):
                bad = True
                continue
            if isinstance(model, str) and is_name(model):
                self._entries[ModelName(model)] = entry
            else:
                bad = True
        if bad:
            # What is left of the ratchets must not be lost with the row that is.
            good = self._entries
            self._start_over()
            for model, entry in good.items():
                self._insert(model, entry)
            self._entries = good

    def _open(self) -> None:
        """Open the file and name this life of the agent: ordered, and never used twice even if the journal is lost."""
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        self._connection = sqlite3.connect(self._path, check_same_thread=False)
        try:
            with damage_told():
                self.boot = self._set_up()
            self._read()
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
                "CREATE TABLE IF NOT EXISTS machines (model TEXT PRIMARY KEY, version INTEGER, entry BLOB)"
            )
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS boots (id INTEGER PRIMARY KEY AUTOINCREMENT)"
            )
            cursor = self._connection.execute("INSERT INTO boots DEFAULT VALUES")
        return f"{cursor.lastrowid:08d}-{secrets.token_hex(3)}"

    def _start_over(self) -> None:
        self._connection.close()
        self.quarantined = self._path.with_suffix(".corrupt")
        self._path.replace(self.quarantined)
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        self._open()
