"""Gets a signed bundle by the shortest way: a delta to a bundle that is on the device, or in full.

Decides which delta is used, that a cut one is resumed and a bad one is never asked for again, and when the bundle is
fetched in full instead (`edgeml.download`). Nothing here is trusted: a delta must have its signed digest before it is
unpacked, and what it gives must have the bundle's. Which deltas exist is the fleet's business, the policy the
deployment's, retrying the agent's.
"""

from __future__ import annotations

import logging
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

from . import atomic, delta
from .delta import Expected
from .download import Fetched, Progress, fetch
from .errors import ArtifactError, BudgetError, DigestMismatchError, PermanentTransferError, TransferError
from .ids import digest_of_file, is_digest
from .source import CountedSource, Source
from .trustfacts import SignedDelta, SignedTarget
from .twin import FullDownload

logger = logging.getLogger(__name__)

_BAD: Final = ".bad"
"""Ending of the file with the digests of the deltas to a bundle that proved wrong."""


def choose(
    target: SignedTarget, installed: AbstractSet[str], bad: AbstractSet[str], left_bytes: int
) -> SignedDelta | None:
    """Choose the smallest delta that can be used; none if the bundle itself takes less.

    Args:
        target: the bundle wanted.
        installed: digests of the bundles on the device.
        bad: digests of deltas that were tried and were wrong.
        left_bytes: what is left to fetch of the bundle itself.
    """
    usable = [
        one
        for one in target.facts.deltas
        if one.base_sha256 in installed
        and is_digest(one.sha256)
        and one.sha256 not in bad
        and 0 < one.length_bytes < left_bytes
    ]
    return min(usable, key=lambda one: (one.length_bytes, one.sha256), default=None)


def obtain(
    source: Source,
    target: SignedTarget,
    directory: Path,
    full_download: FullDownload = FullDownload.ALWAYS,
    progress: Progress = lambda _done, _all: None,
) -> Fetched:
    """Get a target into `directory`, where the device's other bundles lie, resuming what an earlier call left there.

    Raises:
        BudgetError: No delta can be used, and the policy forbids to fetch the bundle in full.
        PermanentTransferError: The peer will never serve what is needed.
        TransferError: Transport failed; what came is kept, call again.
        DigestMismatchError, ArtifactError: The bundle was fetched in full, and is not what is signed.
        StorageError: The disk refused.
    """
    counted = CountedSource(source)
    complete = directory / f"{target.digest}.edgeml"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        is_there = complete.exists() and digest_of_file(complete) == target.digest
        if not is_there and not _rebuild(counted, target, directory, full_download, progress):
            fetch(counted, target, directory, progress)
        for leftover in _leftovers(target, directory):
            leftover.unlink(missing_ok=True)
    except OSError as error:
        raise atomic.storage_error(error, complete) from error
    return Fetched(complete, counted.received_bytes)


def _rebuild(
    source: Source, target: SignedTarget, directory: Path, full_download: FullDownload, progress: Progress
) -> bool:
    """Make the bundle from a delta; tell whether that was possible, if it may be fetched in full instead."""
    marks = directory / f"{target.digest}{_BAD}"
    bad = _marked(marks)
    left_bytes = target.length_bytes
    partial = directory / f"{target.digest}.part"
    if full_download is FullDownload.ALWAYS and partial.exists():
        left_bytes -= partial.stat().st_size
    installed = {path.stem for path in directory.glob("*.edgeml")}
    while (chosen := choose(target, installed, bad, left_bytes)) is not None:
        try:
            _apply(_fetch_delta(source, chosen, directory, progress), chosen, target, directory)
        except PermanentTransferError as error:
            if full_download is FullDownload.NEVER:
                raise
            logger.warning("a delta to %s cannot be fetched: %s", target.path, error.message)
            return False
        except ArtifactError as error:
            logger.warning("a delta to %s cannot be used: %s", target.path, error.message)
            bad |= {chosen.sha256}
            atomic.write_bytes(marks, "\n".join(sorted(bad)).encode())
        else:
            return True
    if full_download is FullDownload.NEVER:
        raise BudgetError(
            f"{target.path} takes {target.length_bytes} bytes in full, which this deployment forbids; it has "
            f"{len(target.facts.deltas)} deltas, of which {len(bad)} proved wrong and no other fits what is installed",
            hint="give the device a release that a delta begins with, or allow full downloads",
            budget=0, observed=target.length_bytes, unit="bytes",
        )  # fmt: skip
    return False


def _fetch_delta(source: Source, wanted: SignedDelta, directory: Path, progress: Progress) -> Path:
    """Fetch a delta, or the rest of it, and check it.

    Raises:
        TransferError: It was cut, and what came is kept; or what was kept is damaged, and it is gone.
        DigestMismatchError: The peer sends another one.
    """
    path = directory / f"{wanted.sha256}.delta"
    with path.open("ab") as file:
        kept = file.tell()
        if kept < wanted.length_bytes:
            with source.blob(wanted.sha256, kept) as stream:
                skip = kept - stream.offset
                for piece in stream.pieces:
                    dropped = min(skip, len(piece))
                    skip -= dropped
                    # One byte more than signed is enough to see that it is not the signed one.
                    file.write(piece[dropped : dropped + wanted.length_bytes + 1 - file.tell()])
                    progress(file.tell(), wanted.length_bytes)
                    if file.tell() > wanted.length_bytes:
                        break
    if path.stat().st_size == wanted.length_bytes and digest_of_file(path) == wanted.sha256:
        return path
    path.unlink()
    if kept:
        # The peer may be innocent: what an earlier attempt left was never checked.
        raise TransferError(f"what was kept of the delta {wanted.sha256[:12]}… is damaged, or its rest is")
    raise DigestMismatchError(f"the delta {wanted.sha256[:12]}… is not the signed one")


def _apply(packed: Path, chosen: SignedDelta, target: SignedTarget, directory: Path) -> None:
    out = directory / f"{target.digest}.rebuilt"
    ends = Expected(chosen.base_sha256, target.digest, target.length_bytes)
    delta.apply(directory / f"{chosen.base_sha256}.edgeml", packed, out, ends)
    out.replace(directory / f"{target.digest}.edgeml")
    atomic.sync_directory(directory)


def _marked(marks: Path) -> frozenset[str]:
    return frozenset(marks.read_text("ascii", "replace").split()) if marks.exists() else frozenset()


def _leftovers(target: SignedTarget, directory: Path) -> list[Path]:
    """What attempts to get the bundle may have left."""
    own = [directory / f"{target.digest}{ending}" for ending in (".part", ".chunks", ".rebuilt", _BAD)]
    return own + [directory / f"{one.sha256}.delta" for one in target.facts.deltas if is_digest(one.sha256)]
