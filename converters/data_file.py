"""Reads data that are only looked at: the arrays of an .npz, one .npy, or the columns of a .csv.

Decides which files are read and how much of them, and that nothing is allocated which a file does not hold. Unlike
`dataset` it lets everything pass that can be an array: what is wrong with it is told by `data_check`.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edgeml.errors import ConfigError

from .array_file import Array, read_array
from .dataset import DATA_BYTES_MAX

ARRAYS_MAX: Final = 64
CSV_BYTES_MAX: Final = 256 << 20
COLUMNS_MAX: Final = 4096
CELLS_KEPT: Final = 100
LABEL_NAMES: Final = frozenset({"label", "labels", "class", "classes", "target", "targets", "y"})
_WHOLE: Final = re.compile(r"-?\d+")


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table that is no number. `row` counts from 0, without the line of names."""

    row: int
    column: str
    text: str


@dataclass(frozen=True, slots=True)
class NamedArray:
    """An array as the file has it. Of a table also the names of its columns, and the cells that are no numbers (NaN here).

    `unreadable_count` counts all of those, `unreadable` holds the first CELLS_KEPT.
    """

    name: str
    values: Array
    columns: tuple[str, ...] = ()
    unreadable: tuple[Cell, ...] = ()
    unreadable_count: int = 0
    is_text: bool = False
    """From a file that states no element types."""


def read_arrays(path: Path) -> tuple[NamedArray, ...]:
    """Read all arrays of a file.

    Raises:
        ConfigError: It cannot be read, holds Python objects, states more than it holds, or is too large.
    """
    try:
        match path.suffix.lower():
            case ".npz":
                return _npz(path)
            case ".npy":
                with path.open("rb") as file:
                    return (NamedArray("x", read_array(file, path.stat().st_size, path.name)),)
            case ".csv":
                return _csv(path)
    except OSError as error:
        raise ConfigError(
            f"cannot read data {path}: {error.strerror or error}", hint="check the path"
        ) from error
    raise ConfigError(f"{path} is no .npz, .npy or .csv file", hint="write it with numpy.savez")


def _npz(path: Path) -> tuple[NamedArray, ...]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            total = sum(info.file_size for info in infos)
            if total > DATA_BYTES_MAX or len(infos) > ARRAYS_MAX:
                raise ConfigError(
                    f"{path.name} holds {len(infos)} arrays of {total} bytes, more than {ARRAYS_MAX} or {DATA_BYTES_MAX} bytes",
                    hint="some thousand samples are enough",
                )
            arrays = []
            for info in infos:
                name = info.filename.removesuffix(".npy")
                with archive.open(info) as member:
                    arrays.append(NamedArray(name, read_array(member, info.file_size, name)))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, zlib.error) as error:
        raise ConfigError(f"{path} is no .npz file: {error}", hint="write it with numpy.savez") from error
    return tuple(arrays)


def _csv(path: Path) -> tuple[NamedArray, ...]:
    with path.open("rb") as file:
        data = file.read(CSV_BYTES_MAX + 1)
    if len(data) > CSV_BYTES_MAX:
        raise ConfigError(
            f"{path.name} is longer than {CSV_BYTES_MAX} bytes", hint="save it as .npz with numpy.savez"
        )
    try:
        rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"{path.name} is no table: {error}", hint="save it as UTF-8 with commas between"
        ) from error
    has_names = bool(rows) and not any(map(_is_number, rows[0]))
    names = rows.pop(0) if has_names else [f"column {i}" for i in range(len(rows[0]) if rows else 0)]
    if not rows or len(names) > COLUMNS_MAX:
        raise ConfigError(
            f"{path.name} has {len(rows)} rows of {len(names)} columns",
            hint=f"give at least one row, and at most {COLUMNS_MAX} columns",
        )
    return _table([name.strip() for name in names], rows)


def _table(names: list[str], rows: list[list[str]]) -> tuple[NamedArray, ...]:
    """Make samples of the columns, and labels of the one that is called so."""
    label_at = next((i for i, name in enumerate(names) if name.lower() in LABEL_NAMES), None)
    kept = [i for i in range(len(names)) if i != label_at]
    values = np.full((len(rows), len(kept)), np.nan)
    bad: list[Cell] = []
    bad_count = 0
    for number, row in enumerate(rows):
        if len(row) != len(names):
            bad_count += 1
            if len(bad) < CELLS_KEPT:
                bad.append(Cell(number, "", f"{len(row)} cells of {len(names)}"))
            continue
        for to, at in enumerate(kept):
            cell = row[at].strip()
            if _is_number(cell):
                values[number, to] = float(cell)
            elif cell:
                bad_count += 1
                if len(bad) < CELLS_KEPT:
                    bad.append(Cell(number, names[at], cell[:40]))
    columns = tuple(names[i] for i in kept)
    samples = NamedArray("x", values, columns, tuple(bad), bad_count, is_text=True)
    if label_at is None:
        return (samples,)
    said = [row[label_at].strip() if len(row) == len(names) else "" for row in rows]
    whole = all(_WHOLE.fullmatch(text) and len(text) < 18 for text in said)
    labels: Array = np.array([int(text) for text in said]) if whole else np.array(said)
    return samples, NamedArray("y", labels, (names[label_at],), is_text=True)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
