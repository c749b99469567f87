"""Asks a fleet for a certificate, over HTTPS.

Decides how the first contact is made safe: the authority's certificate is fetched from whoever answers, compared with
the fingerprint that a person brought, and only a server which it has certified is told anything. What is asked and
answered is `edgeml.identity`'s.
"""

from __future__ import annotations

import hmac
import http.client
import ssl
from typing import Final, TypeVar

import msgspec

from .errors import LinkDownError, PermanentTransferError, TransferError, TrustError
from .identity import (
    CA_PATH,
    ENROL_PATH,
    MESSAGE_BYTES_MAX,
    RENEW_PATH,
    EnrolAnswer,
    EnrolRequest,
    Invitation,
    RenewAnswer,
    RenewRequest,
)
from .keypair import certificate_fingerprint

TIMEOUT_S: Final = 20.0
_Answer = TypeVar("_Answer", bound=msgspec.Struct)


class _Refusal(msgspec.Struct, frozen=True):
    error: str = ""
    hint: str = ""


def fetch_authority(invitation: Invitation) -> str:
    """Fetch the authority's certificate and compare its fingerprint. Nothing secret is sent. Returns PEM.

    Raises:
        TrustError: It is another one: not the fleet that the invitation is of.
        TransferError: Nobody answers.
    """
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.minimum_version = ssl.TLSVersion.TLSv1_2
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    status, data = _exchange((invitation.host, invitation.port), blind, CA_PATH, None)
    if status != http.client.OK:
        raise PermanentTransferError(
            f"{invitation.host}:{invitation.port} is no fleet: it answers {status}", hint="check the address"
        )
    found = certificate_fingerprint(data)
    if not hmac.compare_digest(found, invitation.fingerprint):
        raise TrustError(
            f"the server at {invitation.host}:{invitation.port} is not the fleet that was named: "
            f"its authority has fingerprint {found[:16]}…, not {invitation.fingerprint[:16]}…",
            hint="check the invitation with whoever made it; nothing was told to that server",
        )
    return data.decode("ascii")


def enrol(address: tuple[str, int], context: ssl.SSLContext, request: EnrolRequest) -> EnrolAnswer:
    """Ask to be enrolled.

    Raises:
        TrustError: The fleet refuses, or the server is not certified by its authority.
        TransferError: Transport failed, or the fleet cannot answer now.
    """
    return _ask(address, context, ENROL_PATH, request, EnrolAnswer)


def renew(address: tuple[str, int], context: ssl.SSLContext, request: RenewRequest) -> RenewAnswer:
    """Ask for a certificate of a new key; the context has the one of before.

    Raises:
        TrustError: The fleet refuses, or the server is not certified by its authority.
        TransferError: Transport failed, or the fleet cannot answer now.
    """
    return _ask(address, context, RENEW_PATH, request, RenewAnswer)


def _ask(
    address: tuple[str, int], context: ssl.SSLContext, path: str, request: msgspec.Struct, kind: type[_Answer]
) -> _Answer:
    status, data = _exchange(address, context, path, msgspec.json.encode(request))
    if status == http.client.OK:
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise TransferError("the fleet's answer cannot be read") from error
    try:
        said = msgspec.json.decode(data, type=_Refusal)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        said = _Refusal()
    message = f"the fleet refuses: {said.error or f'it answers {status}'}"
    if status == http.client.FORBIDDEN:
        raise TrustError(message, hint=said.hint)
    kind_of = PermanentTransferError if 400 <= status < 500 else TransferError
    raise kind_of(message, hint=said.hint)


def _exchange(
    address: tuple[str, int], context: ssl.SSLContext, path: str, body: bytes | None
) -> tuple[int, bytes]:
    where = f"{address[0]}:{address[1]}"
    connection = http.client.HTTPSConnection(address[0], address[1], timeout=TIMEOUT_S, context=context)
    try:
        headers = {"User-Agent": "edgeml", "Content-Type": "application/json"}
        connection.request("GET" if body is None else "POST", path, body, headers)
        response = connection.getresponse()
        data = response.read(MESSAGE_BYTES_MAX + 1)
    except ssl.SSLCertVerificationError as error:
        raise TrustError(
            f"the server at {where} is not certified by the fleet's authority: {error.verify_message}",
            hint="check the address, the clock of this device, and [devices] host and [tls] names of the fleet",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise LinkDownError(
            f"cannot talk to {where}: {error}",
            hint="check the address, the network, and that the fleet is served",
        ) from error
    finally:
        connection.close()
    if len(data) > MESSAGE_BYTES_MAX:
        raise TransferError(f"{where} sends more than {MESSAGE_BYTES_MAX} bytes")
    return response.status, data
