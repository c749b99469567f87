"""The bundle: one variant in one file, read in place.

A zip of stored (uncompressed) members with fixed names. Decides the container: which names, which order, which
limits, and that equal content gives equal bytes. Nothing is ever extracted, so names cannot escape and sizes
cannot explode. Whether the file is the one that was signed is `edgeml.trust`'s business; each member is checked
against the manifest when it is read. Format: docs/bundle-format.md.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from . import manifest as manifest_format
from .atomic import replacing
from .errors import ArtifactError, ConfigError, DigestMismatchError, ManifestError
from .ids import Digest, digest_of, digest_of_file
from .manifest import GOLDEN, MANIFEST, MANIFEST_BYTES_MAX, MEMBERS, MONITOR, REPORT, FileEntry, Manifest

__all__ = [
    "BUNDLE_BYTES_MAX",
    "GOLDEN",
    "MANIFEST",
    "MEMBERS",
    "MONITOR",
    "REPORT",
    "Bundle",
    "read_verified",
    "write_bundle",
]

BUNDLE_BYTES_MAX: Final = 1 << 31
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_LOCAL_HEADER_BYTES: Final = 30
"""What precedes a member's name and content (APPNOTE.TXT 4.3.7)."""

_WHERE: Final = "give the .edgeml file that `edgeml convert` or `edgeml package` wrote"
_MODEL: Final = "it is a model: make a bundle of it with `edgeml package` or `edgeml convert`"
_TORCH: Final = "it is a model: make a bundle of it with `edgeml convert`"
_OTHERS: Final = {
    ".onnx": _MODEL, ".tflite": _MODEL, ".pt": _TORCH, ".pt2": _TORCH, ".npz": f"it holds arrays: {_WHERE}",
}  # fmt: skip
"""What people give for a bundle, by the ends of names, and what to do."""


class Bundle:
    """An open bundle. Use as a context manager.

    Raises:
        ConfigError: The file is missing or cannot be read.
        ArtifactError: It is no bundle: truncated, not a zip, other members, compressed, encrypted or overlapping.
        ManifestError: Its manifest is not valid.
        IncompatibleError: It is of a newer format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise ConfigError(
                f"cannot open bundle {path}: {error.strerror}", hint="check the path"
            ) from error
        try:
            self._zip = self._checked_zip()
            self.manifest: Manifest = manifest_format.decode(self._raw(MANIFEST))
            self._check_entries()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def has(self, name: str) -> bool:
        """Tell whether the bundle has this member."""
        return self.manifest.file(name) is not None

    def read(self, name: str) -> bytes:
        """Return a member's bytes, checked against the manifest.

        Raises:
            ArtifactError: No such member.
            DigestMismatchError: Its bytes are not the ones the manifest states.
        """
        entry = self.manifest.file(name)
        if entry is None:
            raise ArtifactError(f"{self.path.name} has no {name}")
        data = self._raw(name)
        if len(data) != entry.length_bytes or digest_of(data) != entry.sha256:
            raise DigestMismatchError(
                f"{name} in {self.path.name} is not what its manifest states", hint="get the bundle again"
            )
        return data

    def model(self) -> bytes:
        """Return the model file's bytes, checked."""
        return self.read(self.manifest.runtime.model_member)

    def verify(self) -> None:
        """Check every member against the manifest.

        Raises:
            DigestMismatchError: One differs.
        """
        for entry in self.manifest.files:
            self.read(entry.name)

    def _checked_zip(self) -> zipfile.ZipFile:
        size = self._file.seek(0, io.SEEK_END)
        if size > BUNDLE_BYTES_MAX:
            raise ArtifactError(
                f"{self.path.name} has {size} bytes, more than a bundle may have ({BUNDLE_BYTES_MAX})"
            )
        try:
            archive = zipfile.ZipFile(self._file)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ArtifactError(
                f"{self.path.name} is not a bundle: {error}",
                hint=_OTHERS.get(self.path.suffix.lower(), "it may be truncated; get it again"),
            ) from error
        infos = archive.infolist()
        names = [info.filename for info in infos]
        if len(set(names)) != len(names) or not set(names) <= set(MEMBERS) or MANIFEST not in names:
            raise ArtifactError(
                f"{self.path.name} is not a bundle: it holds {', '.join(sorted(names)[:8]) or 'nothing'}",
                hint=_OTHERS.get(self.path.suffix.lower(), _WHERE),
            )
        end = 0
        for info in sorted(infos, key=lambda one: one.header_offset):
            stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
            if not stored or info.flag_bits & 0x1 or info.header_offset < end or info.file_size > size:
                raise ArtifactError(
                    f"{self.path.name}: member {info.filename} is compressed, encrypted or overlaps another"
                )
            end = info.header_offset + _LOCAL_HEADER_BYTES + len(info.filename) + info.file_size
        if archive.getinfo(MANIFEST).file_size > MANIFEST_BYTES_MAX:
            raise ManifestError(f"{self.path.name} has a manifest of more than {MANIFEST_BYTES_MAX} bytes")
        return archive

    def _raw(self, name: str) -> bytes:
        try:
            return self._zip.read(name)
        except (zipfile.BadZipFile, EOFError, OSError, KeyError, NotImplementedError) as error:
            raise ArtifactError(
                f"{name} in {self.path.name} cannot be read: {error}", hint="get the bundle again"
            ) from error

    def _check_entries(self) -> None:
        present = {
            info.filename: info.file_size for info in self._zip.infolist() if info.filename != MANIFEST
        }
        stated = {entry.name: entry.length_bytes for entry in self.manifest.files}
        if present != stated:
            raise ArtifactError(
                f"{self.path.name}: its members are not the ones its manifest lists",
                hint="get the bundle again",
            )


def write_bundle(path: Path, manifest: Manifest, members: Mapping[str, bytes]) -> Manifest:
    """Write a bundle atomically and return its manifest with `files` filled in.

    Equal manifests and members give equal bytes.

    Raises:
        ValueError: A member's name is not a bundle's.
        StorageError: The disk refused; nothing is left behind.
    """
    unknown = set(members) - set(MEMBERS[1:])
    if unknown:
        raise ValueError(f"no such bundle members: {sorted(unknown)}")
    names = [name for name in MEMBERS if name in members]
    entries = tuple(FileEntry(name, digest_of(members[name]), len(members[name])) for name in names)
    complete = msgspec.structs.replace(manifest, files=entries)
    with (
        replacing(path, mode=0o644) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name, data in [
            (MANIFEST, manifest_format.encode(complete)),
            *((name, members[name]) for name in names),
        ]:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
    return complete


def read_verified(path: Path, digest: Digest) -> Bundle:
    """Open a bundle whose whole file has this digest.

    Raises:
        DigestMismatchError: The file is another one.
        ArtifactError: As `Bundle`.
        ConfigError: The file cannot be read.
    """
    try:
        observed = digest_of_file(path)
    except OSError as error:
        raise ConfigError(f"cannot read bundle {path}: {error.strerror}", hint="check the path") from error
    if observed != digest:
        raise DigestMismatchError(
            f"{path.name} has digest {observed[:12]}…, signed metadata states {digest[:12]}…"
        )
    return Bundle(path)
