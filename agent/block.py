"""A block: rows of one stream as the buffer's file holds them, packed.

Decides the two ways of packing. Rows that say the same with other numbers, as windows and sketches do, are taken apart:
their words once, and of their numbers each column by itself, as what it differs from its least value or from the row
before, in as many digits of one long number as its span needs. A deflated line of JSON takes twice that, for noise does not
deflate, and counts of two bits each were written as letters. All other rows are deflated, one line of JSON each. Which rows
are in a block is `ring`'s business. Pure.

    deflated: zlib of the lines, joined by line breaks (every block of format 2 of the file)
    columns:  MARK, CRC-32 of the rest (4 bytes, little-endian), zlib of the head, digits
    head:     shapes, joined by line breaks, preceded by their length; then of each column its numbers (varints)

A shape is a row's text with NUL for each run of integers; JSON has neither NUL nor line breaks of its own. Integers are
taken only where their text is the one that they are written as again.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from itertools import accumulate
from operator import sub
from typing import Final

from edgeml.telemetry import BATCH_RAW_BYTES_MAX

MARK: Final = b"\x02"
"""No zlib begins with it."""
COLUMNS_ROWS_MIN: Final = 4
"""With fewer rows, columns have nothing in common."""
SHAPES_MIN: Final = 8
"""Shapes that a few rows may have; more of them, and rows have too little in common."""
ROWS_MAX: Final = 1000
STEPS_SPAN_MIN: Final = 1 << 10
"""Of small counts, what one differs from the one before never needs less than itself."""
INTEGER_MAX: Final = 1 << 62
_VARINT_BITS_MAX: Final = 70
_LEVEL: Final = 6
_CRC: Final = struct.Struct("<I")
_RUN: Final = re.compile(rb"(?<=[:\[])([-0-9][-0-9,]*)(?=[,\]}])")
_LEADING_ZERO: Final = re.compile(rb",0[0-9]")


def pack_lines(lines: Sequence[bytes]) -> bytes:
    """Make the payload of a block of rows, one line of JSON each, without line breaks."""
    try:
        columns = _columns(lines)
    except OverflowError:
        columns = None
    return columns or zlib.compress(b"\n".join(lines), _LEVEL)


def unpack_lines(payload: object) -> list[bytes] | None:
    """Return the rows of a block; None if it cannot be read."""
    if not isinstance(payload, bytes):
        return None
    if not payload.startswith(MARK):
        raw, _ = _inflate(payload)
        return None if raw is None else raw.split(b"\n")
    try:
        [sum_] = _CRC.unpack_from(payload, len(MARK))
        body = payload[len(MARK) + _CRC.size :]
        if zlib.crc32(body) != sum_:
            return None
        head, digits = _inflate(body)
        return None if head is None else _Reader(head, digits).lines()
    except (ValueError, IndexError, KeyError, struct.error):
        return None


def _inflate(data: bytes) -> tuple[bytes | None, bytes]:
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data, BATCH_RAW_BYTES_MAX)
    except zlib.error:
        return None, b""
    return (raw, inflater.unused_data) if inflater.eof else (None, b"")


def _columns(lines: Sequence[bytes]) -> bytes | None:
    """Take rows apart; None if that would not pay."""
    if not COLUMNS_ROWS_MIN <= len(lines) <= ROWS_MAX:
        return None
    shapes: dict[tuple[bytes, ...], int] = {}
    rows: list[int] = []
    parts: list[list[bytes]] = []
    for line in lines:
        one = _RUN.split(line)
        parts.append(one)
        if len(shapes) > SHAPES_MIN + len(rows) // 4:
            return None
        rows.append(shapes.setdefault(tuple(one[::2]), len(shapes)))
    if b"\0" in b"".join(lines) or not _are_plain([run for one in parts for run in one[1::2]]):
        return None
    slots = _slots(list(shapes))
    runs: list[list[list[bytes]]] = [[] for _ in range(1 + max(max(one, default=-1) for one in slots))]
    for one, shape in zip(parts, rows, strict=True):
        for slot, run in zip(slots[shape], one[1::2], strict=True):
            runs[slot].append(run.split(b","))
    writer = _Writer()
    writer.column(rows)
    for values in runs:
        lengths = [len(one) for one in values]
        writer.column(lengths)
        # As many as all have, without looking at each; then those that only some have.
        for column in zip(*values, strict=False):
            writer.written(column)
        for index in range(min(lengths), max(lengths)):
            writer.written([one[index] for one in values if len(one) > index])
    text = b"\n".join(b"\0".join(texts) for texts in shapes)
    head = _varint(len(lines)) + _varint(len(text)) + text + writer.head()
    body = zlib.compress(head, _LEVEL) + bytes(writer.digits)
    return MARK + _CRC.pack(zlib.crc32(body)) + body


def _are_plain(runs: Sequence[bytes]) -> bool:
    """Tell whether every integer is written as it would be again: text in a row's strings may look like one."""
    all_runs = b",%b," % b",".join(runs)
    return (
        b",," not in all_runs
        and b"-," not in all_runs
        and b"-0" not in all_runs
        and all_runs.count(b"-") == all_runs.count(b",-")
        and _LEADING_ZERO.search(all_runs) is None
    )


