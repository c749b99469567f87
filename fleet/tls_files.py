"""What the TLS listeners of the fleet read: certificates and revocations.

Decides the names in the server's certificate, when it is made anew, and where the files lie. What they say is decided
in `authority`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from edgeml import atomic, keypair
from edgeml.errors import TrustError

from . import authority, identities
from .authority import Authority
from .config import FleetConfig, FleetHome
from .store import Store

REVOCATIONS: Final = "revoked.pem"


def server_path(home: FleetHome) -> Path:
    """The servers' key and certificate, in one file so that one is never without the other."""
    return home.tls / "server.pem"


def authority_path(home: FleetHome) -> Path:
    """The authority's certificate."""
    return home.tls / "ca.pem"


def revocations_path(home: FleetHome) -> Path:
    """Serial numbers that are worth nothing any more."""
    return home.tls / REVOCATIONS


def prepare(home: FleetHome, config: FleetConfig, store: Store, now_ms: int) -> Authority:
    """Write everything that the listeners read; the server's certificate only if it is due.

    Raises:
        ConfigError: The authority cannot be used.
        StorageError: The disk refused.
    """
    made = authority.ensure(home.authority, now_ms)
    atomic.write_bytes(authority_path(home), made.pem.encode(), mode=0o644)
    names = (config.devices.host, config.tls.host, *config.tls.names, "localhost", "127.0.0.1")
    if not _server_is_good(server_path(home), made, names, now_ms):
        atomic.write_bytes(server_path(home), authority.issue_server(made, names, now_ms))
    with store.read() as connection:
        write_revocations(home, made, connection, now_ms)
    return made


def write_revocations(home: FleetHome, made: Authority, connection: sa.Connection, now_ms: int) -> None:
    """Write the list of revoked certificates; brokers read it when they start.

    Raises:
        StorageError: The disk refused.
    """
    serials = identities.revoked_serials(connection, now_ms)
    atomic.write_bytes(revocations_path(home), authority.revocations(made, serials, now_ms), mode=0o644)


def _server_is_good(path: Path, made: Authority, names: tuple[str, ...], now_ms: int) -> bool:
    """Tell whether the certificate that is there can go on: ours, of these names, and not old."""
    with suppress(OSError, TrustError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        data = path.read_bytes()
        certificate = keypair.load_certificate(data)
        certificate.verify_directly_issued_by(made.certificate)
        said = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = {str(name) for name in said.get_values_for_type(x509.DNSName)}
        found |= {str(address) for address in said.get_values_for_type(x509.IPAddress)}
        return found == set(names) and keypair.facts(data).renew_at_ms > now_ms
    return False
