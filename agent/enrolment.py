"""Makes this machine a device of a fleet.

Decides which files a device gets and in which order they are written, so that power may go at any of them: the key
first, which never leaves; the settings last, without which there is no device. Asking again with the same key gets the
same answer, so an interrupted enrolment is finished by the same command. Another claim than the one that was used means
a new key; the identity of before stays until the new one is whole.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeml import atomic, identity_client, keypair
from edgeml.clock import SystemClock
from edgeml.errors import ConfigError, TrustError
from edgeml.identity import EnrolAnswer, EnrolRequest, Invitation, Settings, Standing
from edgeml.ids import is_name, parse_name
from edgeml.tls import authority_context, check_private

from .config import load

KEY: Final = "identity.key"
CLAIM: Final = "identity.claim"
"""SHA-256 of the claim that the identity was made with."""
IDENTITY: Final = "identity.pem"
AUTHORITY: Final = "ca.pem"
ROOT: Final = "root.json"
SETTINGS: Final = "agent.toml"
POLL_S: Final = 5.0
_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class Wish:
    """What the person at the device asked for."""

    invitation: Invitation
    device: str
    profile: str
    directory: Path
    """Gets the settings and the identity."""
    storage: str = "state"
    """Where the agent keeps its state; relative to `directory`, or absolute."""
    listen: str = ""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The device is one of the fleet's."""

    device: str
    settings_path: Path
    not_after_ms: int


def enrol(
    wish: Wish, say: Callable[[str], None], wait_s: float, pause: Callable[[float], None] = time.sleep
) -> Enrolled:
    """Enrol this device; without a claim token, wait for an operator.

    Args:
        wish: what was asked for.
        say: tells a person one line.
        wait_s: how long to wait for an operator.
        pause: waits between two questions.

    Raises:
        ConfigError: The name or profile is not valid, or the directory is another device's.
        TrustError: The server is not the fleet of the invitation, or it refuses or denies.
        TransferError: Nobody answers.
        StorageError: The disk refused; run it again.
    """
    device = parse_name(wish.device, "device")
    _check_directory(wish)
    key = _key(wish, SystemClock().now_ms())
    csr = keypair.request(key, device)
    say(f"key of {device}: {keypair.key_fingerprint(keypair.read_request(csr))}")
    authority = identity_client.fetch_authority(wish.invitation)
    asked = EnrolRequest(device=device, profile=wish.profile, csr=csr, claim=wish.invitation.token)
    answer = _ask(wish, authority, asked, (say, wait_s, pause))
    facts = keypair.check_issued(answer.certificate, authority, key, device)
    if answer.settings is None or not answer.root:
        raise TrustError("the fleet's answer is not complete", hint="update edgeml on the fleet's machine")
    _check_settings(answer.settings)
    _write(wish, key, authority, answer)
    return Enrolled(device, wish.directory / SETTINGS, facts.not_after_ms)


def _ask(
    wish: Wish,
    authority: str,
    asked: EnrolRequest,
    patience: tuple[Callable[[str], None], float, Callable[[float], None]],
) -> EnrolAnswer:
    say, wait_s, pause = patience
    address, context = (wish.invitation.host, wish.invitation.port), authority_context(authority)
    answer = identity_client.enrol(address, context, asked)
    if answer.standing is Standing.PENDING:
        say(f"waiting for an operator: edgeml fleet device approve {wish.device}")
    waited_s = 0.0
    while answer.standing is Standing.PENDING:
        if waited_s >= wait_s:
            raise TrustError(
                "no operator has decided yet",
                hint="run the same command again; the request is kept for a week",
            )
        pause(POLL_S)
        waited_s += POLL_S
        answer = identity_client.enrol(address, context, asked)
    if answer.standing is Standing.DENIED:
        raise TrustError(
            f"an operator denied {wish.device}", hint=f"remove {wish.directory / KEY} to ask anew"
        )
    return answer


