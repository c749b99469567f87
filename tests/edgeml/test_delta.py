"""Deltas: any two files round, any damage is an error of ours, and nothing is written past the signed length."""

import lzma
import os
import random
import struct
import subprocess
import sys
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml import delta
from edgeml.delta import Expected
from edgeml.errors import ArtifactError, DigestMismatchError, EdgemlError, IncompatibleError, StorageError
from edgeml.ids import digest_of

HEADER = struct.Struct("<8sHH32s32sQ")
SEGMENT = struct.Struct("<QQ")
LITERAL = (1 << 64) - 1


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


def moved(data, every):
    """The same weights after a gentle training: each so many bytes one more."""
    return bytes((byte + (index % every == 0)) % 256 for index, byte in enumerate(data))


def archive(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data)
    return path.read_bytes()


def ends(base, target):
    return Expected(digest_of(base), digest_of(target), len(target))


def made(directory, base, target):
    (directory / "base").write_bytes(base)
    (directory / "target").write_bytes(target)
    return delta.make(directory / "base", directory / "target")


def applied(directory, base, data, expected):
    (directory / "base").write_bytes(base)
    (directory / "delta").write_bytes(data)
    delta.apply(directory / "base", directory / "delta", directory / "out", expected)
    return (directory / "out").read_bytes()


def by_hand(base, target, segments, body, version=1, packed=None, count=None):
    """A delta that says whatever is wanted."""
    head = HEADER.pack(
        "edgemlΔ".encode(),
        version,
        len(segments) if count is None else count,
        bytes.fromhex(digest_of(base)),
        bytes.fromhex(digest_of(target)),
        len(target),
    )
    table = b"".join(SEGMENT.pack(*one) for one in segments)
    return head + table + (lzma.compress(body) if packed is None else packed)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return tmp_path_factory.mktemp("delta")


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_two_files_go_round(shelf, base, target):
    assert applied(shelf, base, made(shelf, base, target), ends(base, target)) == target


NAMES = st.sampled_from(["a", "b", "c", "d"])
MEMBERS = st.dictionaries(NAMES, st.binary(max_size=200), max_size=4)


@given(MEMBERS, MEMBERS)
@settings(max_examples=60)
def test_any_two_archives_go_round(shelf, old, new):
    base, target = archive(shelf / "old.zip", old), archive(shelf / "new.zip", new)
    assert applied(shelf, base, made(shelf, base, target), ends(base, target)) == target


@given(st.integers(1, 3), st.integers(-2, 2), st.integers(0, 2**32))
@settings(max_examples=20)
def test_sizes_around_a_block_go_round(shelf, blocks, more, seed):
    base = noise(blocks * (64 << 10) + more, seed)
    target = moved(base, 3)
    assert applied(shelf, base, made(shelf, base, target), ends(base, target)) == target


@given(
    st.binary(min_size=1, max_size=100).flatmap(
        lambda a: st.tuples(st.just(a), st.binary(min_size=len(a), max_size=len(a)))
    )
)
def test_bytes_are_added_one_by_one_modulo_256(pair):
    a, b = pair
    assert delta._added(a, b) == bytes((x + y) % 256 for x, y in zip(a, b, strict=True))
    assert delta._subtracted(a, b) == bytes((x - y) % 256 for x, y in zip(a, b, strict=True))


def test_weights_that_moved_a_little_cost_a_little(tmp_path):
    base = noise(200_000)
    data = made(tmp_path, base, moved(base, 10))
    assert len(data) < len(base) / 20
    assert made(tmp_path, base, moved(base, 10)) == data


def test_a_member_is_subtracted_from_its_namesake_wherever_that_lies(tmp_path):
    weights = noise(100_000)
    base = archive(tmp_path / "old.zip", {"notes": b"short", "model": weights})
    target = archive(tmp_path / "new.zip", {"notes": b"much longer" * 50, "model": moved(weights, 10)})
    data = made(tmp_path, base, target)
    assert len(data) < 10_000
    assert applied(tmp_path, base, data, ends(base, target)) == target


@pytest.mark.parametrize(
    ("before", "after"), [(b"", b"more"), (b"more", b""), (b"12", b"123"), (b"123", b"1")]
)
@pytest.mark.parametrize("at_the_front", [True, False], ids=["front", "end"])
def test_a_member_that_grew_or_shrank_at_one_end_is_still_subtracted(tmp_path, before, after, at_the_front):
    weights = noise(100_000)
    pair = [(before, weights), (after, moved(weights, 10))]
    base, target = (
        archive(tmp_path / "one.zip", {"model": some + data if at_the_front else data + some})
        for some, data in pair
    )
    data = made(tmp_path, base, target)
    assert len(data) < 10_000
    assert applied(tmp_path, base, data, ends(base, target)) == target


def test_a_member_that_has_nothing_in_common_is_carried_as_it_is(tmp_path):
    words = b"".join(b"row %d of the table\n" % index for index in range(5000))
    base = archive(tmp_path / "old.zip", {"model": noise(len(words))})
    target = archive(tmp_path / "new.zip", {"model": words})
    assert len(made(tmp_path, base, target)) < len(lzma.compress(words)) + 1000