def _slots(shapes: Sequence[Sequence[bytes]]) -> list[list[int]]:
    """Number the runs of each shape so that runs which mean the same, by the words before them, have one number."""
    known: dict[tuple[bytes, int], int] = {}
    slots = []
    for texts in shapes:
        seen: dict[bytes, int] = {}
        numbers = []
        for text in texts[:-1]:
            seen[text] = seen.get(text, 0) + 1
            numbers.append(known.setdefault((text, seen[text]), len(known)))
        slots.append(numbers)
    return slots


class _Writer:
    """Columns, one after the other: what is said of them by kind, for alike deflates well, and their digits."""

    def __init__(self) -> None:
        self._kinds = bytearray()
        self._bases = bytearray()
        self._spans = bytearray()
        self.digits = bytearray()

    def written(self, values: Sequence[bytes]) -> None:
        """Add a column of integers as they are written."""
        if values.count(values[0]) == len(values):
            values = values[:1]
        self.column(list(map(int, values)))

    def column(self, values: Sequence[int]) -> None:
        """Add a column: from its least value, or from row to row if that needs less.

        Raises:
            OverflowError: An integer is too large; such rows are not common enough to be worth it.
        """
        base = min(values)
        span = max(values) - base + 1
        if base < -INTEGER_MAX or base + span > INTEGER_MAX:
            raise OverflowError("an integer of more than 62 bits")
        kind, bases = 0, _varint(_zigzag(base))
        if span > STEPS_SPAN_MIN:
            differences = list(map(sub, values[1:], values))
            least = min(differences)
            steps = max(differences) - least + 1
            if steps.bit_length() < span.bit_length():
                kind, bases = 1, _varint(_zigzag(values[0])) + _varint(_zigzag(least))
                values, base, span = differences, least, steps
        self._kinds.append(kind)
        self._bases += bases
        self._spans += _varint(span - 1)
        if span > 1:
            number = 0
            for value in values:
                number = number * span + value - base
            self.digits += number.to_bytes(_width(span, len(values)), "little")

    def head(self) -> bytes:
        """What is needed to read the digits."""
        return b"".join(_varint(len(one)) + one for one in (self._kinds, self._bases, self._spans))


class _Cursor:
    """Reads bytes from the front. Raises ValueError if there are not enough."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        taken = self._data[self._at : self._at + count]
        if len(taken) < count:
            raise ValueError("cut")
        self._at += count
        return taken

    def varint(self) -> int:
        """The next number."""
        value = 0
        for shift in range(0, _VARINT_BITS_MAX, 7):
            [byte] = self.take(1)
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("too long a number")


class _Reader:
    """Puts rows together again. Raises ValueError if that cannot be done."""

    def __init__(self, head: bytes, digits: bytes) -> None:
        cursor = _Cursor(head)
        self._rows = cursor.varint()
        text = cursor.take(cursor.varint())
        self._shapes = [tuple(one.split(b"\0")) for one in text.split(b"\n")]
        self._kinds, self._bases, self._spans = (_Cursor(cursor.take(cursor.varint())) for _ in range(3))
        self._digits = _Cursor(digits)
        if self._rows > ROWS_MAX:
            raise ValueError("too many rows")

    def lines(self) -> list[bytes]:
        """Return the rows."""
        rows = self._column(self._rows)
        slots = _slots(self._shapes)
        holders: dict[int, int] = {}
        for shape in rows:
            for slot in slots[shape]:
                holders[slot] = holders.get(slot, 0) + 1
        runs = [iter(self._runs(holders[slot])) for slot in range(len(holders))]
        return [
            b"".join(
                part
                for text, slot in zip(self._shapes[shape], [*slots[shape], None], strict=True)
                for part in ((text,) if slot is None else (text, next(runs[slot])))
            )
            for shape in rows
        ]

    def _runs(self, count: int) -> list[bytes]:
        lengths = self._column(count)
        values: list[list[bytes]] = [[] for _ in lengths]
        for index in range(max(lengths)):
            longer = [one for one, length in zip(values, lengths, strict=True) if length > index]
            for one, value in zip(longer, self._column(len(longer)), strict=True):
                one.append(b"%d" % value)
        return [b",".join(one) for one in values]

    def _column(self, count: int) -> list[int]:
        is_stepped = self._kinds.take(1) == b"\1"
        first = _unzigzag(self._bases.varint()) if is_stepped else 0
        base, span = _unzigzag(self._bases.varint()), self._spans.varint() + 1
        values = self._number(count - is_stepped, base, span)
        return list(accumulate(values, initial=first)) if is_stepped else values

    def _number(self, count: int, base: int, span: int) -> list[int]:
        if span == 1:
            return [base] * count
        number = int.from_bytes(self._digits.take(_width(span, count)), "little")
        values = []
        for _ in range(count):
            number, digit = divmod(number, span)
            values.append(base + digit)
        values.reverse()
        return values


def _width(span: int, count: int) -> int:
    most: int = span**count - 1
    return most.bit_length() + 7 >> 3


def _zigzag(value: int) -> int:
    return value * 2 if value >= 0 else -value * 2 - 1


def _unzigzag(value: int) -> int:
    return value >> 1 if value % 2 == 0 else -(value >> 1) - 1


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)