def _key(wish: Wish, now_ms: int) -> bytes:
    """Read the key of an enrolment that was interrupted, also at its very end; or make one.

    An identity that is still good keeps its key unless there is a new claim: the same command again must get the same
    answer.
    """
    path, identity = wish.directory / KEY, wish.directory / IDENTITY
    try:
        finished = identity.exists() and (
            not path.exists() or identity.read_bytes().startswith(path.read_bytes())
        )
        if finished and _goes_on(wish, now_ms):
            path = identity
        elif finished or not path.exists():
            atomic.write_bytes(path, keypair.generate())
        check_private(path)
        pem = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="check its owner") from error
    keypair.load_key(pem)
    end = pem.find(_CERTIFICATE)
    return pem if end < 0 else pem[:end]


def _goes_on(wish: Wish, now_ms: int) -> bool:
    """Tell whether the identity that is there is the one that is asked for."""
    identity, claim = wish.directory / IDENTITY, wish.directory / CLAIM
    check_private(identity)
    if keypair.facts(identity.read_bytes()).not_after_ms <= now_ms:
        return False
    if not wish.invitation.token:
        return True
    return claim.exists() and claim.read_bytes() == _claim_hash(wish)


def _claim_hash(wish: Wish) -> bytes:
    return hashlib.sha256(wish.invitation.token.encode()).hexdigest().encode()


def _check_directory(wish: Wish) -> None:
    """Refuse a directory of another device, or of one that logs in by token."""
    path = wish.directory / SETTINGS
    if not path.exists():
        return
    there = load(path)
    if there.device != wish.device:
        raise ConfigError(
            f"{path} is of device {there.device}", hint="use --device with that name, or another --out"
        )
    if there.tls is None:
        raise ConfigError(
            f"{path} is of a device that logs in by token", hint="enrol in an empty directory, with --out"
        )
    for file, name in ((there.tls.identity, IDENTITY), (there.tls.authority, AUTHORITY)):
        if Path(file) != wish.directory.resolve() / name:
            raise ConfigError(f"{path} names {file}", hint=f"name {name} in its [tls], or use another --out")


def _check_settings(settings: Settings) -> None:
    """What comes from elsewhere is written into a file that decides: only names and plain addresses may."""
    plain = all(one.isascii() and one.isprintable() and not set(one) & set('"\\') for one in (
        settings.broker_host, settings.blobs_url,
    ))  # fmt: skip
    if not plain or not is_name(settings.tenant) or not is_name(settings.profile):
        raise TrustError("the fleet sent settings that are not valid")


def _write(wish: Wish, key: bytes, authority: str, answer: EnrolAnswer) -> None:
    directory = wish.directory
    settings = answer.settings
    assert settings is not None
    atomic.write_bytes(directory / AUTHORITY, authority.encode())
    if not (directory / ROOT).exists():
        atomic.write_bytes(directory / ROOT, answer.root.encode())
    if wish.invitation.token:
        atomic.write_bytes(directory / CLAIM, _claim_hash(wish))
    atomic.write_bytes(directory / IDENTITY, key + answer.certificate.encode())
    storage = directory / wish.storage
    try:
        # Here, so that who may not make it hears of it now.
        storage.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise atomic.storage_error(error, storage) from error
    if not (directory / SETTINGS).exists():
        atomic.write_bytes(directory / SETTINGS, _settings(wish, settings).encode())
    try:
        (directory / KEY).unlink(missing_ok=True)
        atomic.sync_directory(directory)
    except OSError as error:
        raise atomic.storage_error(error, directory / KEY) from error


def _settings(wish: Wish, settings: Settings) -> str:
    return f"""\
# Settings of the edgeml agent of {wish.device}. Paths are relative to this file.
device = "{wish.device}"
tenant = "{settings.tenant}"
profile = "{settings.profile}"
storage = {_quoted(wish.storage)}

[broker]
host = "{settings.broker_host}"
port = {settings.broker_port}

[blobs]
url = "{settings.blobs_url}"

[tls]
authority = "{AUTHORITY}"
identity = "{IDENTITY}"

[telemetry]
window_s = 60

# Local inference over HTTP; needs the [serve] extra. Empty: none.
[serve]
listen = {_quoted(wish.listen)}
"""


def _quoted(text: str) -> str:
    """Write a TOML string that may hold any character."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
