"""The fleet's database: opening it, its version, and transactions.

Decides durability and how the two databases differ. SQLite (the default) runs in WAL mode with `synchronous=FULL`: a
commit survives a power cut, and a controller commits only about ten times a second. PostgreSQL is used by URL. What
differs between them is in this file only. Tables are in `schema`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from edgeml.errors import ConfigError, EdgemlError, StateError, StorageError

from . import identity_schema as _identity_schema  # noqa: F401  # its tables
from . import schema

BUSY_TIMEOUT_MS: Final = 10_000
_WRITES: Final = "edgeml_writes"


class Store:
    """A database of the current schema, created if it is empty.

    Raises:
        ConfigError: The URL is not valid, or its driver is missing.
        StateError: It belongs to another version of edgeml.
        StorageError: It cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        with self.write() as connection:
            _check_version(connection)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Yield a connection for reading: one consistent view, never waits for writers."""
        with _mapped_errors(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Yield a connection for writing: all of it is stored durably at the end of the block, or none of it."""
        with (
            _mapped_errors(),
            self._engine.connect().execution_options(**{_WRITES: True}) as connection,
            connection.begin(),
        ):
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def insert_new(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> int:
    """Insert rows whose key is not there yet; return how many were."""
    if not rows:
        return 0
    statement = _dialect(connection).insert(table).on_conflict_do_nothing()
    return max(0, connection.execute(statement, rows).rowcount)


def upsert(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> None:
    """Insert a row, or replace its columns where the primary key is there."""
    upsert_all(connection, table, [row])


def upsert_all(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows of the same columns, or replace these columns where the primary key is there."""
    if not rows:
        return
    keys = [column.name for column in table.primary_key.columns]
    statement = _dialect(connection).insert(table)
    changed = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), rows)


def _dialect(connection: sa.Connection) -> Any:
    # Only the one that is used: to load the other's types and drivers takes every command a tenth of a second.
    return importlib.import_module(f"sqlalchemy.dialects.{connection.dialect.name}")


def _engine(url: str) -> sa.Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
            raise ConfigError(
                f"the store cannot be {parsed.get_backend_name()}", hint="use SQLite or PostgreSQL"
            )
        engine = sa.create_engine(parsed)
    except (sa.exc.ArgumentError, ModuleNotFoundError) as error:
        raise ConfigError(
            f"the store's URL is not usable: {error}", hint="check [store] url in fleet.toml"
        ) from error
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver must not open transactions by itself: it would begin them as readers, and two readers that both
    # turn into writers fail at once instead of waiting.
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "journal_size_limit=67108864",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql(
        "BEGIN IMMEDIATE" if connection.get_execution_options().get(_WRITES) else "BEGIN"
    )


def _check_version(connection: sa.Connection) -> None:
    if not sa.inspect(connection).has_table(schema.meta.name):
        schema.metadata.create_all(connection)
        connection.execute(
            schema.meta.insert().values(key="schema_version", value=str(schema.SCHEMA_VERSION))
        )
        return
    stored = connection.scalar(sa.select(schema.meta.c.value).where(schema.meta.c.key == "schema_version"))
    if stored == str(schema.SCHEMA_VERSION):
        _complete(connection)
        return
    older = stored is not None and stored.isdecimal() and int(stored) < schema.SCHEMA_VERSION
    raise StateError(
        f"the fleet's database has schema {stored}; this edgeml knows {schema.SCHEMA_VERSION}",
        hint="nothing converts it: keep it aside, or use the edgeml that made it; a new fleet is made by"
        " `edgeml fleet init`, and its devices are added again"
        if older
        else "update edgeml, or restore the database that belongs to this version",
    )


def _complete(connection: sa.Connection) -> None:
    """Give a database of before what came since; all of it may be absent, so an older controller works with it too."""
    # Tables that came later and changed no other; those of identity are among the metadata by their import.
    schema.metadata.create_all(connection)
    present = {column["name"] for column in sa.inspect(connection).get_columns(schema.windows.name)}
    if schema.windows.c.quality.name not in present:
        connection.exec_driver_sql("ALTER TABLE windows ADD COLUMN quality TEXT")


@contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except EdgemlError:
        raise
    except sa.exc.OperationalError as error:
        raise StorageError(
            f"the fleet's database refuses: {error.orig}",
            hint="check its disk, and that no other program holds it",
        ) from error
    except sa.exc.DatabaseError as error:
        raise StateError(f"the fleet's database: {str(error.orig).splitlines()[0]}") from error
