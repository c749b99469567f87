"""Which deltas a release is published with.

Decides from which earlier releases (those a device most likely has), and when a delta is worth a blob. The format is
`edgeml.delta`'s, whether a device uses one the device's business. A delta is a convenience: where one cannot be made,
the release is published without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from edgeml import atomic
from edgeml.bundle import Bundle
from edgeml.delta import pieces
from edgeml.ids import Digest, ReleaseId, digest_of, parse_release
from edgeml.manifest import Manifest
from edgeml.trustfacts import SignedDelta, SignedTarget

logger = logging.getLogger(__name__)

BASES_MAX: Final = 3
TARGET_BYTES_MAX: Final = 64 << 20
"""Longer bundles get no deltas: one is made at about 1.3 MB/s, and publishing must not take hours."""
WORTH_FRACTION: Final = 0.5
"""A delta of this fraction of the bundle or more does not pay: blobs are kept for ever, and devices copy and add."""
_READABLE: Final = 0o644


def bases(manifest: Manifest, releases: Sequence[SignedTarget]) -> tuple[SignedTarget, ...]:
    """Choose what to make deltas from: the same variant of the newest other releases of the model, newest first."""
    own: ReleaseId = manifest.release
    fitting = [
        one
        for one in releases
        if one.facts.release != own
        and parse_release(one.facts.release)[0] == manifest.model
        and one.facts.variant == manifest.variant
    ]
    fitting.sort(key=lambda one: -one.facts.release_counter)
    return tuple(fitting[:BASES_MAX])


def make(
    path: Path, releases: Sequence[SignedTarget], blob_path: Callable[[Digest], Path]
) -> tuple[SignedDelta, ...]:
    """Make and store the deltas worth having to a bundle that is not published yet.

    Args:
        path: the bundle.
        releases: what is published.
        blob_path: where a blob lies.

    Raises:
        ArtifactError, ConfigError: It is no bundle.
        StorageError: The disk refused.
    """
    with Bundle(path) as bundle:
        manifest = bundle.manifest
    if path.stat().st_size > TARGET_BYTES_MAX:
        logger.info("%s is longer than %d bytes and gets no deltas", path.name, TARGET_BYTES_MAX)
        return ()
    if any(one.path == manifest.target for one in releases):
        return ()
    made = []
    for base in bases(manifest, releases):
        delta = _short(blob_path(base.digest), path)
        if delta is None:
            continue
        digest = digest_of(delta)
        atomic.write_bytes(blob_path(digest), delta, mode=_READABLE)
        made.append(SignedDelta(base.digest, digest, len(delta)))
    return tuple(made)


def _short(base: Path, target: Path) -> bytes | None:
    """Return the delta, or nothing if it does not pay; one that grows too long is given up."""
    most_bytes = target.stat().st_size * WORTH_FRACTION
    delta = bytearray()
    try:
        for piece in pieces(base, target):
            delta += piece
            if len(delta) >= most_bytes:
                return None
    except OSError as error:
        logger.warning("no delta from %s: %s", base.name, error.strerror)
        return None
    return bytes(delta)
