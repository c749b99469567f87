"""Claims, requests and certificates in the database.

Decides how they are stored, found and revoked. Who is let in is decided in `admission`.
"""

from __future__ import annotations

from typing import Final

import msgspec
import sqlalchemy as sa

from edgeml.identity import Standing

from .identity_schema import certificates, claims, requests
from .store import upsert

APPROVED: Final = "approved"
"""Standing of a request that an operator let in, until its certificate is issued."""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A right to be enrolled, once."""

    token_sha256: str
    profile: str
    device: str
    created_at_ms: int
    expires_at_ms: int
    used_by: str | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A device that waits for an operator. `standing` is `pending`, `approved` or `denied`."""

    key_fingerprint: str
    device: str
    profile: str
    standing: str
    asked_at_ms: int
    origin: str


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate that was issued."""

    serial: str
    device: str
    key_fingerprint: str
    not_after_ms: int
    pem: str
    revoked_at_ms: int | None = None


def save_claim(connection: sa.Connection, claim: Claim) -> None:
    """Store a claim, or that it was used."""
    upsert(connection, claims, msgspec.structs.asdict(claim))


def load_claim(connection: sa.Connection, token_sha256: str) -> Claim | None:
    """Find a claim by the hash of its token."""
    row = connection.execute(sa.select(claims).where(claims.c.token_sha256 == token_sha256)).one_or_none()
    return Claim(**row._mapping) if row else None  # noqa: SLF001  # SQLAlchemy's documented name


def save_request(connection: sa.Connection, request: Request) -> None:
    """Store a request, or what was decided of it."""
    upsert(connection, requests, msgspec.structs.asdict(request))


def load_requests(connection: sa.Connection) -> tuple[Request, ...]:
    """Load every request, oldest first."""
    rows = connection.execute(sa.select(requests).order_by(requests.c.asked_at_ms))
    return tuple(Request(**row._mapping) for row in rows)  # noqa: SLF001


def load_request(connection: sa.Connection, key_fingerprint: str) -> Request | None:
    """Find the request of a key."""
    found = connection.execute(
        sa.select(requests).where(requests.c.key_fingerprint == key_fingerprint)
    ).one_or_none()
    return Request(**found._mapping) if found else None  # noqa: SLF001


def forget_requests(connection: sa.Connection, before_ms: int) -> None:
    """Drop requests that were made before a time."""
    connection.execute(requests.delete().where(requests.c.asked_at_ms < before_ms))


def forget_request(connection: sa.Connection, key_fingerprint: str) -> None:
    """Drop the request of a key: it has got what it asked for."""
    connection.execute(requests.delete().where(requests.c.key_fingerprint == key_fingerprint))


def forget_requests_of(connection: sa.Connection, device: str) -> None:
    """Drop what waits or was approved for a name; what was denied stays denied."""
    connection.execute(
        requests.delete().where(
            requests.c.device == device, requests.c.standing.in_((Standing.PENDING.value, APPROVED))
        )
    )


def save_certificate(connection: sa.Connection, certificate: Certificate) -> None:
    """Store a certificate."""
    upsert(connection, certificates, msgspec.structs.asdict(certificate))


def newest_of_key(connection: sa.Connection, device: str, key_fingerprint: str) -> Certificate | None:
    """Find the certificate of a key that lives longest and is not revoked."""
    statement = (
        sa.select(certificates)
        .where(
            certificates.c.device == device,
            certificates.c.key_fingerprint == key_fingerprint,
            certificates.c.revoked_at_ms.is_(None),
        )
        .order_by(certificates.c.not_after_ms.desc())
    )
    row = connection.execute(statement).first()
    return Certificate(**row._mapping) if row else None  # noqa: SLF001


def is_valid(connection: sa.Connection, device: str, serial: str) -> bool:
    """Tell whether this certificate was issued to this device and not revoked."""
    statement = sa.select(certificates.c.serial).where(
        certificates.c.serial == serial,
        certificates.c.device == device,
        certificates.c.revoked_at_ms.is_(None),
    )
    return connection.execute(statement).first() is not None


def revoke_all(connection: sa.Connection, device: str, now_ms: int) -> int:
    """Revoke every certificate of a device; return how many there were."""
    statement = (
        certificates.update()
        .where(certificates.c.device == device, certificates.c.revoked_at_ms.is_(None))
        .values(revoked_at_ms=now_ms)
    )
    return connection.execute(statement).rowcount


def revoked_serials(connection: sa.Connection, now_ms: int) -> tuple[str, ...]:
    """Serial numbers that are revoked and would be valid otherwise."""
    statement = sa.select(certificates.c.serial).where(
        certificates.c.revoked_at_ms.is_not(None), certificates.c.not_after_ms > now_ms
    )
    return tuple(connection.scalars(statement))
