"""Who is at the other end of a TLS connection.

Decides how a name is read from a certificate that the TLS layer has verified, and which addresses count as one origin.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any, Final

IPV6_SITE_BITS: Final = 64
"""Whoever has one address has this network full of them."""


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


def origin_of(address: str) -> str:
    """Name what one party surely has to itself: an IPv4 address, or an IPv6 network.

    >>> origin_of("192.0.2.7"), origin_of("2001:db8::7"), origin_of("::ffff:192.0.2.7")
    ('192.0.2.7', '2001:db8::/64', '192.0.2.7')
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, IPV6_SITE_BITS), strict=False))
