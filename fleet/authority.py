"""The fleet's certificate authority: the key that names devices and servers.

Decides what a certificate says: EC P-256, common name and SAN, what it may be used for, how long it lives. The
authority is made once, all of it or nothing, beside the keys that sign releases and apart from them: whoever has it can
pretend to be a device, not make devices run anything. Who gets a certificate is decided in `admission`.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgeml import atomic, keypair
from edgeml.errors import ConfigError

KEY: Final = "ca.key"
CERTIFICATE: Final = "ca.pem"
AUTHORITY_LIFE_DAYS: Final = 20 * 365
SERVER_LIFE_DAYS: Final = 397
REVOCATIONS_LIFE_DAYS: Final = 10 * 365
"""A list that had expired would keep every device out; it is written anew with every revocation and every start."""
BACKDATED_MS: Final = 5 * 60_000
"""A device's clock may be this far behind at its first contact."""
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Authority:
    """The loaded authority."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        """Its certificate."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its certificate: what a device checks at first contact."""
        return keypair.certificate_fingerprint(self.pem)


def ensure(directory: Path, now_ms: int) -> Authority:
    """Load the authority, or make it if there is none.

    Args:
        directory: gets `ca.key` (0600) and `ca.pem`.
        now_ms: wall time.

    Raises:
        ConfigError: Its files cannot be used.
        StorageError: The disk refused.
    """
    if not directory.exists():
        _create(directory, now_ms)
    return load(directory)


def load(directory: Path) -> Authority:
    """Load the authority.

    Raises:
        ConfigError: It is missing, or its files cannot be used.
    """
    hint = "restore the folder from a backup; devices trust no other"
    try:
        key = load_pem_private_key((directory / KEY).read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((directory / CERTIFICATE).read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(
            f"this fleet has no certificate authority in {directory}",
            hint="set ports in [tls] of fleet.toml and run `edgeml fleet serve`, which makes it",
        ) from error
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"cannot use the certificate authority in {directory}: {error}", hint=hint
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"key and certificate in {directory} do not belong together", hint=hint)
    return Authority(key, certificate)


def issue_device(
    authority: Authority, csr: x509.CertificateSigningRequest, device: str, now_ms: int, life_ms: int
) -> str:
    """Sign a device's certificate: its name, client authentication only. Returns PEM."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"urn:edgeml:device:{device}")]
    builder = _builder(device, csr.public_key(), (now_ms - BACKDATED_MS, now_ms + life_ms))
    return _leaf(authority, builder, names, ExtendedKeyUsageOID.CLIENT_AUTH)


def issue_server(authority: Authority, names: Iterable[str], now_ms: int) -> bytes:
    """Make a key and a certificate for the fleet's servers. Returns key, certificate and the authority's, in PEM."""
    key_pem = keypair.generate()
    found = list(dict.fromkeys(names))
    builder = _builder(
        found[0],
        keypair.load_key(key_pem).public_key(),
        (now_ms - BACKDATED_MS, now_ms + SERVER_LIFE_DAYS * _DAY_MS),
    )
    pem = _leaf(authority, builder, [_general_name(name) for name in found], ExtendedKeyUsageOID.SERVER_AUTH)
    return key_pem + pem.encode() + authority.pem.encode()


def revocations(authority: Authority, serials: Iterable[str], now_ms: int) -> bytes:
    """Sign the list of serial numbers that are worth nothing any more. Returns PEM."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(_time(now_ms - BACKDATED_MS))
        .next_update(_time(now_ms + REVOCATIONS_LIFE_DAYS * _DAY_MS))
        .add_extension(x509.CRLNumber(now_ms), critical=False)
    )
    for serial in serials:
        revoked = (
            x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(_time(now_ms))
        )
        builder = builder.add_revoked_certificate(revoked.build())
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _create(directory: Path, now_ms: int) -> None:
    key_pem = keypair.generate()
    key = keypair.load_key(key_pem)
    life = (now_ms - BACKDATED_MS, now_ms + AUTHORITY_LIFE_DAYS * _DAY_MS)
    certificate = (
        _builder("edgeml fleet", key.public_key(), life)
        .issuer_name(_name("edgeml fleet"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    unfinished: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        atomic.write_bytes(unfinished / KEY, key_pem)
        atomic.write_bytes(unfinished / CERTIFICATE, certificate.public_bytes(Encoding.PEM), mode=0o644)
        unfinished.rename(directory)
        unfinished = None
        atomic.sync_directory(directory.parent)
    except OSError as error:
        raise atomic.storage_error(error, directory) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def _builder(common_name: str, key: object, life_ms: tuple[int, int]) -> x509.CertificateBuilder:
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(life_ms[0]))
        .not_valid_after(_time(life_ms[1]))
    )


def _leaf(
    authority: Authority,
    builder: x509.CertificateBuilder,
    names: list[x509.GeneralName],
    use: x509.ObjectIdentifier,
) -> str:
    signed = (
        builder.issuer_name(authority.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
        )
        .sign(authority.key, hashes.SHA256())
    )
    return signed.public_bytes(Encoding.PEM).decode()


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _time(at_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at_ms // 1000, dt.UTC)
