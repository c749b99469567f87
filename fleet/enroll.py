"""Adds and removes devices.

Decides what a device is given: a token of its own (of which the fleet keeps only hashes), the trust anchor, and a
ready `agent.toml`; all in one directory, the device kit, to be copied to the device. Whether the broker has heard of it
is `serve`'s business: it watches the files that are written here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeml import atomic
from edgeml.errors import ConfigError
from edgeml.ids import DeviceId, parse_name
from edgeml.topics import CONTROLLER_USER

from . import authority, broker, devices, identities, mosquitto, removals, tls_files
from .config import FleetConfig, FleetHome
from .devices import Enrolment
from .store import Store
from .tokens import new_token, token_hash

SETTINGS: Final = "agent.toml"
TOKEN: Final = "token"  # noqa: S105  # a file's name
ROOT: Final = "root.json"
STATE: Final = "state"
_ROOT_FILE: Final = re.compile(r"([0-9]+)\.root\.json")


@dataclass(frozen=True, slots=True)
class NewDevice:
    """What the operator asked for."""

    name: str
    profile: str
    kit: Path
    """Directory to write the device kit to."""
    storage: str = STATE
    """Where the agent keeps its state on the device; relative to the kit, or absolute."""
    listen: str = ""
    """Where its local HTTP endpoint listens, `host:port`; empty: it has none."""


def add(home: FleetHome, config: FleetConfig, store: Store, new: NewDevice, now_ms: int) -> None:
    """Enrol a device and write its kit.

    The kit is complete before the device is known: if this is interrupted, remove the kit and add the device again.

    Raises:
        ConfigError: The name is not valid or taken, the kit's directory is not empty, or the fleet has no keys.
        StorageError: The disk refused.
    """
    device = DeviceId(parse_name(new.name, "device"))
    if device == CONTROLLER_USER:
        raise ConfigError(f"no device may be called {CONTROLLER_USER!r}", hint="choose another name")
    with store.read() as connection:
        known = devices.load(connection, device)
    if known is not None:
        raise ConfigError(
            f"device {device} exists already",
            hint=f"use another name, or `edgeml fleet device remove {device}`",
        )
    root = trust_anchor(home)
    _check_empty(new.kit)
    token = new_token()
    atomic.write_bytes(new.kit / ROOT, root, mode=0o644)
    atomic.write_bytes(new.kit / TOKEN, token.encode())
    atomic.write_bytes(new.kit / SETTINGS, _settings(config, new).encode(), mode=0o644)
    enrolment = Enrolment(
        device=device,
        tenant=config.tenant,
        profile=new.profile,
        token_sha256=token_hash(token),
        broker_hash=mosquitto.hash_token(token),
        enrolled_at_ms=now_ms,
    )
    with store.write() as connection:
        devices.enrol(connection, enrolment)
        # Inside the transaction: two commands at once would otherwise write each other's login away.
        broker.write_logins(home, devices.logins(connection))


def remove(home: FleetHome, store: Store, name: str, now_ms: int) -> None:
    """Forget a device: its token, certificates and approval are worth nothing from now on.

    Raises:
        ConfigError: There is no such device, or the certificate authority is missing.
        StorageError: The disk refused.
    """
    with store.write() as connection:
        removals.record(connection, DeviceId(name), now_ms)
        if not devices.remove(connection, DeviceId(name)):
            raise ConfigError(f"there is no device {name}", hint="`edgeml fleet device list` names them")
        if identities.revoke_all(connection, name, now_ms):
            tls_files.write_revocations(home, authority.load(home.authority), connection, now_ms)
        identities.forget_requests_of(connection, name)
        broker.write_logins(home, devices.logins(connection))
    broker.end_connections(home)


def trust_anchor(home: FleetHome) -> bytes:
    """Return the newest root metadata, from which a device checks everything else.

    Raises:
        ConfigError: The fleet has no signing keys yet.
    """
    metadata = home.repository / "metadata"
    found = [
        (int(match[1]), path)
        for path in metadata.glob("*.root.json")
        if (match := _ROOT_FILE.fullmatch(path.name))
    ]
    if not found:
        raise ConfigError(f"{home.directory} has no signing keys yet", hint="run `edgeml keys init` first")
    return max(found)[1].read_bytes()


def _check_empty(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} is not an empty directory", hint="name a new one with --out")


def _settings(config: FleetConfig, new: NewDevice) -> str:
    return f"""\
# Settings of the edgeml agent of {new.name}. Paths are relative to this file.
device = "{new.name}"
tenant = "{config.tenant}"
profile = "{new.profile}"
storage = {_quoted(new.storage)}

[broker]
host = "{config.devices.host}"
port = {config.broker.port}
password_file = "{TOKEN}"

[blobs]
url = "http://{config.devices.host}:{config.http.port}"

[telemetry]
window_s = 60

# Local inference over HTTP; needs the [serve] extra. Empty: none.
[serve]
listen = {_quoted(new.listen)}
"""


def _quoted(text: str) -> str:
    """Write a TOML string that may hold any character."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
