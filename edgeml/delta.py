"""The delta: what must be added to one bundle to get another.

Decides the format and who is subtracted from whom: members of the same name from each other, byte by byte, everything
else is carried as it is. Weights that moved a little leave small differences in the same places, which compress well.
A delta is a way to send less, never a reason to trust: the result is measured against the signed digest of the whole
bundle. Which deltas exist is the fleet's to decide, whether one is used `edgeml.rebuild`'s. Format:
docs/delta-format.md. Needs nothing but the standard library: bytes are added as the digits of large integers.
"""

from __future__ import annotations

import hashlib
import lzma
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from . import atomic
from .errors import ArtifactError, DigestMismatchError, IncompatibleError
from .ids import Digest, digest_of_file

MAGIC: Final = "edgemlΔ".encode()
VERSION: Final = 1
SEGMENTS_MAX: Final = 256
MEMORY_MAX_BYTES: Final = 16 << 20
"""What unpacking may take. A writer's dictionary of 8 MiB needs about 9."""

_HEADER: Final = struct.Struct("<8sHH32s32sQ")
_SEGMENT: Final = struct.Struct("<QQ")
_LITERAL: Final = (1 << 64) - 1
_BLOCK_BYTES: Final = 64 << 10
_HIGH: Final = int.from_bytes(b"\x80" * _BLOCK_BYTES, "little")
_LOW: Final = int.from_bytes(b"\x7f" * _BLOCK_BYTES, "little")
_FILTERS: Final = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 8 << 20}]
_LOCAL_HEADER: Final = struct.Struct("<26xHH")


@dataclass(frozen=True, slots=True)
class Expected:
    """What is signed about a delta's two ends."""

    base: Digest
    target: Digest
    target_length_bytes: int


@dataclass(frozen=True, slots=True)
class _Segment:
    """The next `length_bytes` of the target: literal, or a difference from the base at this offset."""

    length_bytes: int
    base_offset: int = _LITERAL


@dataclass(frozen=True, slots=True)
class _Range:
    offset: int
    length_bytes: int


_Map = mmap.mmap | bytes


def pieces(base: Path, target: Path) -> Iterator[bytes]:
    """Yield the delta from `base` to `target`, piece by piece, so that a caller can give up one that grows too long.

    The same two files give the same bytes, under the same liblzma. Takes memory that does not grow with the files.

    Raises:
        OSError: A file cannot be read.
    """
    with ExitStack() as stack:
        old, new = _mapped(base, stack), _mapped(target, stack)
        segments = _segments(old, _members(base, len(old)), new, _members(target, len(new)))
        ends = bytes.fromhex(digest_of_file(base)), bytes.fromhex(digest_of_file(target))
        yield _HEADER.pack(MAGIC, VERSION, len(segments), *ends, len(new))
        yield b"".join(_SEGMENT.pack(one.length_bytes, one.base_offset) for one in segments)
        packer = lzma.LZMACompressor(lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=_FILTERS)
        at = 0
        for segment in segments:
            for block in _differences(old, new, at, segment):
                if packed := packer.compress(block):
                    yield packed
            at += segment.length_bytes
        yield packer.flush()


def make(base: Path, target: Path) -> bytes:
    """Return the delta from `base` to `target`.

    Raises:
        OSError: A file cannot be read.
    """
    return b"".join(pieces(base, target))


def apply(base: Path, delta: Path, out: Path, expected: Expected) -> None:
    """Write to `out` what `delta` makes of `base`, synced; on any failure `out` is gone.

    Takes memory that does not grow with the files, and never writes more than the expected length, whatever the delta
    holds.

    Raises:
        ArtifactError: It is no delta, is damaged, or unpacks to another length or with too much memory.
        IncompatibleError: It is of a newer format.
        DigestMismatchError: It is for another base or target, the base is damaged, or the result is another one.
        StorageError: The disk refused.
    """
    try:
        with delta.open("rb") as packed, base.open("rb") as old:
            segments = _read_head(packed, os.fstat(old.fileno()).st_size, expected)
            if digest_of_file(base) != expected.base:
                raise DigestMismatchError("the bundle that the delta is to be added to is damaged")
            try:
                with out.open("wb") as file:
                    _write(file, _Unpacker(packed, expected.target_length_bytes), old, segments, expected)
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException:
                out.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise atomic.storage_error(error, out) from error


