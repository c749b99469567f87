"""What a device and its fleet say to each other before the device has a name: enrolment and renewal.

Decides the messages, their limits, and how an invitation (`host:port#token#fingerprint`) is written. Keys and
certificates are made and read in `edgeml.keypair`; who is let in is the fleet's decision.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

import msgspec

from .errors import ConfigError

MESSAGE_BYTES_MAX: Final = 64 << 10
"""A request or an answer of this size is refused. The largest part is the root metadata, about 3 KiB."""
CA_PATH: Final = "/identity/ca"
ENROL_PATH: Final = "/identity/enrol"
RENEW_PATH: Final = "/identity/renew"
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HINT: Final = (
    "write host:port#token#fingerprint as `edgeml fleet claim create` printed it, or host:port#fingerprint"
)


class Standing(enum.Enum):
    """How a request to be enrolled stands."""

    ENROLLED = "enrolled"
    PENDING = "pending"
    DENIED = "denied"


class EnrolRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A device asks to be enrolled. The same request again gets the same answer."""

    device: str
    profile: str = ""
    """Its kind of hardware; a claim token names it, too, and then that counts."""
    csr: str
    """Certificate signing request in PEM; its common name is `device`."""
    claim: str = ""
    """The claim token; empty: an operator is asked."""


class RenewRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A device asks for a certificate of a new key. Who asks is known from the certificate it connects with."""

    csr: str


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a device must know of its fleet."""

    tenant: str
    profile: str
    broker_host: str
    broker_port: int
    blobs_url: str


class EnrolAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How the request stands; the rest only if it is enrolled."""

    standing: Standing
    certificate: str = ""
    """The device's certificate in PEM."""
    root: str = ""
    """Signed root metadata, the JSON text of `root.json`."""
    settings: Settings | None = None


class RenewAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A new certificate in PEM."""

    certificate: str


@dataclass(frozen=True, slots=True)
class Invitation:
    """Where a device finds its fleet and how it knows that it is the right one."""

    host: str
    port: int
    fingerprint: str
    """SHA-256 of the fleet's CA certificate (DER), 64 hex digits."""
    token: str = ""

    def __repr__(self) -> str:
        """Leave the token out: this may reach a log."""
        return f"Invitation({self.host}:{self.port}#{self.fingerprint[:12]}…)"

    @property
    def text(self) -> str:
        """The invitation as people copy it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return "#".join(part for part in (f"{host}:{self.port}", self.token, self.fingerprint) if part)


def parse_invitation(text: str) -> Invitation:
    """Read `host:port#token#fingerprint` or `host:port#fingerprint`.

    Raises:
        ConfigError: It is neither.

    >>> parse_invitation("fleet.lan:18443#abc#" + "0" * 64).port
    18443
    """
    address, *rest = text.strip().split("#")
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if len(rest) not in {1, 2} or not colon or not host or not port.isascii() or not port.isdecimal():
        raise ConfigError("this is no invitation of a fleet", hint=_HINT)
    fingerprint = rest[-1].lower().replace(":", "")
    if not _FINGERPRINT.fullmatch(fingerprint) or not 1 <= int(port) <= 65535:
        raise ConfigError("the invitation's port or fingerprint is not valid", hint=_HINT)
    token = rest[0] if len(rest) == 2 else ""
    if len(rest) == 2 and not token:
        raise ConfigError("the invitation's token is empty", hint=_HINT)
    return Invitation(host, int(port), fingerprint, token)


def invitation_of(argument: str, claim: str) -> Invitation:
    """Put an invitation together from a command line, which others on the machine can read, and a claim that came apart.

    Args:
        argument: an invitation with or without its token; empty if `claim` is a whole one.
        claim: a whole invitation, or its token alone; empty: none.

    Raises:
        ConfigError: They are no invitation, or contradict each other.

    >>> invitation_of("fleet.lan:18443#" + "0" * 64, "abc").token
    'abc'
    """
    claim = claim.strip()
    if not claim:
        return parse_invitation(argument)
    if "#" in claim:
        if argument and parse_invitation(argument) != parse_invitation(claim):
            raise ConfigError(
                "the claim is another invitation than the one named", hint="leave one of them out"
            )
        return parse_invitation(claim)
    named = parse_invitation(argument)
    if named.token and named.token != claim:
        raise ConfigError("there are two claim tokens", hint="leave the one on the command line out")
    return Invitation(named.host, named.port, named.fingerprint, claim)
