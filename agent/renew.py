"""The renewing child: looks at the device's certificate, gets a new one if that is due, then ends.

Runs as its own process, so that cryptography (11 MB) leaves the device's memory with it. Reads one job from standard
input, writes one answer to standard output, both JSON. Decides that a new certificate comes with a new key, and that
the old identity stays until the new one is whole. When to run it is `renewal`'s decision.
"""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from edgeml import atomic, identity_client, keypair
from edgeml.errors import ConfigError, EdgemlError, TrustError
from edgeml.identity import RenewRequest
from edgeml.tls import check_private, client_context

from .config import TlsConfig
from .renewal import JOB_BYTES_MAX, Renewed, RenewJob


def renew(job: RenewJob) -> Renewed:
    """Do the job in this process.

    Raises:
        TrustError: The certificate has expired or was revoked, or what came is not for this key and name.
        ConfigError: A file cannot be used.
        TransferError: The fleet cannot be reached.
        StorageError: The disk refused; the old identity is untouched.
    """
    files = TlsConfig(authority=job.authority, identity=job.identity).files
    check_private(files.identity)
    try:
        before = files.identity.read_bytes()
        facts = keypair.facts(before)
        authority = files.authority.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the identity: {error}", hint="enrol this device again") from error
    if job.now_ms < facts.renew_at_ms:
        return Renewed(renew_at_ms=facts.renew_at_ms)
    if job.now_ms >= facts.not_after_ms:
        raise TrustError(
            "the device's certificate has expired",
            hint=f"edgeml agent enroll, with a claim of `edgeml fleet claim create --device {job.device}`",
        )
    where = urlsplit(job.url)
    if where.scheme != "https" or where.hostname is None:
        raise ConfigError(f"cannot renew at {job.url!r}", hint="set [blobs] url to the fleet's https address")
    key = keypair.generate()
    asked = RenewRequest(csr=keypair.request(key, job.device))
    answer = identity_client.renew((where.hostname, where.port or 443), client_context(files), asked)
    issued = keypair.check_issued(answer.certificate, authority, key, job.device)
    if files.identity.read_bytes() != before:
        # Somebody has enrolled the device anew meanwhile, which revoked what was just issued.
        return Renewed()
    atomic.write_bytes(Path(job.identity), key + answer.certificate.encode())
    return Renewed(renewed=True, renew_at_ms=issued.renew_at_ms)


def main() -> None:
    """Do the job that standard input holds."""
    job = msgspec.json.decode(sys.stdin.buffer.read(JOB_BYTES_MAX), type=RenewJob)
    try:
        answer = renew(job)
    except EdgemlError as error:
        answer = Renewed(error=error.message, hint=error.hint)
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
