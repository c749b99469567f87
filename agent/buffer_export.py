"""Writes the rows of a telemetry buffer to a file that a person can work with.

Decides the two formats. JSON lines: `stream`, `boot`, `row`, where `row` is what goes over the wire. CSV: one column for
every plain field of any kind of row, lists, sketches and inputs as JSON. The file is there as a whole or not at all.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from edgeml.atomic import replacing
from edgeml.errors import ConfigError
from edgeml.telemetry import Counters, Event, Row, Sample, Stream, Window

from .buffer_reader import ReadRow, count_rows, reading, stored_rows

SUFFIXES: Final = (".jsonl", ".csv")
_WINDOW: Final = tuple(
    name for name in Window.__struct_fields__ if name not in {"seq", "release", "counters"}
)
_EVENT: Final = tuple(name for name in Event.__struct_fields__ if name not in {"seq", "release"})
_SAMPLE: Final = tuple(
    name for name in Sample.__struct_fields__ if name not in {"seq", "release", "digest", "at_ms"}
)
COLUMNS: Final = (
    "stream",
    "boot",
    "seq",
    "release",
    *_WINDOW,
    *Counters.__struct_fields__,
    *_EVENT,
    *_SAMPLE,
)

Write = Callable[[ReadRow], None]


class Exported(msgspec.Struct, frozen=True):
    """What was written, and how many rows could not be read and were left out."""

    rows: int
    unreadable: int


class Line(msgspec.Struct, frozen=True):
    """One line of JSON."""

    stream: Stream
    boot: str
    row: Row | None


def check_name(to: Path) -> None:
    """Refuse a file whose name says no known format.

    Raises:
        ConfigError: It does not.
    """
    if to.suffix not in SUFFIXES:
        raise ConfigError(
            f"{to.name} ends in neither {' nor '.join(SUFFIXES)}", hint="the name says the format"
        )


def export(
    path: Path, to: Path, streams: tuple[Stream, ...], advance: Callable[[int, int], None]
) -> Exported:
    """Write the rows of these streams; `advance` hears, after each, how many are done and about how many there are.

    Raises:
        ConfigError: The name of the file says no known format, or sqlite-utils is missing.
        StateError: The buffer is damaged.
        IncompatibleError: It is of a newer edgeml.
        StorageError: A disk refused; an older file of that name is untouched.
    """
    check_name(to)
    rows = unreadable = 0
    with reading(path) as database, _writing(to) as write:
        total = sum(count_rows(database, stream) for stream in streams)
        for stream in streams:
            for stored in stored_rows(database, stream):
                if stored.row is None:
                    unreadable += 1
                else:
                    write(stored)
                    rows += 1
                advance(rows + unreadable, total)
    return Exported(rows, unreadable)


@contextmanager
def _writing(to: Path) -> Iterator[Write]:
    with replacing(to) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        if to.suffix == ".csv":
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            yield lambda stored: table.writerow(_cells(stored))
        else:
            encode = msgspec.json.Encoder().encode
            yield lambda stored: print(
                encode(Line(stored.stream, stored.boot, stored.row)).decode(), file=file
            )


def _cells(stored: ReadRow) -> list[str]:
    row = stored.row
    assert row is not None
    parts = (row, row.counters) if isinstance(row, Window) else (row,)
    return [stored.stream.value, stored.boot, *(_cell(parts, name) for name in COLUMNS[2:])]


def _cell(parts: tuple[msgspec.Struct, ...], name: str) -> str:
    value = next((getattr(part, name) for part in parts if name in part.__struct_fields__), None)
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
