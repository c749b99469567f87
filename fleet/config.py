"""The fleet's settings: one directory, one TOML file in it.

Decides the layout of the fleet's directory, and the names, units, defaults and limits of `fleet.toml`. Secrets are in
files of their own, never in the settings. Where the directory is comes from `--dir` or EDGEML_FLEET.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgeml import atomic
from edgeml.errors import ConfigError
from edgeml.ids import is_name
from edgeml.telemetry import BATCH_BYTES_MAX, Stream
from edgeml.twin import MODELS_MAX

CONFIG_BYTES_MAX: Final = 64 << 10
DIRECTORY_VARIABLE: Final = "EDGEML_FLEET"
DEFAULT_DIRECTORY: Final = "fleet-home"
DEVICE_DAYS_MAX: Final = 3650
BROKER_KINDS: Final = ("auto", "mosquitto", "amqtt")

DEFAULT_TOML: Final = """\
# Settings of this fleet. What is commented out shows the default.

# First part of every topic: one fleet, one tenant. Devices are told it when they are added.
tenant = "main"

# Name under which the controller says whether it is there.
# controller = "controller-1"

[broker]
# Where the MQTT broker listens. Other machines reach it only if this is one of their addresses.
# host = "127.0.0.1"
port = 18830
# "auto": mosquitto if it is installed, else amqtt (for trying out, loopback only). Or name one.
# kind = "auto"

[http]
# Where signed metadata, bundles and the read-only API are served.
# host = "127.0.0.1"
port = 18080

[devices]
# Under what name new devices are told to reach this machine.
# host = "127.0.0.1"

[tls]
# Where devices that have a certificate connect, and where new ones enrol themselves: docs/identity.md. 0: nowhere.
# host = "127.0.0.1"
# broker_port = 0
# http_port = 0
# Further names or addresses by which devices reach this machine, besides [devices] host.
# names = []
# How long a device's certificate lives; it renews it after two thirds of that.
# device_days = 90.0

[controller_loop]
# How often rollouts are looked at, and how long a slice of evidence is.
# tick_s = 1.0
# slice_s = 60.0
# How long windows are kept, and how often signed metadata is given a new date.
# keep_days = 90.0
# resign_s = 3600.0

[quota]
# How much one device may send to the controller: batches of telemetry and their bytes, and what it says of itself; in the
# long run, and at once after a rest. What is too much stays on the device, which sends it later.
# batches_per_s = 5.0
# batches_burst = 300
# batch_bytes_per_s = 131072
# batch_bytes_burst = 8388608
# messages_per_s = 20.0
# messages_burst = 600
# pulls_per_s = 100.0
# pulls_burst = 600

[pulls]
# What devices that only reach the broker may fetch through it: all together, and each. 0: nothing.
# bytes_per_s = 1048576
# device_bytes_per_s = 262144

[store]
# Empty: SQLite in this directory. Or a PostgreSQL URL; give its password in PGPASSFILE, not here.
# url = ""
"""


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An address to listen on."""

    port: int
    host: str = "127.0.0.1"


class BrokerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The broker that `fleet serve` starts."""

    port: int = 18830
    host: str = "127.0.0.1"
    kind: str = "auto"


class DeviceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What devices are told."""

    host: str = "127.0.0.1"


class TlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """TLS listeners, and the certificates of devices."""

    host: str = "127.0.0.1"
    broker_port: int = 0
    http_port: int = 0
    names: tuple[str, ...] = ()
    device_days: float = 90.0


class LoopSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The controller's rhythm."""

    tick_s: float = 1.0
    slice_s: float = 60.0
    keep_days: float = 90.0
    resign_s: float = 3600.0
    republish_s: float = 60.0


class QuotaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much one device may send to the controller: in the long run, and at once after a rest."""

    batches_per_s: float = 5.0
    batches_burst: int = 300
    batch_bytes_per_s: float = float(128 << 10)
    batch_bytes_burst: int = 8 << 20
    messages_per_s: float = 20.0
    """What a device says of itself: presence, birth, reports."""
    messages_burst: int = 600
    pulls_per_s: float = 100.0
    """Questions for pieces of files, of 4 to 32 KiB each."""
    pulls_burst: int = 600


class PullSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What devices may fetch through the broker."""

    bytes_per_s: int = 1 << 20
    """All together; 0: pulls are not answered."""
    device_bytes_per_s: int = 256 << 10


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the fleet's state is kept."""

    url: str = ""


class FleetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings."""

    tenant: str = "main"
    controller: str = "controller-1"
    broker: BrokerSettings = BrokerSettings()
    http: Listen = Listen(18080)
    devices: DeviceSettings = DeviceSettings()
    tls: TlsSettings = TlsSettings()
    controller_loop: LoopSettings = LoopSettings()
    quota: QuotaSettings = QuotaSettings()
    pulls: PullSettings = PullSettings()
    store: StoreSettings = StoreSettings()


@dataclass(frozen=True, slots=True)
class FleetHome:
    """The fleet's directory and what is where in it."""

    directory: Path

    @property
    def settings(self) -> Path:
        """`fleet.toml`."""
        return self.directory / "fleet.toml"

    @property
    def keys(self) -> Path:
        """Signing keys."""
        return self.directory / "keys"

    @property
    def authority(self) -> Path:
        """The certificate authority, apart from the keys that sign releases."""
        return self.keys / "ca"

    @property
    def tls(self) -> Path:
        """What the TLS listeners read: the server's certificate, the authority's, the revocations."""
        return self.directory / "tls"

    @property
    def repository(self) -> Path:
        """Signed metadata and blobs."""
        return self.directory / "repository"

    @property
    def database(self) -> Path:
        """SQLite."""
        return self.directory / "fleet.db"

    @property
    def broker(self) -> Path:
        """The broker's generated settings and logins."""
        return self.directory / "broker"

    @property
    def run(self) -> Path:
        """What runs now."""
        return self.directory / "run"

    @property
    def operator_token(self) -> Path:
        """The operator's secret for the API."""
        return self.directory / "operator.token"


