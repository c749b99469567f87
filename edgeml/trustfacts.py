"""What the fleet signs about a variant.

Types only, apart from `edgeml.trust` so that the agent's supervisor can keep them in its journal without loading
python-tuf and its cryptography (11 MB).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from .ids import Digest, ReleaseId
from .manifest import RuntimeFamily


class SignedDelta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A blob that makes the variant out of another bundle (`edgeml.delta`)."""

    base_sha256: Digest
    sha256: Digest
    length_bytes: int


class SignedFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the targets role signs about a variant besides its length and digest (TUF `custom`)."""

    release: ReleaseId
    variant: str
    release_counter: int
    """Grows with every release of a model; a device goes back only to its own previous slot."""
    profiles: tuple[str, ...]
    runtime: RuntimeFamily
    chunk_bytes: int
    chunks_sha256: Digest
    """Digest of the list of chunk digests (32 bytes each, in order), itself a blob."""
    deltas: tuple[SignedDelta, ...] = ()
    """A shorter way for devices that have another release. Left out where empty: metadata without it are read as before."""


@dataclass(frozen=True, slots=True)
class SignedTarget:
    """A variant that signed metadata allows."""

    path: str
    digest: Digest
    length_bytes: int
    facts: SignedFacts
