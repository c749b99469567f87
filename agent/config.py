"""The agent's settings: one TOML file.

Decides names, units, defaults and limits. Relative paths are relative to the file. `docs/agent-config.md` describes
every field; a test compares.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Final

import msgspec

from edgeml import atomic
from edgeml.errors import ConfigError
from edgeml.ids import is_name
from edgeml.tls import TlsFiles

from .batch import Rules
from .listener import absolute_listen
from .ration import BUDGET_MIN_BYTES
from .schedule import Metered, Policy, parse_window
from .selection import Select

HTTP: Final = ("http://", "https://")
LOCK: Final = "agent.lock"
"""In the storage directory: one agent works there at a time."""
BATCH_WINDOW_MS_MAX: Final = 1000
CONFIG_BYTES_MAX: Final = 64 << 10
SECRET_BYTES_MAX: Final = 4 << 10
PARALLEL_DOWNLOADS_MAX: Final = 8
SAMPLE_BYTES_MAX: Final = 80 << 10
"""A longer row of a sample would fit into no batch."""


class BrokerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The MQTT broker."""

    host: str
    port: int
    password_file: str = ""
    """File with the device's token, mode 0600; empty: it logs in by its certificate ([tls])."""


class Over(enum.Enum):
    """Ways to the fleet's files."""

    HTTP = "http"
    MQTT = "mqtt"
    HTTP_THEN_MQTT = "http-then-mqtt"


class BlobsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where signed metadata and bundles are fetched."""

    url: str = ""
    """May be empty where `over` is "mqtt"."""
    over: Over = Over.HTTP
    """Which way: the server's, the broker's, or the broker's where the server cannot be reached."""
    cache_url: str = ""
    """A server nearby that may have bundles, asked first and without a login; empty: there is none."""


class SamplesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Inputs of requests that the fleet is sent. Off unless `bytes_per_day` is set: inputs may be anyone's faces or voices."""

    bytes_per_day: int = 0
    """Bytes of rows in any 24 hours."""
    select: Select = Select.BOTH
    rows_per_hour: float = 60.0
    row_bytes_max: int = 64 << 10
    confidence_max: float = 0.8
    """Answers that are at least this sure are no hard ones."""


class TlsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fleet's authority, and who this device is: broker and blobs are reached over mutual TLS."""

    authority: str
    identity: str
    """Key and certificate in one file, mode 0600."""

    @property
    def files(self) -> TlsFiles:
        """As the connections take them."""
        return TlsFiles(Path(self.authority), Path(self.identity))


class TelemetryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Windows of counts, and samples."""

    window_s: float = 60.0
    backlog_rows_per_s: float = 10.0
    """While more than a batch waits: what was kept while the fleet was away."""
    rows_max: int = 50_000
    bytes_max: int = 64 << 20
    samples: SamplesConfig = SamplesConfig()


class ServeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The local HTTP endpoint, which needs the [serve] extra, and how requests wait. Empty `listen`: no endpoint."""

    listen: str = ""
    queue_max: int = 16
    """Requests that may wait for one model; more are turned away."""
    batch_max: int = 8
    """Samples that may go to the model together."""
    batch_window_ms: float = 0.0
    """How long a request may be held back for others that could go with it; 0: nothing goes together."""

    @property
    def line(self) -> Rules:
        """The same as rules of a line."""
        together = self.batch_max if self.batch_window_ms > 0 else 1
        return Rules(self.queue_max, together, self.batch_window_ms / 1000)


class BudgetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all models together may use of this device; None is no limit."""

    memory_bytes: int | None = None
    """All workers and what they share, without the agent's own process, which no model makes larger."""
    cpu_cores: float | None = None
    """Processor time of all workers, in cores."""
    storage_bytes: int = 1 << 31
    """All bundles, what was fetched in part, and deltas."""
    network_bytes_per_day: int | None = None
    """All that the agent sends and receives. What does not fit waits for the next day; a part is kept for the link."""
    network_bytes_per_s: int | None = None
    """All fetches together."""
    temperature_c: float | None = None
    """Of the processor, from which on models are slowed down, then turn requests away, then are taken away."""
    latency_ms: float | None = None
    """Median latency on the golden vectors above which a variant on trial is refused."""
    threads: int = 1
    """Threads that the runtime may use."""


class UpdateConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How updates are carried out."""

    parallel_downloads: int = 2
    """Models that may be fetched at once, each by a process of its own."""
    download_window: str = ""
    """Hours in which bundles are fetched, local time; empty is any."""
    apply_window: str = ""
    """Hours in which a new release is tried; empty is any."""
    metered: Metered = Metered.ALWAYS
    """Whether bundles are fetched over a link that costs by the byte."""
    metered_file: str = ""
    """A file that is there while the link is metered; empty: it never is."""

    @property
    def policy(self) -> Policy:
        """The hours, read.

        Raises:
            ConfigError: They are none.
        """
        return Policy(parse_window(self.download_window), parse_window(self.apply_window), self.metered)


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of one device."""

    device: str
    profile: str
    storage: str
    tenant: str = "default"
    broker: BrokerConfig | None = None
    """Without it the device works alone: flashed releases only."""
    blobs: BlobsConfig | None = None
    tls: TlsConfig | None = None
    telemetry: TelemetryConfig = TelemetryConfig()
    serve: ServeConfig = ServeConfig()
    budget: BudgetConfig = BudgetConfig()
    update: UpdateConfig = UpdateConfig()


