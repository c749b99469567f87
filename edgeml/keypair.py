"""A device's key pair, requests for certificates, and what a certificate says.

Decides the kind of key (EC P-256: every TLS library of the last ten years takes it), that a request's common name is
the device, and how keys are named to people (fingerprints). Who signs is decided in the fleet. Imports `cryptography`
(11 MB): never in the supervisor of a device, only in commands and short-lived children.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from .errors import ConfigError, TrustError


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What a certificate says, in the terms of this project."""

    device: str
    """Common name; empty if there is none."""
    serial: str
    """Serial number, lower-case hex without leading zeros."""
    not_before_ms: int
    not_after_ms: int
    key_fingerprint: str

    @property
    def renew_at_ms(self) -> int:
        """Two thirds of its life."""
        return self.not_before_ms + (self.not_after_ms - self.not_before_ms) * 2 // 3


def generate() -> bytes:
    """Make a private key; return it as PKCS#8 PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read a private key.

    Raises:
        ConfigError: It is none, or of another kind.
    """
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("the private key cannot be read", hint="enrol this device again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the private key is no elliptic curve key", hint="enrol this device again")
    return key


def request(key_pem: bytes, device: str) -> str:
    """Write a certificate signing request in PEM: the device's name, signed by its key.

    Raises:
        ConfigError: The key cannot be read.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(load_key(key_pem), hashes.SHA256())
    return made.public_bytes(Encoding.PEM).decode()


def read_request(pem: str) -> x509.CertificateSigningRequest:
    """Read a signing request, and check that who wrote it has the key.

    Raises:
        TrustError: It is none, of another kind of key, or wrongly signed.
    """
    try:
        csr = x509.load_pem_x509_csr(pem.encode())
        key = csr.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise TrustError("the signing request is not for an EC P-256 key")
        if not csr.is_signature_valid:
            raise TrustError("the signing request is not signed by its own key")
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise TrustError("the signing request cannot be read") from error
    return csr


def common_name(name: x509.Name) -> str:
    """Return the only common name; empty if there is none or several."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""


def key_fingerprint(of: x509.CertificateSigningRequest | x509.Certificate) -> str:
    """SHA-256 of the public key, 64 hex digits: what two people compare."""
    public = of.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public).hexdigest()


def certificate_fingerprint(pem: str | bytes) -> str:
    """SHA-256 of a certificate's DER, 64 hex digits.

    Raises:
        TrustError: It is no certificate.
    """
    return hashlib.sha256(load_certificate(pem).public_bytes(Encoding.DER)).hexdigest()


def load_certificate(pem: str | bytes) -> x509.Certificate:
    """Read the first certificate of a PEM text, which may hold a key, too.

    Raises:
        TrustError: There is none.
    """
    try:
        return x509.load_pem_x509_certificate(pem.encode() if isinstance(pem, str) else pem)
    except ValueError as error:
        raise TrustError("the certificate cannot be read", hint="enrol this device again") from error


def facts(pem: str | bytes) -> CertificateFacts:
    """Read what a certificate says.

    Raises:
        TrustError: It is no certificate.
    """
    certificate = load_certificate(pem)
    return CertificateFacts(
        device=common_name(certificate.subject),
        serial=f"{certificate.serial_number:x}",
        not_before_ms=int(certificate.not_valid_before_utc.timestamp() * 1000),
        not_after_ms=int(certificate.not_valid_after_utc.timestamp() * 1000),
        key_fingerprint=key_fingerprint(certificate),
    )


def check_issued(
    certificate_pem: str, authority_pem: str | bytes, key_pem: bytes, device: str
) -> CertificateFacts:
    """Check that a certificate is this device's, for this key, signed by this authority.

    Raises:
        TrustError: It is not.
        ConfigError: The key cannot be read.
    """
    certificate = load_certificate(certificate_pem)
    try:
        certificate.verify_directly_issued_by(load_certificate(authority_pem))
    except (ValueError, TypeError, InvalidSignature) as error:
        raise TrustError("the certificate is not signed by the fleet's authority") from error
    found = facts(certificate_pem)
    if found.device != device:
        raise TrustError(f"the certificate is for {found.device!r}, not for {device!r}")
    ours = load_key(key_pem).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if found.key_fingerprint != hashlib.sha256(ours).hexdigest():
        raise TrustError("the certificate is for another key")
    return found
