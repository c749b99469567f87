"""Who becomes a device of the fleet, by a claim or by an operator's word, and who gets a new certificate.

Decides the rules: a claim is good once, for one key, until it expires; the name in the signing request is the name that
is certified; a name that is taken needs a claim for that very name, and then the certificates of before are revoked.
The same request again gets the same answer, so that a device whose power went may ask again. Transport is
`identity_api`'s business, what a certificate says `authority`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
import sqlalchemy as sa
from cryptography.x509 import CertificateSigningRequest

from edgeml import keypair
from edgeml.errors import ConfigError, TrustError
from edgeml.identity import EnrolAnswer, EnrolRequest, Invitation, Settings, Standing
from edgeml.ids import DeviceId, is_name, parse_name
from edgeml.topics import CONTROLLER_USER

from . import authority, broker, devices, identities, tls_files
from .authority import Authority
from .config import FleetConfig, FleetHome
from .devices import Enrolment
from .enroll import trust_anchor
from .identities import APPROVED, Certificate, Claim, Request
from .store import Store
from .tokens import NO_TOKEN, new_token, token_hash

REQUESTS_MAX: Final = 1000
"""Devices that may wait for an operator; anybody who reaches the port can ask."""
REQUESTS_PER_ORIGIN_MAX: Final = 50
"""So that one party does not use up all places; a site behind one address may have so many devices wait."""
REQUEST_LIFE_MS: Final = 7 * 86_400_000
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Admission:
    """The fleet, as it lets devices in."""

    home: FleetHome
    config: FleetConfig
    store: Store
    authority: Authority

    def invite(self, profile: str, device: str, life_ms: int, now_ms: int) -> Invitation:
        """Make a claim; its token is stored nowhere, only a hash.

        Args:
            profile: kind of hardware of the device.
            device: its name; empty: any that is not taken.
            life_ms: how long the claim may be used.
            now_ms: wall time.

        Raises:
            ConfigError: The name is not valid, or the fleet has no TLS listener.
        """
        if not self.config.tls.http_port:
            raise ConfigError(
                "this fleet has no TLS listener",
                hint="set broker_port (say 18883) and http_port (say 18443) in [tls] of fleet.toml, and serve it",
            )
        if device:
            parse_name(device, "device")
        token = new_token()
        made = Claim(
            token_sha256=token_hash(token),
            profile=profile,
            device=device,
            created_at_ms=now_ms,
            expires_at_ms=now_ms + life_ms,
        )
        with self.store.write() as connection:
            identities.save_claim(connection, made)
        return Invitation(
            self.config.devices.host, self.config.tls.http_port, self.authority.fingerprint, token
        )

    def enrol(self, request: EnrolRequest, origin: str, now_ms: int) -> EnrolAnswer:
        """Answer a device that asks to be enrolled.

        Args:
            request: what it asks.
            origin: where from, as `peer.origin_of` names it.
            now_ms: wall time.

        Raises:
            TrustError: The request is not sound, or its claim is worth nothing.
            ConfigError: The name or profile is not valid, or the name is taken.
            StorageError: The disk refused.
        """
        csr = keypair.read_request(request.csr)
        device = DeviceId(parse_name(request.device, "device"))
        if keypair.common_name(csr.subject) != device:
            raise TrustError(
                f"the signing request is not for {device}", hint="enrol with the device's own name"
            )
        if device == CONTROLLER_USER:
            raise ConfigError(f"no device may be called {CONTROLLER_USER!r}", hint="choose another name")
        fingerprint = keypair.key_fingerprint(csr)
        with self.store.write() as connection:
            issued = identities.newest_of_key(connection, device, fingerprint)
            known = devices.load(connection, device)
            if issued is not None and known is not None and issued.not_after_ms > now_ms:
                return self._answer(issued.pem, known.profile)
            if not request.claim:
                standing, profile = self._by_operator(connection, request, (fingerprint, origin), now_ms)
                if standing is not Standing.ENROLLED:
                    return EnrolAnswer(standing=standing)
            else:
                profile = _use_claim(connection, request, fingerprint, now_ms)
            revoked = self._register(connection, device, profile, now_ms)
            pem = self._issue(connection, csr, device, now_ms)
            # Used up: who is removed later has to ask anew.
            identities.forget_request(connection, fingerprint)
        if revoked:
            broker.end_connections(self.home)
        return self._answer(pem, profile)

    def renew(self, device: str, serial: str, csr_pem: str, now_ms: int) -> str:
        """Give a device, known by its certificate, one of a new key. Returns PEM.

        Raises:
            TrustError: The certificate is revoked, or the request is not sound or for another name.
        """
        csr = keypair.read_request(csr_pem)
        if keypair.common_name(csr.subject) != device:
            raise TrustError(f"the signing request is not for {device}")
        with self.store.write() as connection:
            if not identities.is_valid(connection, device, serial):
                raise TrustError(
                    f"the certificate of {device} was revoked",
                    hint="enrol the device again, with a new claim",
                )
            issued = identities.newest_of_key(connection, device, keypair.key_fingerprint(csr))
            if issued is not None and keypair.facts(issued.pem).renew_at_ms > now_ms:
                return issued.pem
            return self._issue(connection, csr, DeviceId(device), now_ms)

    def _by_operator(
        self, connection: sa.Connection, request: EnrolRequest, source: tuple[str, str], now_ms: int
    ) -> tuple[Standing, str]:
        """Look what an operator has decided; a new request waits. `source`: the key's fingerprint and the origin."""
        fingerprint, origin = source
        identities.forget_requests(connection, now_ms - REQUEST_LIFE_MS)
        waiting = identities.load_request(connection, fingerprint)
        if waiting is not None and waiting.device == request.device:
            if waiting.standing != APPROVED:
                return Standing(waiting.standing), waiting.profile
            if devices.load(connection, DeviceId(request.device)) is not None:
                raise _taken(request.device)
            return Standing.ENROLLED, waiting.profile
        if not is_name(request.profile):
            raise ConfigError("a request without claim must name a profile", hint="give --profile")
        if devices.load(connection, DeviceId(request.device)) is not None:
            raise _taken(request.device)
        asked = identities.load_requests(connection)
        if len(asked) >= REQUESTS_MAX:
            raise TrustError("too many devices wait for an operator", hint="use a claim")
        if sum(one.origin == origin for one in asked) >= REQUESTS_PER_ORIGIN_MAX:
            raise TrustError(
                f"{REQUESTS_PER_ORIGIN_MAX} devices of your address have asked within a week",
                hint="use a claim, or have some approved",
            )
        identities.save_request(
            connection,
            Request(
                key_fingerprint=fingerprint,
                device=request.device,
                profile=request.profile,
                standing=Standing.PENDING.value,
                asked_at_ms=now_ms,
                origin=origin,
            ),
        )
        return Standing.PENDING, request.profile

    def _register(self, connection: sa.Connection, device: DeviceId, profile: str, now_ms: int) -> bool:
        """Make it a device, or one that starts anew; return whether certificates were revoked."""
        if devices.load(connection, device) is not None:
            revoked = identities.revoke_all(connection, device, now_ms) > 0
            tls_files.write_revocations(self.home, self.authority, connection, now_ms)
            return revoked
        enrolment = Enrolment(
            device=device,
            tenant=self.config.tenant,
            profile=profile,
            token_sha256=NO_TOKEN,
            broker_hash=NO_TOKEN,
            enrolled_at_ms=now_ms,
        )
        devices.enrol(connection, enrolment)
        broker.write_logins(self.home, devices.logins(connection))
        return False

    def _issue(
        self, connection: sa.Connection, csr: CertificateSigningRequest, device: DeviceId, now_ms: int
    ) -> str:
        life_ms = int(self.config.tls.device_days * _DAY_MS)
        pem = authority.issue_device(self.authority, csr, device, now_ms, life_ms)
        said = keypair.facts(pem)
        identities.save_certificate(
            connection,
            Certificate(
                serial=said.serial,
                device=device,
                key_fingerprint=said.key_fingerprint,
                not_after_ms=said.not_after_ms,
                pem=pem,
            ),
        )
        return pem

    def _answer(self, pem: str, profile: str) -> EnrolAnswer:
        config = self.config
        settings = Settings(
            tenant=config.tenant,
            profile=profile,
            broker_host=config.devices.host,
            broker_port=config.tls.broker_port,
            blobs_url=f"https://{_bracketed(config.devices.host)}:{config.tls.http_port}",
        )
        root = trust_anchor(self.home).decode()
        return EnrolAnswer(standing=Standing.ENROLLED, certificate=pem, root=root, settings=settings)