def _read_head(file: BinaryIO, base_length: int, expected: Expected) -> list[_Segment]:
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(MAGIC):
        raise ArtifactError("not a delta: it does not begin as one", hint="get the bundle in full")
    _magic, version, count, base, target, length = _HEADER.unpack(head)
    if version != VERSION:
        raise IncompatibleError(f"a delta of format {version}, this edgeml reads {VERSION}")
    if (base.hex(), target.hex(), length) != (expected.base, expected.target, expected.target_length_bytes):
        raise DigestMismatchError(
            f"a delta from {base.hex()[:12]}… to {target.hex()[:12]}… ({length} bytes), "
            f"signed metadata state {expected.base[:12]}… to {expected.target[:12]}… ({expected.target_length_bytes})"
        )
    table = file.read(count * _SEGMENT.size) if count <= SEGMENTS_MAX else b""
    if len(table) != count * _SEGMENT.size:
        raise ArtifactError(f"a damaged delta: its table of {count} segments is cut or too long")
    segments = [_Segment(*one) for one in _SEGMENT.iter_unpack(table)]
    for one in segments:
        ends = 0 if one.base_offset == _LITERAL else one.base_offset + one.length_bytes
        if not one.length_bytes or ends > base_length:
            raise ArtifactError("a damaged delta: a segment is empty or lies outside the base")
    if sum(one.length_bytes for one in segments) != length:
        raise ArtifactError("a damaged delta: its segments do not add up to the target's length")
    return segments


class _Unpacker:
    """Hands out unpacked bytes in the amounts asked for, and never unpacks more than `left`."""

    def __init__(self, file: BinaryIO, left: int) -> None:
        self._file = file
        self._left = left
        self._lzma = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_MAX_BYTES)

    def take(self, count: int) -> bytes:
        """Return exactly `count` bytes."""
        taken = b""
        while len(taken) < count:
            taken += self._next(count - len(taken))
        self._left -= count
        return taken

    def finish(self) -> None:
        """Check that nothing follows."""
        while not self._lzma.eof:
            if self._next(1):
                raise ArtifactError("a damaged delta: it unpacks to more than the target's length")
        if self._lzma.unused_data or self._file.read(1):
            raise ArtifactError("a damaged delta: something follows its end")

    def _next(self, count: int) -> bytes:
        if self._lzma.eof:
            raise ArtifactError("a damaged delta: it unpacks to less than the target's length")
        packed = self._file.read(_BLOCK_BYTES) if self._lzma.needs_input else b""
        if self._lzma.needs_input and not packed:
            raise ArtifactError("a damaged delta: it is cut")
        try:
            return self._lzma.decompress(packed, count)
        except lzma.LZMAError as error:
            raise ArtifactError(f"a damaged delta: {error}") from error
        except MemoryError as error:
            raise ArtifactError("a delta that takes more memory to unpack than this device has") from error


def _write(
    file: BinaryIO, unpacker: _Unpacker, old: BinaryIO, segments: list[_Segment], expected: Expected
) -> None:
    sha256 = hashlib.sha256()
    for segment in segments:
        subtracted = segment.base_offset != _LITERAL
        if subtracted:
            old.seek(segment.base_offset)
        for length in _blocks(segment.length_bytes):
            block = unpacker.take(length)
            if subtracted:
                below = old.read(length)
                if len(below) != length:
                    raise DigestMismatchError("the bundle that the delta is to be added to was cut meanwhile")
                block = _added(below, block)
            sha256.update(block)
            file.write(block)
    unpacker.finish()
    if sha256.hexdigest() != expected.target:
        raise DigestMismatchError("the delta does not give the signed bundle")