def find_home(directory: str | None) -> FleetHome:
    """Locate the fleet's directory: the argument, EDGEML_FLEET, or `fleet-home` here."""
    return FleetHome(Path(directory or os.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY).absolute())


def create(home: FleetHome) -> None:
    """Create the directory and default settings where they do not exist.

    Raises:
        StorageError: The disk refused.
    """
    try:
        home.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise atomic.storage_error(error, home.directory) from error
    if not home.settings.exists():
        atomic.write_bytes(home.settings, DEFAULT_TOML.encode(), mode=0o644)


def load(home: FleetHome) -> FleetConfig:
    """Read the settings.

    Raises:
        ConfigError: No fleet here, or the settings are not valid.
    """
    try:
        data = home.settings.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"no fleet in {home.directory}",
            hint="make one with `edgeml keys init`, or name another with --dir or EDGEML_FLEET",
        ) from error
    return parse(data, str(home.settings))


def parse(data: bytes, source: str) -> FleetConfig:
    """Read settings from TOML; `source` is named in errors.

    Raises:
        ConfigError: Not TOML, an unknown field, or a value out of range.
    """
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{source} is longer than {CONFIG_BYTES_MAX} bytes", hint="start from a new one")
    try:
        config = msgspec.toml.decode(data, type=FleetConfig)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(
            f"{source}: {error}",
            hint="a new fleet.toml (edgeml keys init --dir elsewhere) shows every setting",
        ) from error
    for name, value in (("tenant", config.tenant), ("controller", config.controller)):
        if not is_name(value):
            raise ConfigError(
                f"{source}: {name} {value!r} is not a valid name", hint="use a-z 0-9 . _ -, at most 63"
            )
    for section, port in (("broker", config.broker.port), ("http", config.http.port)):
        if not 1 <= port <= 65535:
            raise ConfigError(f"{source}: [{section}] port is {port}", hint="use 1 to 65535")
    if config.broker.port == config.http.port:
        raise ConfigError(
            f"{source}: broker and http have the same port {config.http.port}", hint="give each its own"
        )
    if config.broker.kind not in BROKER_KINDS:
        raise ConfigError(
            f"{source}: [broker] kind is {config.broker.kind!r}", hint=f"one of {', '.join(BROKER_KINDS)}"
        )
    for host in (config.broker.host, config.http.host):
        if not _is_address(host):
            raise ConfigError(
                f"{source}: host {host!r} is no IP address", hint="write 127.0.0.1, or this machine's address"
            )
    _check_tls(config, source)
    loop = config.controller_loop
    for name in LoopSettings.__struct_fields__:
        value_s: float = getattr(loop, name)
        if not 0 < value_s < 1e9:
            raise ConfigError(
                f"{source}: [controller_loop] {name} is {value_s}", hint="use a positive number"
            )
    _check_quota(config.quota, source)
    if config.pulls.bytes_per_s < 0 or config.pulls.device_bytes_per_s < 1:
        raise ConfigError(
            f"{source}: [pulls] bytes_per_s must not be negative, and device_bytes_per_s at least 1"
        )
    return config


def _check_quota(quota: QuotaSettings, source: str) -> None:
    least = {
        "batches_burst": len(Stream),
        "batch_bytes_burst": len(Stream) * BATCH_BYTES_MAX,
        "messages_burst": MODELS_MAX + 2,
        "pulls_burst": 64,
    }
    for name in QuotaSettings.__struct_fields__:
        value: float = getattr(quota, name)
        if name in least and value < least[name]:
            raise ConfigError(
                f"{source}: [quota] {name} is {value}",
                hint=f"use at least {least[name]}: no device could say or ask what it must otherwise",
            )
        if not 0 < value < 1e12:
            raise ConfigError(f"{source}: [quota] {name} is {value}", hint="use a positive number")


def _check_tls(config: FleetConfig, source: str) -> None:
    tls = config.tls
    if bool(tls.broker_port) != bool(tls.http_port):
        raise ConfigError(
            f"{source}: [tls] has only one port", hint="give broker_port and http_port, or neither"
        )
    ports = [port for port in (tls.broker_port, tls.http_port) if port]
    if any(not 1 <= port <= 65535 for port in ports):
        raise ConfigError(f"{source}: a port in [tls] is out of range", hint="use 1 to 65535")
    if len({config.broker.port, config.http.port, *ports}) != 2 + len(ports):
        raise ConfigError(f"{source}: [tls] has the same port as another listener", hint="give each its own")
    if not _is_address(tls.host):
        raise ConfigError(
            f"{source}: [tls] host {tls.host!r} is no IP address",
            hint="write 127.0.0.1, or this machine's address",
        )
    if not 0 < tls.device_days <= DEVICE_DAYS_MAX:
        raise ConfigError(
            f"{source}: [tls] device_days is {tls.device_days}",
            hint=f"use more than 0, at most {DEVICE_DAYS_MAX}",
        )


def is_loopback(host: str) -> bool:
    """Tell whether an address stays on this machine."""
    return ipaddress.ip_address(host).is_loopback


def database_url(home: FleetHome, config: FleetConfig) -> str:
    """SQLAlchemy URL of the store."""
    return config.store.url or f"sqlite:///{home.database}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