class TestWhatIsRefused:
    BASE = noise(3000)
    TARGET = moved(BASE, 10)

    def refused(self, directory, data, kind=ArtifactError, match=None, expected=None, base=None):
        with pytest.raises(kind, match=match) as raised:
            applied(directory, base or self.BASE, data, expected or ends(self.BASE, self.TARGET))
        assert isinstance(raised.value, EdgemlError)
        assert not (directory / "out").exists()

    def test_another_base(self, tmp_path):
        data = made(tmp_path, self.BASE, self.TARGET)
        other = noise(3000, 2)
        self.refused(tmp_path, data, DigestMismatchError, "damaged", base=other)
        self.refused(
            tmp_path, data, DigestMismatchError, "a delta from", ends(other, self.TARGET), base=other
        )

    def test_another_target_than_is_signed(self, tmp_path):
        data = made(tmp_path, self.BASE, self.TARGET)
        self.refused(tmp_path, data, DigestMismatchError, "a delta from", ends(self.BASE, self.BASE))

    def test_a_result_that_is_not_the_signed_one(self, tmp_path):
        data = by_hand(self.BASE, self.TARGET, [(3000, 0)], bytes(3000))
        self.refused(tmp_path, data, DigestMismatchError, "does not give the signed bundle")

    def test_a_newer_format(self, tmp_path):
        data = by_hand(self.BASE, self.TARGET, [(3000, 0)], bytes(3000), version=2)
        self.refused(tmp_path, data, IncompatibleError, "format 2")

    @pytest.mark.parametrize(
        ("segments", "match"),
        [
            ([(2999, 0)], "add up"),
            ([(3001, LITERAL)], "add up"),
            ([(LITERAL, LITERAL), (3001, LITERAL)], "add up"),
            ([(3000, 1)], "outside"),
            ([(3000, LITERAL - 1)], "outside"),
            ([(3000, 0), (0, 0)], "empty"),
            ([], "add up"),
            ([(1, 0)] * 257, "cut or too long"),
        ],
    )  # fmt: skip
    def test_segments_that_lie(self, tmp_path, segments, match):
        self.refused(tmp_path, by_hand(self.BASE, self.TARGET, segments, bytes(3000)), match=match)

    @pytest.mark.parametrize(
        ("size", "match"), [(2999, "to less"), (3001, "to more"), (100 << 20, "to more")]
    )
    def test_a_body_of_another_length_is_not_unpacked_past_the_signed_one(self, tmp_path, size, match):
        self.refused(tmp_path, by_hand(self.BASE, self.TARGET, [(3000, 0)], bytes(size)), match=match)

    def test_bytes_after_the_end(self, tmp_path):
        data = made(tmp_path, self.BASE, self.TARGET)
        self.refused(tmp_path, data + b"\0", match="something follows")
        self.refused(tmp_path, data + bytes(200_000), match="something follows")
        self.refused(tmp_path, data + lzma.compress(b"more"), match="something follows")

    def test_a_dictionary_larger_than_the_limit(self, tmp_path):
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 64 << 20}]
        packed = lzma.compress(bytes(3000), filters=filters)
        data = by_hand(self.BASE, self.TARGET, [(3000, 0)], b"", packed=packed)
        self.refused(tmp_path, data, match="[Mm]emory")

    def test_every_truncation(self, tmp_path):
        data = made(tmp_path, self.BASE, self.TARGET)
        for length in range(len(data)):
            self.refused(tmp_path, data[:length])

    def test_every_flipped_bit(self, tmp_path):
        """A flip that changes nothing that counts (none is known) would have to give the very same bytes."""
        data = made(tmp_path, self.BASE, self.TARGET)
        for index in range(len(data)):
            flipped = bytearray(data)
            flipped[index] ^= 1 << (index % 8)
            self.refused(tmp_path, bytes(flipped))

    @given(st.binary(max_size=200))
    def test_any_body_is_an_error_of_ours(self, shelf, body):
        self.refused(shelf, by_hand(self.BASE, self.TARGET, [(3000, 0)], b"", packed=body))

    @given(
        st.lists(st.tuples(st.integers(0, LITERAL), st.integers(0, LITERAL)), max_size=6),
        st.integers(0, 2**16 - 1) | st.none(),
    )
    def test_any_table_is_an_error_of_ours(self, shelf, segments, count):
        self.refused(shelf, by_hand(self.BASE, self.TARGET, segments, bytes(3000), count=count))

    def test_a_disk_that_refuses(self, tmp_path):
        data = made(tmp_path, self.BASE, self.TARGET)
        (tmp_path / "delta").write_bytes(data)
        with pytest.raises(StorageError):
            delta.apply(
                tmp_path / "base", tmp_path / "delta", tmp_path / "none" / "out", ends(self.BASE, self.TARGET)
            )


def test_a_base_that_is_no_longer_there_is_a_storage_error(tmp_path):
    (tmp_path / "delta").write_bytes(made(tmp_path, b"a", b"b"))
    with pytest.raises(StorageError):
        delta.apply(tmp_path / "gone", tmp_path / "delta", tmp_path / "out", ends(b"a", b"b"))


CHILD = """
import sys
from pathlib import Path
from edgeml import delta
base, packed, out, old, new, length = sys.argv[1:]
def peak():  # not ru_maxrss, which a child takes over from its parent
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
before = peak()
delta.apply(Path(base), Path(packed), Path(out), delta.Expected(old, new, int(length)))
print((peak() - before) << 10, 'numpy' in sys.modules)
"""


def test_applying_takes_memory_that_does_not_grow_with_the_file(tmp_path):
    size = 48 << 20
    base = noise(1 << 20) * (size >> 20)
    target = base[:-1] + b"\0"
    data = made(tmp_path, base, target)
    (tmp_path / "delta").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *(str(tmp_path / name) for name in ("base", "delta", "out")),
         digest_of(base), digest_of(target), str(size)],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    grown, numpy = done.stdout.split()
    assert int(grown) < 16 << 20
    assert numpy == "False"
    assert (tmp_path / "out").stat().st_size == size
