"""Packed rows: what comes out is what went in, to the last byte, or is told to be unreadable; and it is small."""

import json
import random
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.block import COLUMNS_ROWS_MIN, INTEGER_MAX, MARK, ROWS_MAX, pack_lines, unpack_lines
from edgeml.ids import Digest, ReleaseId
from edgeml.sketch import Sketch
from edgeml.telemetry import Counters, Event, InputQuality, Window, encode_row

GOLDEN = Path(__file__).parents[1] / "golden"
integers = st.one_of(st.integers(0, 5), st.integers(-(10**30), 10**30), st.integers(-(1 << 22), 1 << 22))
values = st.recursive(
    st.one_of(integers, st.floats(allow_nan=False), st.booleans(), st.none(), st.text(max_size=8), st.lists(integers, max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=4)),
    max_leaves=12,
)  # fmt: skip


def written(value):
    return json.dumps(value, separators=(",", ":")).encode()


def window(chance, number):
    """As real ones: fields that are zero are left out, histograms end with their last count."""
    counts = tuple(tuple(chance.choice((0, 0, 1, 3, 9)) for _ in range(18)) for _ in range(8))
    sums = tuple(chance.randrange(-(10**6), 10**6) for _ in range(8))
    squares = tuple(chance.randrange(10**7) for _ in range(8))
    return Window(
        number, ReleaseId("m@1.0.0"), Digest("3f" * 32), 1_800_000_000_000 + number * 60_007, 60_000,
        Counters(inferences=60, slow=chance.randrange(2), errors=chance.randrange(2)),
        (0,) * 30 + (5,) * chance.randrange(9), Sketch(Digest("7a" * 32), 60, counts, sums, squares), 1 << 20,
        InputQuality(missing=1) if number % 17 == 0 else InputQuality(),
    )  # fmt: skip


def windows(count=50):
    chance = random.Random(5)
    return [encode_row(window(chance, number)) for number in range(1, count + 1)]


@given(st.lists(values.map(written), min_size=1, max_size=12), st.integers(1, 5))
@settings(max_examples=300)
def test_any_rows_come_back_to_the_last_byte(lines, times):
    assert unpack_lines(pack_lines(lines * times)) == lines * times


@given(st.lists(st.lists(integers, min_size=1, max_size=6), min_size=COLUMNS_ROWS_MIN, max_size=60))
def test_columns_of_any_numbers_and_lengths_come_back(rows):
    lines = [written({"seq": number, "n": row, "m": row[::-1]}) for number, row in enumerate(rows)]
    packed = pack_lines(lines)
    is_small = all(abs(value) < INTEGER_MAX // 2 for row in rows for value in row)
    assert packed.startswith(MARK) or not is_small
    assert unpack_lines(packed) == lines


@pytest.mark.parametrize(
    "text",
    ["a:007,", "a:-0,", "a:-,", "a:1-2,", "a:--1,", "a:1,,2,", "a:12345678901234567890,", "a:-5,", "1,2,3", "[1,02]", "\x00"],
)  # fmt: skip
def test_text_that_looks_like_numbers_comes_back_as_it_was(text):
    lines = [encode_row(Event(seq, text, seq, text)) for seq in range(1, 30)]
    assert unpack_lines(pack_lines(lines)) == lines
    raw = [b'{"seq":%d,"k":"%b"}' % (seq, text.encode()) for seq in range(1, 30)]
    assert unpack_lines(pack_lines(raw)) == raw


def test_windows_with_sketches_take_little_more_than_what_they_say():
    lines = windows()
    packed = pack_lines(lines)
    assert unpack_lines(packed) == lines
    # Of these numbers: 16 of 21 and 24 bits a row, and 144 counts of 1.9 bits by their entropy.
    least = (8 * 21 + 8 * 23.3 + 144 * 1.9) / 8
    assert least < len(packed) / len(lines) < 1.5 * least
    assert len(packed) < 0.75 * len(zlib.compress(b"\n".join(lines), 9))


def test_rows_that_have_little_in_common_are_deflated():
    chance = random.Random(1)
    lines = [written({str(chance.random()): n}) for n in range(50)]
    assert pack_lines(lines) == zlib.compress(b"\n".join(lines), 6)
    for count in (1, COLUMNS_ROWS_MIN - 1, ROWS_MAX + 1):
        assert not pack_lines([b'{"seq":1}'] * count).startswith(MARK)


def test_blocks_of_format_2_are_read():
    assert unpack_lines(zlib.compress(b"one\ntwo")) == [b"one", b"two"]


@pytest.mark.parametrize("seed", range(3))
def test_damage_anywhere_is_seen(seed):
    packed, chance = pack_lines(windows(12)), random.Random(seed)
    for at in range(0, len(packed), 7):
        damaged = bytearray(packed)
        damaged[at] ^= 1 << chance.randrange(8)
        assert unpack_lines(bytes(damaged)) is None, at
        assert unpack_lines(packed[:at]) is None, at
    assert unpack_lines(packed + b"x") is None


@given(st.binary(max_size=300), st.binary(max_size=40))
@settings(max_examples=500)
def test_a_head_that_makes_no_sense_is_none_and_takes_no_time(head, digits):
    body = zlib.compress(head) + digits
    found = unpack_lines(MARK + zlib.crc32(body).to_bytes(4, "little") + body)
    assert found is None or isinstance(found, list)


@given(st.data())
@settings(max_examples=200)
def test_a_good_head_with_one_byte_changed_is_no_trouble(data):
    packed = pack_lines(windows(6))
    inflater = zlib.decompressobj()
    head = bytearray(inflater.decompress(packed[5:]))
    at = data.draw(st.integers(0, len(head) - 1))
    head[at] = data.draw(st.integers(0, 255))
    body = zlib.compress(bytes(head)) + inflater.unused_data
    found = unpack_lines(MARK + zlib.crc32(body).to_bytes(4, "little") + body)
    assert found is None or isinstance(found, list)


def test_what_was_written_once_is_read_for_ever():
    assert unpack_lines((GOLDEN / "block.bin").read_bytes()) == (GOLDEN / "block.jsonl").read_bytes().split(
        b"\n"
    )