def decide(store: Store, which: str, standing: str) -> Request:
    """Approve or deny the request of a device's name or of (the beginning of) a key's fingerprint.

    Raises:
        ConfigError: None waits under that name, or several do.
    """
    asked = which.lower().replace(":", "")
    with store.write() as connection:
        waiting = [
            one for one in identities.load_requests(connection) if one.standing == Standing.PENDING.value
        ]
        found = [
            one
            for one in waiting
            if one.device == which or (len(asked) >= 8 and one.key_fingerprint.startswith(asked))
        ]
        if not found:
            raise ConfigError(
                f"no request of {which} waits", hint="`edgeml fleet device pending` shows those that do"
            )
        if len(found) > 1:
            raise ConfigError(
                f"{len(found)} keys ask to be {which}", hint="name the fingerprint that the device printed"
            )
        if standing == APPROVED and devices.load(connection, DeviceId(found[0].device)) is not None:
            raise _taken(found[0].device)
        decided = msgspec.structs.replace(found[0], standing=standing)
        identities.save_request(connection, decided)
    return decided


def _use_claim(connection: sa.Connection, request: EnrolRequest, fingerprint: str, now_ms: int) -> str:
    """Use up a claim; return its profile."""
    hint = "make a new one with `edgeml fleet claim create`"
    claim = identities.load_claim(connection, token_hash(request.claim))
    if claim is None:
        raise TrustError("the fleet knows no such claim", hint=hint)
    if claim.expires_at_ms <= now_ms:
        raise TrustError("the claim has expired", hint=hint)
    if claim.used_by is not None:
        raise TrustError("the claim was used already", hint=hint)
    if claim.device and claim.device != request.device:
        raise TrustError(f"the claim is for {claim.device}, not for {request.device}", hint=hint)
    if not claim.device and devices.load(connection, DeviceId(request.device)) is not None:
        raise _taken(request.device)
    identities.save_claim(connection, msgspec.structs.replace(claim, used_by=fingerprint))
    return claim.profile


def _taken(device: str) -> ConfigError:
    return ConfigError(
        f"device {device} exists already",
        hint=f"enrol it again with a claim of `edgeml fleet claim create --device {device}`, or use another name",
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
