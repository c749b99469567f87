"""Fetches a signed bundle, chunk by chunk, and resumes where it was cut.

Decides what is kept between attempts: whole chunks that have their signed digest, synced to disk one by one, and what
had come of the next one, written as it comes, so that a link that is cut and a process that is killed more than once a
chunk get on too. A power cut or a flipped bit costs at most one chunk. A peer that ignores ranges, sends too much or sends something else
cannot do harm: every chunk is checked, and the whole file once more at the end. Retrying and budgets are the agent's
business.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from . import atomic
from .errors import ArtifactError, DigestMismatchError, TransferError
from .ids import Digest, digest_of, digest_of_file
from .source import Source, Stream
from .trust import SignedTarget

CHUNK_BYTES_MIN: Final = 4 << 10
CHUNK_BYTES_MAX: Final = 16 << 20
Progress = Callable[[int, int], None]
"""Called with (verified bytes, all bytes)."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A complete, verified bundle."""

    path: Path
    received_bytes: int
    """Bytes that came over the network in this call."""


def chunk_list(path: Path, chunk_bytes: int) -> bytes:
    """Digests of a file's chunks, 32 bytes each, in order.

    Raises:
        OSError: The file cannot be read.
    """
    digests = []
    with path.open("rb") as file:
        while chunk := file.read(chunk_bytes):
            digests.append(hashlib.sha256(chunk).digest())
    return b"".join(digests)


def fetch(
    source: Source, target: SignedTarget, directory: Path, progress: Progress = lambda _done, _all: None
) -> Fetched:
    """Fetch a target into `directory`, resuming what an earlier call left there.

    Returns the path of the complete file, named by its digest. A file already complete is only hashed.

    Raises:
        TransferError: Transport failed; what was verified so far is kept, call again.
        PermanentTransferError: The peer will never serve it.
        DigestMismatchError: The peer sends something else.
        ArtifactError: The signed chunk sizes make no sense.
        StorageError: The disk refused.
    """
    complete = directory / f"{target.digest}.edgeml"
    partial = directory / f"{target.digest}.part"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if complete.exists() and digest_of_file(complete) == target.digest:
            return Fetched(complete, 0)
        size = target.facts.chunk_bytes
        if not CHUNK_BYTES_MIN <= size <= CHUNK_BYTES_MAX:
            raise ArtifactError(
                f"signed chunks of {size} bytes are outside {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX}"
            )
        digests, received = _chunk_digests(source, target, directory)
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            job = _Job(target, digests, progress)
            kept = _kept(file, job)
            progress(kept.verified_bytes, target.length_bytes)
            if kept.verified_bytes < target.length_bytes:
                with source.blob(target.digest, kept.verified_bytes + len(kept.tail)) as stream:
                    received += _receive(stream, file, kept, job)
            # A chunk that an attempt wrote before it was killed was perhaps never synced.
            os.fsync(file.fileno())
        if digest_of_file(partial) != target.digest:
            partial.unlink()
            raise DigestMismatchError(
                f"{target.path} has right chunks and a wrong whole", hint="the release was published wrongly"
            )
        partial.replace(complete)
        (directory / f"{target.digest}.chunks").unlink(missing_ok=True)
        atomic.sync_directory(directory)
    except OSError as error:
        raise atomic.storage_error(error, partial) from error
    return Fetched(complete, received)


@dataclass(frozen=True, slots=True)
class _Job:
    target: SignedTarget
    digests: tuple[bytes, ...]
    progress: Progress

    def chunk_length(self, index: int) -> int:
        size = self.target.facts.chunk_bytes
        return min(size, self.target.length_bytes - index * size)


def _chunk_digests(source: Source, target: SignedTarget, directory: Path) -> tuple[tuple[bytes, ...], int]:
    """Return the signed chunk digests and how many bytes they took to fetch."""
    path = directory / f"{target.digest}.chunks"
    count = -(-target.length_bytes // target.facts.chunk_bytes)
    wanted: Digest = target.facts.chunks_sha256
    data = path.read_bytes() if path.exists() else b""
    received = 0
    if digest_of(data) != wanted:
        data = b""
        with source.blob(wanted, 0) as stream:
            for piece in stream.pieces:
                data += piece
                if len(data) > count * 32:
                    raise DigestMismatchError(f"the chunk list of {target.path} is longer than signed")
        received = len(data)
        if digest_of(data) != wanted:
            # Cut or forged: the length tells them apart, and only the cut one is worth another try.
            if len(data) < count * 32:
                raise TransferError(f"the chunk list of {target.path} was cut")
            raise DigestMismatchError(f"the chunk list of {target.path} is not the signed one")
        atomic.write_bytes(path, data)
    if len(data) != count * 32:
        raise ArtifactError(f"the signed chunk list of {target.path} does not fit its length")
    return tuple(data[i : i + 32] for i in range(0, len(data), 32)), received


@dataclass(frozen=True, slots=True)
class _Kept:
    """What an earlier attempt left: whole chunks, and an unverified beginning of the next one."""

    verified_bytes: int
    tail: bytes


def _kept(file: BinaryIO, job: _Job) -> _Kept:
    """Check what is already there, cut off the rest, and stand at the end of what is verified."""
    verified, tail = 0, b""
    for index, expected in enumerate(job.digests):
        chunk = file.read(job.chunk_length(index))
        if hashlib.sha256(chunk).digest() != expected:
            tail = chunk if len(chunk) < job.chunk_length(index) else b""
            break
        verified += len(chunk)
    file.truncate(verified + len(tail))
    file.seek(verified)
    return _Kept(verified, tail)


def _receive(stream: Stream, file: BinaryIO, kept: _Kept, job: _Job) -> int:
    """Append what `stream` brings, and check it chunk by chunk; return the bytes received.

    Raises:
        TransferError: The stream ended early; what came of the next chunk is kept, unverified.
        DigestMismatchError: A chunk is not the signed one.
    """
    pending = bytearray(kept.tail)
    received = 0
    file.seek(kept.verified_bytes + len(kept.tail))
    skip = kept.verified_bytes + len(kept.tail) - stream.offset
    verified = kept.verified_bytes
    index = first = kept.verified_bytes // job.target.facts.chunk_bytes
    for piece in stream.pieces:
        received += len(piece)
        dropped = min(skip, len(piece))
        skip -= dropped
        # Unverified, and not synced: what matters is that it is there if this process is killed.
        room = job.target.length_bytes - verified - len(pending)
        file.write(piece[dropped : dropped + room])
        file.flush()
        pending += piece[dropped:]
        while index < len(job.digests) and len(pending) >= job.chunk_length(index):
            chunk = bytes(pending[: job.chunk_length(index)])
            del pending[: len(chunk)]
            if hashlib.sha256(chunk).digest() != job.digests[index]:
                file.truncate(index * job.target.facts.chunk_bytes)
                if index == first and kept.tail:
                    # The peer may be innocent: the beginning was kept unverified.
                    raise TransferError(f"what was kept of chunk {index} of {job.target.path} is damaged")
                raise DigestMismatchError(
                    f"chunk {index} of {job.target.path} is not the signed one",
                    hint="the server or a proxy changes content",
                )
            os.fsync(file.fileno())
            verified += len(chunk)
            index += 1
            job.progress(verified, job.target.length_bytes)
        if index == len(job.digests):
            if pending:
                raise DigestMismatchError(f"the server sends more of {job.target.path} than signed")
            return received
    raise TransferError(f"the connection ended early: {job.target.path} has {job.target.length_bytes} bytes")
