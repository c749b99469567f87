"""The tables of claims, requests and certificates.

Decides what is stored under which key. Of a claim token only its hash is stored. Reading and writing them is the
business of `identities`.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Table, Text

from .schema import metadata

claims = Table(
    "claims",
    metadata,
    Column("token_sha256", Text, primary_key=True),
    Column("profile", Text, nullable=False),
    # The device that it is for; empty: a new one of any name.
    Column("device", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    # Fingerprint of the key that it was used for.
    Column("used_by", Text),
)

requests = Table(
    "enrolment_requests",
    metadata,
    Column("key_fingerprint", Text, primary_key=True),
    Column("device", Text, nullable=False),
    Column("profile", Text, nullable=False),
    Column("standing", Text, nullable=False),
    Column("asked_at_ms", BigInteger, nullable=False),
    # Where it came from: an address, or of IPv6 the network that one customer gets.
    Column("origin", Text, nullable=False, index=True),
)

certificates = Table(
    "certificates",
    metadata,
    Column("serial", Text, primary_key=True),
    Column("device", Text, nullable=False, index=True),
    Column("key_fingerprint", Text, nullable=False, index=True),
    Column("not_after_ms", BigInteger, nullable=False),
    Column("pem", Text, nullable=False),
    Column("revoked_at_ms", BigInteger),
)

TABLES = (claims, requests, certificates)
