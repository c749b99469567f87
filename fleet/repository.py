"""The repository: signed metadata and content-addressed blobs in a directory that any web server or stick can carry.

Decides the order of writes (blobs, targets, snapshot, and the timestamp last, which alone makes the rest count), so that
a crash leaves what was published before or what is published now; the release counters; and how long signatures live.
Keys are `keys`' business. What a device accepts is decided in `edgeml.trust`, the layout in `edgeml.source`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Final

import msgspec
from securesystemslib.signer import Signer  # type: ignore[attr-defined]  # its documented face, not marked for export
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]  # its documented face, not marked for export
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edgeml import atomic
from edgeml.bundle import read_verified
from edgeml.clock import SystemClock
from edgeml.download import chunk_list
from edgeml.errors import ArtifactError, ConfigError, TrustError
from edgeml.ids import Digest, ReleaseId, digest_of, digest_of_file, parse_release
from edgeml.manifest import Manifest
from edgeml.trust import CHUNK_BYTES
from edgeml.trustfacts import SignedDelta, SignedFacts, SignedTarget

from . import deltas
from .keys import SNAPSHOT, TARGETS, TIMESTAMP, KeyRing
from .signing import Lifetimes, Role, check_signer, is_old, parsed, sign

LOCK_WAIT_S: Final = 30.0
_LOCK_POLL_S: Final = 0.05
_READABLE: Final = 0o644
"""What is signed is public: a web server of another user may serve it."""


@dataclass(frozen=True, slots=True)
class PublishedVariant:
    """A bundle that is published now."""

    target: SignedTarget
    is_new: bool
    """False if the very same bytes were published before."""


@dataclass(frozen=True, slots=True)
class Expiries:
    """When signatures end, in Unix milliseconds. The offline keys renew the first two."""

    root_at_ms: int
    targets_at_ms: int
    snapshot_at_ms: int
    timestamp_at_ms: int


@dataclass(frozen=True, slots=True)
class _State:
    """What is published: the newest root, and what the timestamp leads to."""

    root: Root
    targets: Targets
    snapshot: Snapshot
    timestamp: Timestamp


class Repository:
    """A repository in a directory. Any number may read; writers take turns."""

    def __init__(self, directory: Path, lifetimes: Lifetimes | None = None) -> None:
        self.directory = directory
        self._metadata = directory / "metadata"
        self._blobs = directory / "blobs" / "sha256"
        self._lifetimes = lifetimes or Lifetimes()
        self._cache: tuple[tuple[int, int], tuple[SignedTarget, ...]] | None = None

    def initialise(self, keys: KeyRing, now_ms: int | None = None) -> None:
        """Make an empty repository under these keys. Does nothing if that was done before.

        Args:
            keys: all four.
            now_ms: the present; the machine's clock by default.

        Raises:
            ConfigError: It belongs to other keys.
            StorageError: The disk refused.
        """
        now_ms = SystemClock().now_ms() if now_ms is None else now_ms
        with self._lock():
            root = self._metadata / "1.root.json"
            if root.exists() and root.read_bytes() != keys.anchor:
                raise ConfigError(
                    f"{self.directory} belongs to other keys", hint="use those, or name another directory"
                )
            self._make(self._blobs)
            atomic.write_bytes(root, keys.anchor, mode=_READABLE)
            if not (self._metadata / "timestamp.json").exists():
                state = _State(parsed(keys.anchor, Root, root).signed, Targets(), Snapshot(), Timestamp())
                state.targets.version = state.snapshot.version = state.timestamp.version = 0
                self._write_targets(state, keys.targets, now_ms)
                self._write_snapshot(state, keys.snapshot, now_ms)
                self._write_timestamp(state, keys.timestamp, now_ms)

    def publish(
        self,
        bundle_paths: Sequence[Path],
        targets_signer: Signer,
        snapshot_signer: Signer,
        timestamp_signer: Signer,
        now_ms: int,
    ) -> tuple[PublishedVariant, ...]:
        """Sign bundles and publish them together; publishing none renews the targets' signature if half its life is over.

        A release of a model gets a counter one above the highest of that model; further variants of a release, now or
        later, get the counter of the release.

        Raises:
            ArtifactError: A bundle is damaged, or another one was published under the same name.
            ConfigError: A bundle cannot be read, or a key is not this repository's.
            TrustError: The repository itself is not validly signed.
            StorageError: The disk refused; what was published before still counts.
        """
        # Before the lock: it takes long, and others have signatures to renew. What is published stays, so nothing ages.
        shortcuts = [deltas.make(path, self.releases(), self.blob_path) for path in bundle_paths]
        with self._lock():
            state = self._load()
            for role, signer in (
                (TARGETS, targets_signer),
                (SNAPSHOT, snapshot_signer),
                (TIMESTAMP, timestamp_signer),
            ):
                check_signer(state.root, role, signer)
            published = tuple(map(self._add, bundle_paths, repeat(state.targets), shortcuts))
            if any(one.is_new for one in published) or is_old(state.targets, self._lifetimes.targets, now_ms):
                self._write_targets(state, targets_signer, now_ms)
                self._write_snapshot(state, snapshot_signer, now_ms)
                self._write_timestamp(state, timestamp_signer, now_ms)
        return published

    def resign(self, now_ms: int, snapshot_signer: Signer, timestamp_signer: Signer) -> tuple[str, ...]:
        """Renew what has less than half of its life left; return the roles renewed.

        Raises:
            ConfigError: There is no repository, or a key is not its own.
            TrustError: It is not validly signed.
            StorageError: The disk refused; the old signatures still count.
        """
        with self._lock():
            state = self._load()
            check_signer(state.root, SNAPSHOT, snapshot_signer)
            check_signer(state.root, TIMESTAMP, timestamp_signer)
            if is_old(state.snapshot, self._lifetimes.snapshot, now_ms):
                self._write_snapshot(state, snapshot_signer, now_ms)
                self._write_timestamp(state, timestamp_signer, now_ms)
                return (SNAPSHOT, TIMESTAMP)
            if is_old(state.timestamp, self._lifetimes.timestamp, now_ms):
                self._write_timestamp(state, timestamp_signer, now_ms)
                return (TIMESTAMP,)
        return ()

    def releases(self) -> tuple[SignedTarget, ...]:
        """Every published variant, by model, counter and variant. Kept in memory until something else is published.

        Raises:
            ConfigError: There is no repository.
            TrustError: It is not validly signed.
        """
        try:
            status = (self._metadata / "timestamp.json").stat()
        except OSError as error:
            raise self._no_repository() from error
        key = (status.st_ino, status.st_mtime_ns)
        if self._cache is None or self._cache[0] != key:
            found = [_signed_target(target) for target in self._load().targets.targets.values()]
            found.sort(
                key=lambda one: (parse_release(one.facts.release)[0], one.facts.release_counter, one.path)
            )
            self._cache = (key, tuple(found))
        return self._cache[1]

    def variant_for(self, release: ReleaseId, profile: str) -> SignedTarget | None:
        """Find the variant of a release for a hardware profile: of several, the one made for the fewest profiles.

        Raises:
            ConfigError, TrustError: As `releases`.
        """
        fitting = [
            one for one in self.releases() if one.facts.release == release and profile in one.facts.profiles
        ]
        return min(fitting, key=lambda one: (len(one.facts.profiles), one.path), default=None)

    def expiries(self) -> Expiries:
        """When signatures end.

        Raises:
            ConfigError, TrustError: As `releases`.
        """
        state = self._load()
        return Expiries(
            *(
                round(one.expires.timestamp() * 1000)
                for one in (state.root, state.targets, state.snapshot, state.timestamp)
            )
        )

    def blob_path(self, digest: Digest) -> Path:
        """Where a blob lies."""
        return self._blobs / digest

    def _add(self, path: Path, targets: Targets, shortcuts: tuple[SignedDelta, ...]) -> PublishedVariant:
        """Store a bundle's blobs and put its facts into `targets`, which counts only once it is written."""
        try:
            digest = digest_of_file(path)
        except OSError as error:
            raise ConfigError(
                f"cannot read bundle {path}: {error.strerror}", hint="check the path"
            ) from error
        with read_verified(path, digest) as bundle:
            bundle.verify()
            manifest = bundle.manifest
        known = targets.targets.get(manifest.target)
        if known is not None:
            target = _signed_target(known)
            if target.digest != digest:
                raise ArtifactError(
                    f"{manifest.release} {manifest.variant} is already published with other content",
                    hint="choose another version; what devices may have installed is never replaced",
                )
            return PublishedVariant(target, is_new=False)
        chunks = self._store(path, digest)
        facts = SignedFacts(
            release=manifest.release,
            variant=manifest.variant,
            release_counter=_counter(manifest, targets),
            profiles=manifest.profiles,
            runtime=manifest.runtime,
            chunk_bytes=CHUNK_BYTES,
            chunks_sha256=chunks,
            deltas=shortcuts,
        )
        length = self.blob_path(digest).stat().st_size
        custom = {"custom": msgspec.to_builtins(facts)}
        targets.targets[manifest.target] = TargetFile(length, {"sha256": digest}, manifest.target, custom)
        return PublishedVariant(SignedTarget(manifest.target, digest, length, facts), is_new=True)

    def _store(self, path: Path, digest: Digest) -> Digest:
        """Copy a bundle to the blobs, with its list of chunks, whose digest is returned."""
        blob = self.blob_path(digest)
        if not (blob.exists() and digest_of_file(blob) == digest):
            with atomic.replacing(blob, mode=_READABLE) as temporary:
                shutil.copyfile(path, temporary)
                if digest_of_file(temporary) != digest:
                    raise ArtifactError(
                        f"{path.name} changed while it was read", hint="publish it again when it is complete"
                    )
        chunks = chunk_list(blob, CHUNK_BYTES)
        atomic.write_bytes(self.blob_path(digest_of(chunks)), chunks, mode=_READABLE)
        return digest_of(chunks)

    def _write_targets(self, state: _State, signer: Signer, now_ms: int) -> None:
        data = sign(state.targets, signer, now_ms, self._lifetimes.targets)
        atomic.write_bytes(self._metadata / f"{state.targets.version}.targets.json", data, mode=_READABLE)
        state.snapshot.meta["targets.json"] = MetaFile.from_data(state.targets.version, data, ["sha256"])

    def _write_snapshot(self, state: _State, signer: Signer, now_ms: int) -> None:
        data = sign(state.snapshot, signer, now_ms, self._lifetimes.snapshot)
        atomic.write_bytes(self._metadata / f"{state.snapshot.version}.snapshot.json", data, mode=_READABLE)
        state.timestamp.snapshot_meta = MetaFile.from_data(state.snapshot.version, data, ["sha256"])

    def _write_timestamp(self, state: _State, signer: Signer, now_ms: int) -> None:
        data = sign(state.timestamp, signer, now_ms, self._lifetimes.timestamp)
        atomic.write_bytes(self._metadata / "timestamp.json", data, mode=_READABLE)

    def _load(self) -> _State:
        """Read what is published, every signature checked; expiry is for devices to judge."""
        root = self._root()
        timestamp = self._signed(root, Timestamp, "timestamp.json", None)
        snapshot = self._signed(
            root, Snapshot, f"{timestamp.snapshot_meta.version}.snapshot.json", timestamp.snapshot_meta
        )
        meta = snapshot.meta["targets.json"]
        return _State(
            root, self._signed(root, Targets, f"{meta.version}.targets.json", meta), snapshot, timestamp
        )

    def _root(self) -> Root:
        path = self._metadata / "1.root.json"
        if not path.exists():
            raise self._no_repository()
        newest: Root | None = None
        while path.exists():
            metadata = parsed(path.read_bytes(), Root, path)
            if not metadata.signed.get_root_verification_result(
                newest, metadata.signed_bytes, metadata.signatures
            ):
                raise TrustError(f"{path} is not validly signed", hint="restore it from a backup")
            newest = metadata.signed
            path = self._metadata / f"{newest.version + 1}.root.json"
        assert newest is not None  # the first one exists
        return newest

    def _signed(self, root: Root, kind: type[Role], name: str, expected: MetaFile | None) -> Role:
        path = self._metadata / name
        try:
            data = path.read_bytes()
        except OSError as error:
            if expected is None:
                raise self._no_repository() from error
            raise TrustError(f"{path} is missing", hint="restore the repository from a backup") from error
        metadata = parsed(data, kind, path)
        try:
            if expected is not None:
                expected.verify_length_and_hashes(data)
            root.verify_delegate(kind.type, metadata.signed_bytes, metadata.signatures)
        except RepositoryError as error:
            raise TrustError(
                f"{path} is not validly signed: {error}", hint="restore the repository from a backup"
            ) from error
        return metadata.signed

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other writers out; the kernel lets go if this process dies."""
        self._make(self._metadata)
        path = self.directory / ".lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise atomic.storage_error(error, path) from error
        try:
            _acquire(descriptor, self.directory)
            yield
        finally:
            os.close(descriptor)

    def _make(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise atomic.storage_error(error, directory) from error

    def _no_repository(self) -> ConfigError:
        return ConfigError(
            f"there is no repository in {self.directory}", hint="make one with `edgeml keys init`"
        )


def _acquire(descriptor: int, directory: Path) -> None:
    until_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= until_s:
                raise ConfigError(
                    f"another process has been writing to {directory} for {LOCK_WAIT_S:.0f} s",
                    hint="wait for it, or stop it",
                ) from error
            time.sleep(_LOCK_POLL_S)
        else:
            return


def _counter(manifest: Manifest, targets: Targets) -> int:
    highest = 0
    for target in targets.targets.values():
        facts = _signed_target(target).facts
        if facts.release == manifest.release:
            return facts.release_counter
        if parse_release(facts.release)[0] == manifest.model:
            highest = max(highest, facts.release_counter)
    return highest + 1


def _signed_target(target: TargetFile) -> SignedTarget:
    try:
        facts = msgspec.convert(target.custom, SignedFacts)
    except msgspec.ValidationError as error:
        raise TrustError(f"what is signed about {target.path} is of another format: {error}") from error
    return SignedTarget(target.path, Digest(target.hashes["sha256"]), target.length, facts)