def load(path: Path) -> AgentConfig:
    """Read the settings; paths in the result are absolute.

    Raises:
        ConfigError: The file is missing or wrong.
    """
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}", hint="edgeml fleet device add writes this file"
        ) from error
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path} is longer than {CONFIG_BYTES_MAX} bytes")
    try:
        config = msgspec.toml.decode(data, type=AgentConfig)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}", hint="docs/agent-config.md describes every field") from error
    for name in (config.device, config.tenant, config.profile):
        if not is_name(name):
            raise ConfigError(f"{path}: {name!r} is not a valid name", hint="use a-z 0-9 . _ -")
    serve = config.serve
    if serve.queue_max < 1 or serve.batch_max < 1 or not 0 <= serve.batch_window_ms <= BATCH_WINDOW_MS_MAX:
        raise ConfigError(
            f"{path}: queue_max and batch_max must be at least 1, batch_window_ms from 0 to {BATCH_WINDOW_MS_MAX}"
        )
    telemetry = config.telemetry
    if telemetry.window_s <= 0 or not telemetry.backlog_rows_per_s > 0 or config.budget.threads < 1:
        raise ConfigError(f"{path}: window_s and backlog_rows_per_s must be positive and threads at least 1")
    if not 1 <= config.update.parallel_downloads <= PARALLEL_DOWNLOADS_MAX:
        raise ConfigError(f"{path}: parallel_downloads must be from 1 to {PARALLEL_DOWNLOADS_MAX}")
    _check_blobs(config.blobs, path)
    _check_budget(path, config.budget)
    try:
        config.update.policy  # noqa: B018 - read here, so that the agent does not start with a window that is none
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error
    _check_samples(config.telemetry.samples, path)
    folder = path.resolve().parent
    broker = config.broker
    if broker is not None and not broker.password_file and config.tls is None:
        raise ConfigError(f"{path}: [broker] has no password_file and there is no [tls]")
    tls = config.tls
    if tls is not None:
        tls = TlsConfig(authority=str(folder / tls.authority), identity=str(folder / tls.identity))
    if broker is not None and broker.password_file:
        broker = msgspec.structs.replace(broker, password_file=str(folder / broker.password_file))
    serve = msgspec.structs.replace(config.serve, listen=absolute_listen(config.serve.listen, folder))
    update = config.update
    if update.metered_file:
        update = msgspec.structs.replace(update, metered_file=str(folder / update.metered_file))
    return msgspec.structs.replace(
        config, storage=str(folder / config.storage), broker=broker, serve=serve, update=update, tls=tls
    )


def read_token(config: AgentConfig) -> str:
    """Read the device's token; empty if it logs in by its certificate.

    Raises:
        ConfigError: As `read_secret`.
    """
    broker = config.broker
    return read_secret(Path(broker.password_file)) if broker is not None and broker.password_file else ""


def _check_blobs(blobs: BlobsConfig | None, path: Path) -> None:
    if blobs is None or blobs.over is Over.MQTT:
        return
    if not blobs.url:
        raise ConfigError(f"{path}: [blobs] has no url", hint='or is it over = "mqtt"?')
    if blobs.over is Over.HTTP_THEN_MQTT and not blobs.url.startswith(HTTP):
        raise ConfigError(f"{path}: blobs.url is {blobs.url!r}", hint="http://… or https://…")


def _check_budget(path: Path, budget: BudgetConfig) -> None:
    for name in BudgetConfig.__struct_fields__:
        value = getattr(budget, name)
        if value is not None and not value > 0:
            raise ConfigError(f"{path}: budget.{name} must be positive", hint="leave it out for no limit")
    if (budget.network_bytes_per_day or BUDGET_MIN_BYTES) < BUDGET_MIN_BYTES:
        raise ConfigError(
            f"{path}: budget.network_bytes_per_day must be at least {BUDGET_MIN_BYTES}",
            hint="the link alone takes that; leave it out for no limit",
        )


def _check_samples(samples: SamplesConfig, path: Path) -> None:
    if samples.bytes_per_day < 0 or not 0 < samples.row_bytes_max <= SAMPLE_BYTES_MAX:
        raise ConfigError(
            f"{path}: samples.bytes_per_day must not be negative, and row_bytes_max from 1 to {SAMPLE_BYTES_MAX}"
        )
    if samples.rows_per_hour <= 0 or not 0.0 < samples.confidence_max <= 1.0:
        raise ConfigError(
            f"{path}: samples.rows_per_hour must be positive, and confidence_max above 0 and at most 1"
        )


def read_secret(path: Path) -> str:
    """Read a token file.

    Raises:
        ConfigError: It is missing, or others may read it.
    """
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            secret = file.read(SECRET_BYTES_MAX).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}", hint="edgeml fleet device add writes this file"
        ) from error
    if mode & 0o077:
        raise ConfigError(f"{path} may be read by others", hint=f"chmod 600 {path}")
    return secret


def install_anchor(config_path: Path, storage: Path) -> None:
    """Give the storage the trust anchor that lies beside the settings, if it has none yet.

    The first one counts: replacing it later takes signed root metadata, or a person with access to the storage.

    Raises:
        ConfigError: There is none.
        StorageError: The disk refused.
    """
    anchor = storage / "trust" / "root.json"
    if anchor.exists():
        return
    beside = config_path.resolve().parent / "root.json"
    try:
        data = beside.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"no trust anchor at {beside}: {error.strerror}", hint="edgeml fleet device add writes it"
        ) from error
    atomic.write_bytes(anchor, data)