def _mapped(path: Path, stack: ExitStack) -> _Map:
    file = stack.enter_context(path.open("rb"))
    if not os.fstat(file.fileno()).st_size:
        return b""
    return stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _members(path: Path, length: int) -> dict[str, _Range]:
    """Where the content of each member lies; a file that is no archive is one member."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for info in archive.infolist():
                file.seek(info.header_offset)
                name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                begin = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
                found[info.filename] = _Range(begin, info.compress_size)
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError):
        return {"": _Range(0, length)}
    return found


def _segments(
    old: _Map, bases: dict[str, _Range], new: _Map, members: dict[str, _Range]
) -> tuple[_Segment, ...]:
    """Cover the target: its members as suits each best, what lies between them literally."""
    found: list[_Segment] = []
    at = 0
    for name, member in sorted(members.items(), key=lambda one: one[1].offset):
        ends = member.offset + member.length_bytes
        if not member.length_bytes or member.offset < at or ends > len(new) or len(found) > SEGMENTS_MAX - 4:
            continue
        found.append(_Segment(member.offset - at))
        base = bases.get(name)
        if base is None or base.offset + base.length_bytes > len(old):
            found.append(_Segment(member.length_bytes))
        else:
            found.extend(_best(old, base, new, member))
        at = ends
    found.append(_Segment(len(new) - at))
    return _joined(found)


def _best(old: _Map, base: _Range, new: _Map, member: _Range) -> tuple[_Segment, ...]:
    """Of all ways to write a member, the one that a quick compressor makes shortest; of equals, the simplest."""
    common = min(base.length_bytes, member.length_bytes)
    rest = _Segment(member.length_bytes - common)
    ways = [
        (_Segment(member.length_bytes),),
        (_Segment(common, base.offset), rest),
        (rest, _Segment(common, base.offset + base.length_bytes - common)),
    ]

    def length(way: tuple[_Segment, ...]) -> int:
        packer, total, at = zlib.compressobj(1), 0, member.offset
        for segment in way:
            total += sum(len(packer.compress(block)) for block in _differences(old, new, at, segment))
            at += segment.length_bytes
        return total + len(packer.flush())

    return min(ways if base.length_bytes != member.length_bytes else ways[:2], key=length)


def _joined(segments: list[_Segment]) -> tuple[_Segment, ...]:
    """The same without empty segments and with neighbouring literal ones as one."""
    found: list[_Segment] = []
    for one in segments:
        if not one.length_bytes:
            continue
        if found and found[-1].base_offset == one.base_offset == _LITERAL:
            found[-1] = _Segment(found[-1].length_bytes + one.length_bytes)
        else:
            found.append(one)
    return tuple(found)


def _blocks(length: int) -> Iterator[int]:
    """Lengths of the blocks that a segment is worked on in."""
    for at in range(0, length, _BLOCK_BYTES):
        yield min(_BLOCK_BYTES, length - at)


def _differences(old: _Map, new: _Map, at: int, segment: _Segment) -> Iterator[bytes]:
    base_at = segment.base_offset
    for length in _blocks(segment.length_bytes):
        block = new[at : at + length]
        at += length
        if segment.base_offset != _LITERAL:
            block = _subtracted(block, old[base_at : base_at + length])
            base_at += length
        yield block


def _added(a: bytes, b: bytes) -> bytes:
    """Sum of each pair of bytes, modulo 256.

    The upper bit of each byte is left out of the one large sum, so that no carry reaches the next byte, and put back.
    """
    x, y = int.from_bytes(a, "little"), int.from_bytes(b, "little")
    high, low = _masks(len(a))
    return (((x & low) + (y & low)) ^ ((x ^ y) & high)).to_bytes(len(a), "little")


def _subtracted(a: bytes, b: bytes) -> bytes:
    """Difference of each pair of bytes, modulo 256. The upper bits are lent, so that no byte borrows from the next."""
    x, y = int.from_bytes(a, "little"), int.from_bytes(b, "little")
    high, low = _masks(len(a))
    return (((x | high) - (y & low)) ^ ((x ^ y ^ high) & high)).to_bytes(len(a), "little")


def _masks(length: int) -> tuple[int, int]:
    unused = 8 * (_BLOCK_BYTES - length)
    return _HIGH >> unused, _LOW >> unused
