"""Who is at the other end of a TLS connection.

Decides how a name is read from a certificate that the TLS layer has verified.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Peer:
    """A device, and the serial number (hex) of its certificate."""

    device: str
    serial: str


def read_peer(certificate: dict[str, Any] | None) -> Peer | None:
    """Read what `ssl` calls the peer's certificate; None if there is none, or its name is not plain."""
    if not certificate:
        return None
    names = [value for part in certificate["subject"] for key, value in part if key == "commonName"]
    return Peer(names[0], f"{int(certificate['serialNumber'], 16):x}") if len(names) == 1 else None
