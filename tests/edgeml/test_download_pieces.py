"""Fetching from scripted sources: what no honest HTTP library would do, and any cuts at all."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml import download
from edgeml.download import fetch
from edgeml.errors import (
    ArtifactError,
    DigestMismatchError,
    TransferError,
)
from edgeml.ids import Digest, digest_of
from edgeml.manifest import RuntimeFamily
from edgeml.source import Stream
from edgeml.trustfacts import SignedFacts, SignedTarget

CHUNK = 256 << 10


def signed(data: bytes, chunks: bytes, chunk_bytes: int = CHUNK) -> SignedTarget:
    facts = SignedFacts("m@1", "v", 1, ("p",), RuntimeFamily.ONNX, chunk_bytes, digest_of(chunks))
    return SignedTarget("m/1/v.edgeml", digest_of(data), len(data), facts)


def chunks_of(data: bytes, size: int = CHUNK) -> bytes:
    return b"".join(hashlib.sha256(data[i : i + size]).digest() for i in range(0, len(data), size))


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


class Pieces:
    """A source that gives exactly the pieces it is told to."""

    def __init__(
        self, chunks: bytes, cuts: list[int] | None = None, data: bytes = b"", piece: int = 7000
    ) -> None:
        self.chunks, self.data, self.cuts, self.piece = chunks, data, cuts or [], piece
        self.sent = 0
        self.asked: list[Digest] = []

    def metadata(self, name: str) -> Iterator[bytes]:
        raise AssertionError(name)

    @contextmanager
    def blob(self, digest: Digest, offset: int) -> Iterator[Stream]:
        self.asked.append(digest)
        if digest == digest_of(self.data):
            limit = offset + self.cuts.pop() if self.cuts else len(self.data)
            yield Stream(offset, self._count(self.data[offset:limit]))
        else:
            yield Stream(0, iter([self.chunks[offset:]]))

    def _count(self, data: bytes) -> Iterator[bytes]:
        for position in range(0, len(data), self.piece):
            self.sent += len(data[position : position + self.piece])
            yield data[position : position + self.piece]


@settings(max_examples=60)
@given(
    size=st.integers(1, 60_000),
    chunk_bytes=st.sampled_from([4096, 8192, 16384]),
    cuts=st.lists(st.integers(0, 9000), max_size=30),
    piece=st.integers(1, 9000),
)
def test_any_cuts_lose_nothing_that_came(
    tmp_path_factory: pytest.TempPathFactory, size: int, chunk_bytes: int, cuts: list[int], piece: int
) -> None:
    data = noise(size)
    script = Pieces(chunks_of(data, chunk_bytes), cuts, data, piece)
    directory = tmp_path_factory.mktemp("store")
    for _ in range(len(cuts) + 1):
        try:
            path = fetch(script, signed(data, script.chunks, chunk_bytes), directory).path
            break
        except TransferError:
            continue
    assert path.read_bytes() == data
    assert script.sent == size


def test_chunk_list_that_was_cut_is_worth_another_try(tmp_path: Path) -> None:
    data = noise(3 * CHUNK)
    target = signed(data, chunks_of(data))
    with pytest.raises(TransferError):
        fetch(Pieces(chunks_of(data)[:40], data=data), target, tmp_path)
    assert fetch(Pieces(chunks_of(data), data=data), target, tmp_path).path.read_bytes() == data


@pytest.mark.parametrize(
    "damage", [lambda chunks: chunks[:-1] + b"?", lambda chunks: chunks + b"x", lambda chunks: chunks * 99]
)
def test_chunk_list_that_is_not_the_signed_one_is_refused(tmp_path: Path, damage) -> None:
    data = noise(2 * CHUNK)
    with pytest.raises(DigestMismatchError):
        fetch(Pieces(damage(chunks_of(data)), data=data), signed(data, chunks_of(data)), tmp_path)


def test_signed_chunk_list_that_does_not_fit_the_length_is_refused(tmp_path: Path) -> None:
    data = noise(2 * CHUNK)
    chunks = chunks_of(data)[:32]
    with pytest.raises((ArtifactError, TransferError)):
        fetch(Pieces(chunks, data=data), signed(data, chunks), tmp_path)


def test_right_chunks_of_a_wrong_whole_are_refused_and_removed(tmp_path: Path) -> None:
    data = noise(CHUNK)
    target = signed(data, chunks_of(data))
    other = SignedTarget(target.path, digest_of(b"other"), target.length_bytes, target.facts)

    class Both(Pieces):
        @contextmanager
        def blob(self, digest: Digest, offset: int) -> Iterator[Stream]:
            yield Stream(0, iter([self.chunks if digest == digest_of(self.chunks) else self.data]))

    with pytest.raises(DigestMismatchError):
        fetch(Both(chunks_of(data), data=data), other, tmp_path)
    assert not list(tmp_path.glob("*.part"))


def test_one_piece_longer_than_signed_is_refused(tmp_path: Path) -> None:
    data = noise(5000)

    class More(Pieces):
        @contextmanager
        def blob(self, digest: Digest, offset: int) -> Iterator[Stream]:
            yield Stream(0, iter([self.chunks if digest == digest_of(self.chunks) else self.data + b"more"]))

    with pytest.raises(DigestMismatchError, match="more"):
        fetch(More(chunks_of(data), data=data), signed(data, chunks_of(data)), tmp_path)


@pytest.mark.parametrize("chunk_bytes", [0, -1, 1024, 1 << 30])
def test_signed_chunk_size_out_of_limits_is_refused_before_anything_is_asked(
    tmp_path: Path, chunk_bytes: int
) -> None:
    script = Pieces(b"", data=b"x")
    facts = SignedFacts("m@1", "v", 1, ("p",), RuntimeFamily.ONNX, chunk_bytes, digest_of(b""))
    with pytest.raises(ArtifactError):
        fetch(script, SignedTarget("m/1/v.edgeml", digest_of(b"x"), 1, facts), tmp_path)
    assert script.asked == []


def test_limits_of_chunk_sizes_include_what_the_fleet_signs() -> None:
    from edgeml.trust import CHUNK_BYTES

    assert download.CHUNK_BYTES_MIN <= CHUNK_BYTES <= download.CHUNK_BYTES_MAX
