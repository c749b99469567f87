"""Runs mosquitto as the fleet's broker.

Decides its generated settings: logins only, access by the topic table, limits on packets and queues, nothing kept on
disk (the protocol survives a broker that comes back empty, and a broker's disk is no durability anyway). Who may log
in is decided in `broker`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import Final

from edgeml import atomic, topics
from edgeml.ids import TenantId
from edgeml.telemetry import BATCH_BYTES_MAX

from . import tls_files
from .config import FleetConfig, FleetHome

PACKET_BYTES_MAX: Final = 2 * BATCH_BYTES_MAX
QUEUED_MESSAGES_MAX: Final = 200_000
"""Per client. The default of 1000 also drops retained messages when a controller subscribes to a large fleet."""
_ITERATIONS: Final = 101
"""mosquitto's own number. More would cost the broker's only thread at every login and protect nothing: tokens are
random 256-bit numbers, not words."""
_SALT_BYTES: Final = 12
_SBIN: Final = "/usr/sbin:/usr/local/sbin:/sbin"


def find() -> str | None:
    """Locate the program; None if it is not installed."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=_SBIN)


def hash_token(token: str) -> str:
    """Hash a token as mosquitto's password file holds it: PBKDF2-SHA512 (`mosquitto_passwd`, type 7)."""
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", token.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def passwords_path(home: FleetHome) -> Path:
    """File that names who may log in."""
    return home.broker / "mosquitto.passwords"


def write_settings(home: FleetHome, config: FleetConfig) -> None:
    """Write the settings and the access list.

    Raises:
        StorageError: The disk refused.
    """
    acl = home.broker / "mosquitto.acl"
    atomic.write_bytes(acl, topics.mosquitto_acl(TenantId(config.tenant)).encode())
    lines = [
        "# Written by `edgeml fleet serve` at every start; changes here are lost.",
        "per_listener_settings false",
        f"listener {config.broker.port} {config.broker.host}",
        *_tls_listener(home, config),
        "allow_anonymous false",
        f"password_file {passwords_path(home)}",
        f"acl_file {acl}",
        "persistence false",
        f"max_packet_size {PACKET_BYTES_MAX}",
        f"max_queued_messages {QUEUED_MESSAGES_MAX}",
        "max_inflight_messages 100",
        "max_keepalive 300",
        "allow_zero_length_clientid false",
        "set_tcp_nodelay true",
        "sys_interval 0",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "connection_messages false",
    ]
    if os.geteuid() == 0:
        # Started as root it would become a user who cannot read the fleet's directory, and who loses the tie to
        # `fleet serve` on the way. It stays who its parent is.
        lines.append("user root")
    atomic.write_bytes(settings_path(home), ("\n".join(lines) + "\n").encode())


def _tls_listener(home: FleetHome, config: FleetConfig) -> tuple[str, ...]:
    """A listener on which the certificate is the login: its common name is the user that access is decided by."""
    tls = config.tls
    if not tls.broker_port:
        return ()
    return (
        f"listener {tls.broker_port} {tls.host}",
        f"cafile {tls_files.authority_path(home)}",
        f"certfile {tls_files.server_path(home)}",
        f"keyfile {tls_files.server_path(home)}",
        f"crlfile {tls_files.revocations_path(home)}",
        "require_certificate true",
        "use_identity_as_username true",
        "tls_version tlsv1.2",
    )


def settings_path(home: FleetHome) -> Path:
    """The generated settings."""
    return home.broker / "mosquitto.conf"


def command(program: str, home: FleetHome) -> tuple[str, ...]:
    """What to start."""
    return (program, "-c", str(settings_path(home)))
