"""Which broker the fleet uses, and who may log in to it.

Decides between mosquitto (if it is installed) and the amqtt that comes with edgeml (for trying out, on loopback only),
and writes the files from which either knows the logins. Their settings are the business of `mosquitto` and
`amqtt_broker`; starting and watching them, `serve`'s.
"""

from __future__ import annotations

import enum
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgeml import atomic
from edgeml.errors import ConfigError
from edgeml.ids import DeviceId
from edgeml.topics import CONTROLLER_USER

from . import mosquitto
from .config import BROKER_KINDS, FleetConfig, FleetHome, is_loopback
from .tokens import NO_TOKEN, controller_token, token_hash

KIND_VARIABLE: Final = "EDGEML_BROKER"


class BrokerKind(enum.Enum):
    """The brokers that edgeml starts."""

    MOSQUITTO = "mosquitto"
    AMQTT = "amqtt"


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start the broker."""

    kind: BrokerKind
    command: tuple[str, ...]
    note: str
    """One line for people: which broker, and what it is good for."""


def choose(config: FleetConfig) -> BrokerKind:
    """Pick the broker: EDGEML_BROKER, then the settings, then what is installed.

    Raises:
        ConfigError: The one asked for is unknown or not installed, or amqtt would listen to other machines.
    """
    asked = os.environ.get(KIND_VARIABLE) or config.broker.kind
    if asked not in BROKER_KINDS:
        raise ConfigError(f"{KIND_VARIABLE} is {asked!r}", hint=f"one of {', '.join(BROKER_KINDS)}")
    installed = mosquitto.find() is not None
    if asked == "mosquitto" and not installed:
        raise ConfigError(
            "mosquitto is not installed",
            hint='install it (apt install mosquitto), or use [broker] kind = "amqtt"',
        )
    if asked == "mosquitto" or (asked == "auto" and installed):
        return BrokerKind.MOSQUITTO
    outside = [host for host in (config.broker.host, config.tls.host) if not is_loopback(host)]
    if outside:
        raise ConfigError(
            f"amqtt is for trying out and does not listen on {outside[0]}",
            hint="install mosquitto, or listen on 127.0.0.1",
        )
    return BrokerKind.AMQTT


def prepare(home: FleetHome, config: FleetConfig) -> Launch:
    """Write the broker's files and say how to start it. Logins are written by `write_logins`.

    Raises:
        ConfigError: As `choose`.
        StorageError: The disk refused.
    """
    kind = choose(config)
    if kind is BrokerKind.MOSQUITTO:
        program = mosquitto.find()
        assert program is not None
        mosquitto.write_settings(home, config)
        return Launch(kind, mosquitto.command(program, home), f"mosquitto ({program})")
    command = (sys.executable, "-P", "-m", f"{__package__}.amqtt_broker", "--dir", str(home.directory))
    note = "amqtt, for trying out only: it is slow and loses messages; install mosquitto for real fleets"
    return Launch(kind, command, note)


def tokens_path(home: FleetHome) -> Path:
    """File that names who may log in to amqtt: `user:sha256` lines."""
    return home.broker / "tokens"


def login_files(home: FleetHome) -> tuple[Path, ...]:
    """Files that change when somebody may log in, or may not any more."""
    return (mosquitto.passwords_path(home), tokens_path(home))


def write_logins(home: FleetHome, devices: Mapping[DeviceId, tuple[str, str]]) -> None:
    """Write who may log in, for both brokers: the controller and these devices.

    Args:
        home: the fleet's directory.
        devices: SHA-256 of the token and mosquitto's hash of it, by device.

    Raises:
        StorageError: The disk refused.
    """
    token = controller_token(home)
    everyone = {str(device): hashes for device, hashes in devices.items()}
    everyone[CONTROLLER_USER] = (token_hash(token), mosquitto.hash_token(token))
    tokens = "".join(f"{user}:{sha256}\n" for user, (sha256, _) in everyone.items())
    passwords = "".join(f"{user}:{hashed}\n" for user, (_, hashed) in everyone.items() if hashed != NO_TOKEN)
    atomic.write_bytes(tokens_path(home), tokens.encode())
    atomic.write_bytes(mosquitto.passwords_path(home), passwords.encode())


def end_connections(home: FleetHome) -> None:
    """Ask `fleet serve` to restart the broker: no broker ends the connections of a login that was taken away.

    Raises:
        StorageError: The disk refused.
    """
    atomic.write_bytes(revoked_path(home), secrets.token_hex(8).encode())


def revoked_path(home: FleetHome) -> Path:
    """File that changes when a login is taken away."""
    return home.broker / "revoked"
