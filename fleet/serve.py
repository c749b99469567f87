"""Runs a fleet on one machine: broker, HTTP server and controller, as three children of one supervisor.

Decides in which order they start and stop, that one which dies is started again with growing pauses, and that none
outlives the supervisor. What each does is its own file's business. When logins change on disk, the broker is told; when
somebody may not log in any more it is restarted, because that ends the connections that are there; several such within
a few seconds share a restart.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeml import atomic
from edgeml.clock import SystemClock
from edgeml.errors import ConfigError, EdgemlError, StateError

from . import broker, devices, locks, tls_files
from .broker import BrokerKind, Launch
from .config import FleetConfig, FleetHome, database_url, load
from .lifeline import tied_to_parent
from .store import Store
from .tokens import operator_token

logger = logging.getLogger(__name__)

POLL_S: Final = 0.1
START_S: Final = 20.0
STOP_S: Final = 4.0
TEND_EVERY_S: Final = 6 * 3600.0
"""How often it is looked whether the server's certificate is to be made anew."""
BACKOFF_FIRST_S: Final = 0.2
BACKOFF_MOST_S: Final = 10.0
RESTARTS_APART_S: Final = 10.0
"""Between two restarts of the broker for logins that were taken away."""
STEADY_S: Final = 20.0
"""A child that has lived so long is started again without a pause when it dies."""
BROKER: Final = "broker"
HTTP: Final = "http"
HTTPS: Final = "https"
CONTROLLER: Final = "controller"


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """What runs where: `run/serve.json`, for tools. Removed when it stops."""

    pid: int
    pids: dict[str, int]
    broker: str
    broker_host: str
    broker_port: int
    http_host: str
    http_port: int
    started_at_ms: int


@dataclass(slots=True)
class Child:
    """One child and when it may be started."""

    name: str
    command: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    start_at_s: float = 0.0
    backoff_s: float = BACKOFF_FIRST_S
    restarts: int = field(default=0)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def start(self, now_s: float) -> None:
        """Start it, tied to this process."""
        # The only thread of this process forks, so preexec_fn is safe here.
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, preexec_fn=tied_to_parent())  # noqa: PLW1509
        self.started_s = now_s

    def on_death(self, now_s: float) -> None:
        """Plan the next start."""
        steady = now_s - self.started_s >= STEADY_S
        self.backoff_s = BACKOFF_FIRST_S if steady else min(self.backoff_s * 2, BACKOFF_MOST_S)
        self.start_at_s = now_s + (0.0 if steady else self.backoff_s)
        self.process = None
        self.restarts += 1


