"""Files that are either the old one or the new one, whatever happens in between.

Decides the order write, fsync, rename, fsync of the directory. Callers decide what is written where.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import ConfigError, EdgemlError, StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT}


def storage_error(error: OSError, path: Path) -> EdgemlError:
    """Say what the disk refused, with what to do."""
    if error.errno in _FULL:
        return StorageError(
            f"no space left for {path}", hint="free space on that file system and run it again"
        )
    if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
        return StorageError(
            f"cannot write {path}: {error.strerror}", hint="check the owner and the mount of that directory"
        )
    return StorageError(f"cannot write {path}: {error.strerror or error}", hint="check the disk")


def sync_directory(path: Path) -> None:
    """Make renames and creations in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make what was written to `path`, by whichever process, and its name in its directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(path.parent)


def check_place(path: Path) -> None:
    """Refuse a place that no file can take, before anything is done that is to be written there.

    Raises:
        ConfigError: Something that is no file is there, or above it.
        StorageError: Its directory must not be written to.
    """
    if path.exists() and not path.is_file():
        what = "a directory" if path.is_dir() else "no file that can be replaced"
        raise ConfigError(f"cannot write {path}: it is {what}", hint="name a file, as results/measured.json")
    above = next(one for one in path.absolute().parents if one.exists())
    if not above.is_dir():
        raise ConfigError(f"cannot write {path}: {above} is no directory", hint="name a file in a directory")
    if not os.access(above, os.W_OK | os.X_OK):
        raise storage_error(OSError(errno.EACCES, os.strerror(errno.EACCES)), path)


@contextmanager
def replacing(path: Path, *, mode: int = 0o600) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and takes its place, else it is removed.

    Raises:
        StorageError: The disk refused.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        temporary = name
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.chmod(mode)
        temporary.replace(path)
        temporary = None
        sync_directory(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def write_bytes(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by `data` atomically and durably.

    Raises:
        StorageError: The disk refused; the old file is untouched.
    """
    with replacing(path, mode=mode) as temporary, temporary.open("wb") as file:
        file.write(data)
