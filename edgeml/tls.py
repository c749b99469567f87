"""A device's side of TLS: its files, and the context that its connections are made with.

Decides TLS 1.2 at least, that the server must be certified by the fleet's own authority and no other, and that an
identity which others may read is refused. Key and certificate are in one file, so that one is never without the other.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the authority's certificate and the device's own key and certificate are."""

    authority: Path
    identity: Path


def authority_context(pem: str) -> ssl.SSLContext:
    """Make a context that trusts one authority only.

    Raises:
        ConfigError: It is no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            "the authority's certificate cannot be read", hint="enrol this device again"
        ) from error
    return context


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Make a context with which the device is known by its certificate.

    Raises:
        ConfigError: A file is missing, damaged, or the identity may be read by others.
    """
    try:
        context = authority_context(files.authority.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read {files.authority}: {error}", hint="`edgeml agent enroll` writes this file"
        ) from error
    load_identity(context, files.identity)
    return context


def load_identity(context: ssl.SSLContext, identity: Path) -> None:
    """Let new connections of a context use the key and certificate that are on disk now.

    Raises:
        ConfigError: The file is missing, damaged, or may be read by others.
    """
    check_private(identity)
    try:
        context.load_cert_chain(identity)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"cannot use the identity {identity}: {error}", hint="enrol this device again"
        ) from error


def check_private(path: Path) -> None:
    """Refuse a key file that others may read.

    Raises:
        ConfigError: They may, or it is not there.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", hint="`edgeml agent enroll` writes this file"
        ) from error
    if mode & 0o077:
        raise ConfigError(f"{path} may be read by others", hint=f"chmod 600 {path}")
