"""Offline delivery over ssh: a parcel into the storage of a device that can be logged in to.

Decides what is run there: `cat` for the trust anchor, and one shell line that unpacks an archive and lets the last file
appear under its name when all others are on the disk. The device needs sh and tar, the login the rights of the agent's
user. Everything else, keys and hosts above all, is ssh's own business.
"""

from __future__ import annotations

import io
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from edgeml import atomic
from edgeml.errors import ConfigError, LinkDownError, StorageError

from .flash import DESIRED, INBOX, ROOT, TRUST, Flashed, Parcel, pack

SSH_FAILED: Final = 255
"""What ssh ends with if it could not log in; anything else is the remote command's."""
TIMEOUT_S: Final = 3600.0
WORDS_MAX: Final = 300


@dataclass(frozen=True, slots=True)
class Login:
    """Where to: `host` as ssh takes it, the storage directory there, and the command that is ssh."""

    host: str
    storage: PurePosixPath
    command: tuple[str, ...] = ("ssh",)

    @classmethod
    def parse(cls, text: str, command: str = "ssh") -> Login | None:
        """Read `[user@]host:path`; None if it is none.

        >>> Login.parse("pi@cam-1:edgeml/state").storage
        PurePosixPath('edgeml/state')
        >>> Login.parse("/mnt/card/state") is None, Login.parse("-oProxyCommand=x:y") is None
        (True, True)
        """
        host, colon, path = text.partition(":")
        if not colon or not path or not host or "/" in host or host.startswith("-") or path.startswith("//"):
            return None
        return cls(host, PurePosixPath(path), tuple(shlex.split(command)))


def flash_ssh(
    bundle: Path, login: Login, repository: Path, now_ms: int, anchor: bytes | None = None
) -> Flashed:
    """Put a signed bundle into the storage of a device.

    Args:
        bundle: the .edgeml file.
        login: where to.
        repository: the fleet's repository with the signed metadata.
        now_ms: wall time, for expiry.
        anchor: root metadata that the device is to trust if it has none yet; None for the repository's newest.

    Raises:
        ConfigError: A path is missing, or there is no such command.
        TrustError: The bundle is not a signed release, or its metadata has expired.
        IncompatibleError: The device trusts another fleet.
        LinkDownError: ssh could not log in.
        StorageError: The device could not store it; nothing that it would try is left.
    """
    from edgeml.roots import read_roots

    roots = read_roots(repository)
    known = _run(login, f"cat {_quoted(login.storage / TRUST / ROOT)} 2>/dev/null || true")
    chosen = roots.choose(known or None, anchor, f"{login.host}:{login.storage}")
    with tempfile.TemporaryDirectory() as directory:
        trust = Path(directory) / TRUST
        atomic.write_bytes(trust / ROOT, chosen)
        parcel = pack(bundle, repository, trust, now_ms)
        archive = Path(directory) / "parcel.tar"
        with archive.open("wb") as file:
            _write_archive(parcel, file, with_anchor=not known)
        with archive.open("rb") as file:
            _run(login, _unpacking(login.storage, parcel.name), file)
    inbox = login.storage / INBOX / parcel.name
    return Flashed(parcel.target, f"{login.host}:{inbox}", root_installed=not known)


def _unpacking(storage: PurePosixPath, name: str) -> str:
    """One line for the shell of the device. `name` is hexadecimal."""
    inbox = f"{INBOX}/{name}"
    return (
        f"set -e; umask 077; mkdir -p {_quoted(storage)}; cd {_quoted(storage)}; tar -xf -; "
        # What waits there already needs the newer metadata too; names are in order, the timestamp's is the last.
        f'for other in {INBOX}/*/{DESIRED}; do [ -e "$other" ] || continue; '
        f'cp {inbox}/repository/metadata/*.json "$(dirname "$other")/repository/metadata/"; done; '
        f"sync; mv {inbox}/{DESIRED}.part {inbox}/{DESIRED}; sync"
    )


def _write_archive(parcel: Parcel, file: IO[bytes], *, with_anchor: bool) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        if with_anchor:
            _add(archive, PurePosixPath(TRUST) / ROOT, parcel.anchor)
        for relative, content in parcel.files:
            path = PurePosixPath(INBOX) / parcel.name / relative
            _add(archive, path.with_name(f"{DESIRED}.part") if path.name == DESIRED else path, content)


def _add(archive: tarfile.TarFile, name: PurePosixPath, content: Path | bytes) -> None:
    entry = tarfile.TarInfo(str(name))
    entry.mode = 0o600
    if isinstance(content, bytes):
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
        return
    entry.size = content.stat().st_size
    with content.open("rb") as file:
        archive.addfile(entry, file)


def _quoted(path: PurePosixPath) -> str:
    return shlex.quote(str(path))


def _run(login: Login, line: str, stdin: IO[bytes] | None = None) -> bytes:
    command: Sequence[str] = (*login.command, login.host, line)
    try:
        done = subprocess.run(
            command,
            stdin=stdin if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except OSError as error:
        raise ConfigError(
            f"cannot run {login.command[0]}: {error.strerror}", hint="install ssh, or give --ssh"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LinkDownError(f"{login.host} has not answered for {TIMEOUT_S:.0f} s") from error
    words = done.stderr.decode(errors="replace").strip()[-WORDS_MAX:]
    if done.returncode == SSH_FAILED:
        raise LinkDownError(f"cannot log in to {login.host}: {words}", hint=f"try: ssh {login.host}")
    if done.returncode:
        raise StorageError(
            f"{login.host} could not store it: {words or f'exit code {done.returncode}'}",
            hint="check the path, its owner and the space there",
        )
    return done.stdout
