"""`edgeml agent doctor`: looks whether this device can do its work.

Decides what is looked at, what is good enough, and what a person should do next. It changes nothing but a file in the
storage that it removes again. Each thing is looked at for itself: what is wrong with one does not hide the next.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from edgeml import keypair
from edgeml.doctor import Finding
from edgeml.errors import EdgemlError, LinkDownError, TransferError
from edgeml.handshake import Fault, find_refusal
from edgeml.meter import Meter, Terms
from edgeml.mqtt import Login, PahoTransport
from edgeml.source import DirectorySource, Source
from edgeml.tls import check_private
from edgeml.transport import LinkDown, LinkUp

from . import freshness
from .config import AgentConfig, Over, load, read_secret, read_token
from .journal import peek
from .route import Route, way_to_fleet

FREE_BYTES_MIN: Final = 64 << 20
CLOCK_MIN_MS: Final = 1_735_689_600_000
"""2025-01-01: a clock before that was never set."""
IMPORT_TIMEOUT_S: Final = 60.0
BROKER_TIMEOUT_S: Final = 10.0
RUNTIMES: Final = ("onnxruntime", "ai_edge_litert.interpreter", "tflite_runtime.interpreter")
_DAY_MS: Final = 86_400_000


class _Signed(msgspec.Struct, frozen=True):
    kind: str = msgspec.field(name="_type")
    version: int
    expires: str


class _Root(msgspec.Struct, frozen=True):
    signed: _Signed


@dataclass(frozen=True, slots=True)
class _Device:
    config: AgentConfig
    folder: Path
    now_ms: int

    @property
    def storage(self) -> Path:
        return Path(self.config.storage)


class _Wrong(Exception):  # noqa: N818  # not an error of ours: a finding on its way
    def __init__(self, said: str, hint: str) -> None:
        super().__init__(said)
        self.said = said
        self.hint = hint


def examine(config_path: Path, now_ms: int) -> tuple[Finding, ...]:
    """Look at a device.

    Args:
        config_path: its agent.toml.
        now_ms: wall time.
    """
    try:
        config = load(config_path)
    except EdgemlError as error:
        return (Finding("settings", good=False, said=error.message, hint=error.hint),)
    device = _Device(config, config_path.resolve().parent, now_ms)
    checks: dict[str, Callable[[_Device], str]] = {
        "settings": lambda one: f"{config_path}: device {one.config.device} of {one.config.tenant}",
        "files": _files,
        "storage": _storage,
        "clock": _clock,
        "runtimes": lambda _one: _runtimes(),
        "trust anchor": _anchor,
        "signatures": _signatures,
        "certificate": _certificate,
        "broker": _broker,
        "blob server": _blobs,
        "journal": _journal,
        "buffer": _buffer,
    }
    return tuple(_finding(name, check, device) for name, check in checks.items())


def _finding(name: str, check: Callable[[_Device], str], device: _Device) -> Finding:
    try:
        return Finding(name, good=True, said=check(device))
    except _Wrong as wrong:
        return Finding(name, good=False, said=wrong.said, hint=wrong.hint)
    except EdgemlError as error:
        return Finding(name, good=False, said=error.message, hint=error.hint or "see the agent's log")
    except OSError as error:
        return Finding(name, good=False, said=str(error), hint="check owner, mode and mount of that path")


def _files(device: _Device) -> str:
    found = []
    broker, tls = device.config.broker, device.config.tls
    if broker is not None and broker.password_file:
        read_secret(Path(broker.password_file))
        found.append("token")
    if tls is not None:
        check_private(Path(tls.identity))
        Path(tls.authority).read_bytes()
        found.append("identity and authority")
    settings = device.folder
    if settings.stat().st_mode & stat.S_IWOTH:
        raise _Wrong(f"anybody may write in {settings}", f"chmod o-w {settings}")
    return f"{', '.join(found) or 'no secrets'}; modes are right"


def _storage(device: _Device) -> str:
    storage = device.storage
    if not storage.exists():
        raise _Wrong(
            f"{storage} does not exist", f"mkdir -p {storage} (the agent makes it at its first start)"
        )
    with tempfile.TemporaryFile(dir=storage) as file:
        file.write(b"edgeml")
        file.flush()
        os.fsync(file.fileno())
    space = os.statvfs(storage)
    free_bytes = space.f_bavail * space.f_frsize
    if free_bytes < FREE_BYTES_MIN:
        raise _Wrong(
            f"only {free_bytes >> 20} MiB are free in {storage}", "free space, or shrink telemetry.bytes_max"
        )
    return f"{storage} can be written, {free_bytes >> 20} MiB free"


def _clock(device: _Device) -> str:
    said = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(device.now_ms / 1000))
    earliest_ms = CLOCK_MIN_MS
    if device.config.tls is not None and Path(device.config.tls.identity).exists():
        earliest_ms = max(earliest_ms, _facts(device.config).not_before_ms)
    if device.now_ms < earliest_ms:
        raise _Wrong(
            f"the clock says {said}, which cannot be", "set the clock, or let NTP do it (timedatectl)"
        )
    return said


def _runtimes() -> str:
    found, reasons = [], []
    for module in RUNTIMES:
        # In a child: a broken runtime may crash whoever imports it.
        done = subprocess.run(
            [sys.executable, "-P", "-c", f"import {module}"],
            capture_output=True,
            timeout=IMPORT_TIMEOUT_S,
            check=False,
        )
        name = module.partition(".")[0]
        if done.returncode == 0:
            found.append(name)
        elif b"No module named" not in done.stderr:
            reasons.append(f"{name} ends with {done.returncode}")
    if not found:
        raise _Wrong(
            f"no runtime can be imported{': ' if reasons else ''}{', '.join(reasons)}",
            "pip install 'edgeml-fleet[agent]'",
        )
    return ", ".join(found + reasons)


def _anchor(device: _Device) -> str:
    paths = (device.storage / "trust" / "root.json", device.folder / "root.json")
    path = next((one for one in paths if one.exists()), None)
    hint = "copy root.json of the fleet's kit beside agent.toml, or enrol again"
    if path is None:
        raise _Wrong("there is none: no release can be checked", hint)
    try:
        root = msgspec.json.decode(path.read_bytes(), type=_Root).signed
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _Wrong(f"{path} cannot be read", hint) from error
    if root.kind != "root":
        raise _Wrong(f"{path} is no root metadata", hint)
    return f"root version {root.version}, until {root.expires[:10]}"


def _signatures(device: _Device) -> str:
    known = freshness.read(device.storage)
    if known.frozen_since_ms is not None:
        raise _Wrong(
            f"expired {known.describe()}",
            "see that `edgeml fleet serve` runs and signs, that nothing in between serves old files, and this clock",
        )
    if not known.checked_at_ms:
        return "none seen yet"
    hours = max(0, device.now_ms - known.checked_at_ms) / 3_600_000
    return f"fresh when last seen, {hours:.0f} h ago"


def _facts(config: AgentConfig) -> keypair.CertificateFacts:
    assert config.tls is not None
    return keypair.facts(Path(config.tls.identity).read_bytes())


def _certificate(device: _Device) -> str:
    if device.config.tls is None:
        return "none: this device logs in by token"
    pem = Path(device.config.tls.identity).read_bytes()
    authority = Path(device.config.tls.authority).read_bytes()
    facts = keypair.check_issued(pem.decode("ascii", "replace"), authority, pem, device.config.device)
    left_ms = facts.not_after_ms - device.now_ms
    if left_ms <= 0:
        raise _Wrong(
            f"expired {-left_ms / _DAY_MS:.1f} days ago",
            f"edgeml agent enroll, with a claim of `edgeml fleet claim create --device {device.config.device}`",
        )
    due = (
        "renewal is due"
        if device.now_ms >= facts.renew_at_ms
        else f"renewed in {(facts.renew_at_ms - device.now_ms) / _DAY_MS:.1f}"
    )
    return f"{left_ms / _DAY_MS:.1f} days left, {due}"


def _broker(device: _Device) -> str:
    config = device.config
    if config.broker is None:
        return "none: this device works alone"
    where = f"{config.broker.host}:{config.broker.port}"
    login = Login(
        host=config.broker.host,
        port=config.broker.port,
        username=config.device,
        password=read_token(config),
        # Another one than the agent's: a broker ends the session of a client id that comes twice.
        client_id=f"{config.device}-doctor-{os.getpid()}",
        tls=config.tls.files if config.tls else None,
    )
    transport = PahoTransport(login, subscriptions=())
    transport.start()
    try:
        arrival = transport.receive(BROKER_TIMEOUT_S)
    finally:
        transport.close()
    match arrival:
        case LinkUp():
            return f"{where} accepts the login"
        case LinkDown(reason):
            _check_handshake(config, (config.broker.host, config.broker.port))
            raise _Wrong(
                reason,
                f"check that {where} can be reached, and `edgeml fleet device list` on the fleet's machine",
            )
        case _:
            raise _Wrong(f"{where} does not answer", "check the address and the network")


def _check_handshake(config: AgentConfig, address: tuple[str, int]) -> None:
    """Find better words for a connection that failed, if TLS is why."""
    if config.tls is None:
        return
    try:
        refusal = find_refusal(address, config.tls.files)
    except OSError:
        return  # not reached at all, which the caller tells
    if refusal is None:
        return
    again = f"edgeml agent enroll, with a claim of `edgeml fleet claim create --device {config.device}`"
    match refusal.fault:
        case Fault.SERVER:
            hint = "check the address, the clock, and [devices] host and [tls] names of the fleet"
        case Fault.OTHER:
            hint = "see the messages of `edgeml fleet serve`"
        case Fault.HUNG_UP:
            hint = f"if `certificate` is good above, this device was removed or enrolled elsewhere: {again}"
        case _:
            hint = again
    raise _Wrong(f"{address[0]}:{address[1]}: {refusal.fault.value} ({refusal.detail})", hint)


def _blobs(device: _Device) -> str:
    if device.config.blobs is None:
        return "none: this device works alone"
    way = way_to_fleet(device.config)
    if isinstance(way, str):
        return f"{way} holds signed metadata ({_length(DirectorySource(Path(way)))} bytes)"
    if way.over is Over.MQTT:
        return f"the fleet sends signed metadata through the broker ({_length_by(way)} bytes)"
    try:
        return f"{way.url} serves signed metadata ({_length_by(msgspec.structs.replace(way, over=Over.HTTP))} bytes)"
    except LinkDownError as error:
        if way.over is Over.HTTP:
            _check_server(device.config, way.url)
            raise
        count = _length_by(msgspec.structs.replace(way, over=Over.MQTT))
        return f"{error.message}; the fleet sends signed metadata through the broker ({count} bytes)"
    except TransferError:
        _check_server(device.config, way.url)
        raise


def _check_server(config: AgentConfig, url: str) -> None:
    where = urlsplit(url)
    if where.hostname:
        _check_handshake(config, (where.hostname, where.port or 443))


def _length_by(way: Route) -> int:
    with ExitStack() as stack:
        return _length(way.open(stack, Meter(Terms())))


def _length(source: Source) -> int:
    """Length of the metadata that change most often."""
    return sum(len(piece) for piece in source.metadata("timestamp.json"))


def _journal(device: _Device) -> str:
    path = device.storage / "journal.db"
    if not path.exists():
        return "empty: the agent has not run yet"
    entries = peek(path)
    said = ", ".join(f"{model} {entry.state.value}" for model, entry in entries.items())
    return f"readable, {said or 'no model yet'}"


def _buffer(device: _Device) -> str:
    path = device.storage / "telemetry.db"
    if not path.exists():
        return "empty: the agent has not run yet"
    hint = "restart the agent: it sets a damaged file aside and begins a new one"
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise _Wrong(f"{path}: {error}", hint) from error
    if said != "ok":
        raise _Wrong(f"{path}: {said}", hint)
    return f"readable, {path.stat().st_size >> 10} KiB"