class Supervisor:
    """Keeps a fleet's children running.

    Raises:
        ConfigError: No fleet there, a port is in use, or the fleet is served already.
        StorageError, StateError: Its files or database cannot be used.
    """

    def __init__(self, home: FleetHome, say: Callable[[str], None]) -> None:
        self._home = home
        self._say = say
        self._config: FleetConfig = load(home)
        self._lock = locks.hold(home, locks.SERVE, "`edgeml fleet serve`")
        self._launch: Launch = broker.prepare(home, self._config)
        store = Store(database_url(home, self._config))
        with store.read() as connection:
            broker.write_logins(home, devices.logins(connection))
        tls = self._config.tls.http_port != 0
        if tls:
            tls_files.prepare(home, self._config, store, SystemClock().now_ms())
        store.close()
        operator_token(home)
        self._logins = _stamps(broker.login_files(home))
        self._revoked = _stamps((broker.revoked_path(home),))
        self._restart_at_s: float | None = None
        self._restarted_s = -RESTARTS_APART_S
        self._stopping = False
        self._tend_at_s = time.monotonic() + TEND_EVERY_S
        self._started_at_ms = time.time_ns() // 1_000_000
        place = ("--dir", str(home.directory))
        self._children = (
            Child(BROKER, self._launch.command),
            Child(HTTP, (sys.executable, "-P", "-m", f"{__package__}.api", *place)),
            *(
                [Child(HTTPS, (sys.executable, "-P", "-m", f"{__package__}.api", "--tls", *place))]
                if tls
                else []
            ),
            Child(CONTROLLER, (sys.executable, "-P", "-m", f"{__package__}.controller_process", *place)),
        )

    def run(self) -> None:
        """Run until SIGTERM or SIGINT.

        Raises:
            ConfigError: A port is in use.
            StateError: A child does not come up.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        for section, (host, port) in self._addresses().items():
            _check_free(section, host, port)
        try:
            self._start_all()
            while not self._stopping:
                self._watch()
                time.sleep(POLL_S)
        finally:
            self._stop_all()
            self._state_path().unlink(missing_ok=True)
            self._lock.release()

    def _on_signal(self, _number: int, _frame: Any) -> None:
        self._stopping = True

    def _addresses(self) -> dict[str, tuple[str, int]]:
        found = {
            BROKER: (self._config.broker.host, self._config.broker.port),
            HTTP: (self._config.http.host, self._config.http.port),
        }
        if self._config.tls.http_port:
            found[HTTPS] = (self._config.tls.host, self._config.tls.http_port)
        return found

    def _start_all(self) -> None:
        self._say(f"broker      {self._launch.note}")
        until_s = time.monotonic() + START_S
        for child in self._children:
            child.start(time.monotonic())
            address = self._addresses().get(child.name)
            while address is not None and not _answers(*address) and not self._stopping:
                if not child.alive or time.monotonic() > until_s:
                    raise StateError(f"the {child.name} does not come up", hint="its own message is above")
                time.sleep(POLL_S / 2)
        self._write_state()
        config = self._config
        self._say(f"            mqtt://{config.broker.host}:{config.broker.port}")
        self._say(
            f"http        http://{config.http.host}:{config.http.port}  (operator's token: {self._home.operator_token})"
        )
        if config.tls.http_port:
            tls = config.tls
            self._say(f"tls         mqtts://{tls.host}:{tls.broker_port}, https://{tls.host}:{tls.http_port}")
        self._say(f"controller  {config.controller}, tenant {config.tenant}")
        self._say(f"directory   {self._home.directory}")
        self._say("ready; stop with Ctrl-C")

    def _watch(self) -> None:
        now_s = time.monotonic()
        changed = False
        for child in self._children:
            if child.process is not None and child.process.poll() is not None:
                code = child.process.returncode
                child.on_death(now_s)
                logger.warning(
                    "the %s ended (%s); starting it again in %.1f s",
                    child.name,
                    code,
                    child.start_at_s - now_s,
                )
            if child.process is None and now_s >= child.start_at_s:
                child.start(now_s)
                changed = True
        if changed:
            self._write_state()
        if self._config.tls.http_port and now_s >= self._tend_at_s:
            self._tend_certificate()
            self._tend_at_s = now_s + TEND_EVERY_S
        self._tell_broker_of_logins(now_s)

    def _tend_certificate(self) -> None:
        """Give the TLS listeners a new certificate where that is due; they read it when they start."""
        before = _stamps((tls_files.server_path(self._home),))
        store = Store(database_url(self._home, self._config))
        try:
            tls_files.prepare(self._home, self._config, store, SystemClock().now_ms())
        except EdgemlError as error:
            # Two thirds of its life have passed, so there is time; the next look is in some hours.
            logger.error("the server's certificate is not renewed: %s (%s)", error.message, error.hint)  # noqa: TRY400  # one line
        finally:
            store.close()
        if _stamps((tls_files.server_path(self._home),)) != before:
            logger.info("the server's certificate is new; restarting what uses it")
            for child in self._children:
                if child.name in {BROKER, HTTPS} and child.process is not None:
                    child.process.terminate()

    def _tell_broker_of_logins(self, now_s: float) -> None:
        """Let the broker read who may log in; restart it for those who may not any more.

        No broker ends the connections of a login that was taken away, and a restart ends everybody's: several within
        a short time share one. Nobody gets in anew meanwhile: mosquitto reads logins and revocations at SIGHUP.
        """
        before, self._logins = self._logins, _stamps(broker.login_files(self._home))
        revoked_before, self._revoked = self._revoked, _stamps((broker.revoked_path(self._home),))
        process = self._children[0].process
        if self._revoked != revoked_before and self._restart_at_s is None:
            self._restart_at_s = max(now_s, self._restarted_s + RESTARTS_APART_S)
        if process is None:
            return
        if self._restart_at_s is not None and now_s >= self._restart_at_s:
            logger.info("logins were taken away; restarting the broker to end their connections")
            self._restart_at_s, self._restarted_s = None, now_s
            process.terminate()
        elif self._launch.kind is BrokerKind.MOSQUITTO and (
            self._logins != before or self._revoked != revoked_before
        ):
            process.send_signal(signal.SIGHUP)

    def _stop_all(self) -> None:
        until_s = time.monotonic() + STOP_S
        # The broker goes last, so that the controller can say goodbye.
        for group in (self._children[1:], self._children[:1]):
            for child in group:
                if child.process is not None and child.alive:
                    child.process.terminate()
            for child in group:
                _wait(child, until_s - (STOP_S / 3 if child.name != BROKER else 0.0))

    def _state_path(self) -> Path:
        return self._home.run / "serve.json"

    def _write_state(self) -> None:
        running = Running(
            pid=os.getpid(),
            pids={child.name: child.process.pid for child in self._children if child.process is not None},
            broker=self._launch.kind.value,
            broker_host=self._config.broker.host,
            broker_port=self._config.broker.port,
            http_host=self._config.http.host,
            http_port=self._config.http.port,
            started_at_ms=self._started_at_ms,
        )
        atomic.write_bytes(self._state_path(), msgspec.json.encode(running))


def _stamps(paths: tuple[Path, ...]) -> tuple[int, ...]:
    return tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in paths)


def _wait(child: Child, until_s: float) -> None:
    if child.process is None:
        return
    try:
        child.process.wait(max(0.0, until_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        logger.warning("the %s does not stop; killing it", child.name)
        child.process.kill()
        child.process.wait()


def _check_free(section: str, host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}",
            hint=f"stop what listens there, or change [{section}] in fleet.toml",
        ) from error


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=0.5).close()
    except OSError:
        return False
    return True
