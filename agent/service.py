"""The agent: composes the device's parts and runs them.

The composition root of the room and its only loop. One thread moves messages between the link and the transport, time
to the device, and counts to the buffer; others perform the actions of the update machines; HTTP threads only ask the
serving workers and the windows. Nothing is decided here.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Final

from edgeml import __version__
from edgeml.clock import Clock, SystemClock
from edgeml.errors import ConfigError, EdgemlError, StateError, StorageError
from edgeml.ids import DeviceId, ModelName, TenantId
from edgeml.lock import Lock
from edgeml.telemetry import Event, Stream
from edgeml.twin import Birth

from . import flash, heap
from .answering import Answering
from .ballast import Ballast
from .budget import Budget
from .buffer import Buffer, BufferLimits
from .config import LOCK, AgentConfig, install_anchor
from .device import Device
from .fetching import LOOKING, child_environment
from .inbox import Inbox
from .installer import DeviceInstaller, Tools
from .inventory import take_inventory
from .journal import Entry, Journal
from .link import Identity, Link
from .metered_link import connect
from .metrics import Facts, StreamFacts, UpdateFacts, WorkerFacts, render
from .notify import Notifier
from .pace import Pace
from .ration import RENEWAL_BYTES
from .renewal import RENEWED, Renewal
from .roster import Roster
from .sampler import Sampler
from .slots import SlotTable
from .updater import Moment
from .updates import Updates
from .uplink import Uplink
from .vigil import Vigil
from .watched import WatchedFile
from .windows import Windows

logger = logging.getLogger(__name__)

TICK_S: Final = 0.2
DISK_PAUSE_S: Final = 5.0
"""Between attempts while the disk refuses."""


class Service:
    """One agent on one storage directory.

    Raises:
        ConfigError: Settings, token or trust anchor are missing or wrong, or another agent runs here.
        StorageError: The disk refused.
    """

    def __init__(self, config: AgentConfig, config_path: Path, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._storage = Path(config.storage)
        self._lock = Lock(
            self._storage / LOCK,
            f"another agent runs on {self._storage}",
            "stop it first, or give this one its own storage",
        )
        if (config_path.resolve().parent / flash.ROOT).exists():
            install_anchor(config_path, self._storage)
        self._ballast = Ballast(self._storage)
        self._journal = self._ballast.opened(lambda: Journal(self._storage / "journal.db"))
        self._table = SlotTable(self._storage)
        limits = BufferLimits(rows_max=config.telemetry.rows_max, bytes_max=config.telemetry.bytes_max)
        self._buffer = self._ballast.opened(
            lambda: Buffer(self._storage / "telemetry.db", self._journal.boot, limits, self._clock)
        )
        self._budget = Budget(config, self._clock)
        self._supervisor = self._budget.supervisor
        self._roster = Roster(self._supervisor)
        self._windows = Windows(config.telemetry.window_s)
        samples = config.telemetry.samples
        self._sampler = Sampler(samples, self._clock, self._journal.boot) if samples.bytes_per_day else None
        self.answering = Answering(
            self._roster, self._windows, self._clock, self._budget.turnstile, sampler=self._sampler
        )
        self._device = Device(DeviceId(config.device), self._journal, self._table)
        tools = Tools(
            self._supervisor,
            self._roster,
            self._table,
            self._clock,
            self.answering.retire,
            self.answering.expect,
            self.answering.shadow,
            self.answering.totals,
            self._device.wanted,
            self._budget.ledger,
            self._budget.timetable,
            self._budget.traffic,
            lambda error: self._vigil.hear(error, self._clock.now_ms()),
        )
        self._installer = DeviceInstaller(config, tools)
        self._vigil = Vigil(config, self._installer.look)
        self._updates = Updates(
            self._device,
            self._installer,
            config.profile,
            config.update.parallel_downloads,
            self._on_outcome,
        )
        self._budget.govern(self._roster, self._table, self._priority, self._buffer.append)
        self._inbox = Inbox(self._storage, self._device)
        identity = Identity(TenantId(config.tenant), DeviceId(config.device), self._journal.boot)
        self._uplink = Uplink(
            self._buffer,
            identity.tenant,
            identity.device,
            Pace(config.telemetry.backlog_rows_per_s),
            self._budget.traffic,
        )
        self._link = Link(identity, self._device, self._uplink, self._birth)
        # Before the transport reads it, so that no replacement is missed.
        self._identity = WatchedFile(Path(config.tls.identity)) if config.tls else None
        self._transport = connect(config, self._link, self._budget.traffic, self._clock)
        self._renewal = Renewal(config, child_environment())
        self._uploads = self._look_at_uploads()
        self._unserved: dict[ModelName, str] | None = None
        """Models of which no slot could be served, until the machines have gone on; None afterwards."""
        self._stop = threading.Event()
        self.started = threading.Event()

    def run(self) -> None:
        """Run until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        heap.stay_small()
        self.work(Notifier(os.environ))

    def work(self, notifier: Notifier) -> None:
        """Run until `stop`, in any one thread. Whoever waits for `started` sees what is installed serve."""
        server = self._start_server()
        try:
            self._begin()
            heap.give_back()
            if self._transport is not None:
                self._transport.start()
            logger.info("agent %s runs on %s", self._config.device, self._storage)
            notifier.ready()
            self.started.set()
            while not self._stop.is_set():
                self._turn()
                notifier.alive(self._clock.monotonic_s())
        finally:
            notifier.stopping()
            if server is not None:
                server.stop()
            self._end()

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stop.set()

    def _begin(self) -> None:
        """Serve what is installed."""
        self._supervisor.start()
        for quarantined in (self._journal.quarantined, self._table.quarantined, self._buffer.quarantined):
            if quarantined is not None:
                logger.error("%s could not be read and was set aside", quarantined)
                self._event("quarantined", str(quarantined.name))
        if self._sampler is not None:
            # Whoever looks at the fleet is to see that this device sends what it is shown.
            samples = self._config.telemetry.samples
            self._event("sampling_inputs", f"{samples.bytes_per_day} bytes a day, {samples.select.value}")
        self._unserved = {}
        for model in self._table.models:
            before = self._table.slots(model).current
            try:
                serves = self._installer.restore(model, None)
            except StorageError as error:
                # It serves; which slot does is found out again at the next start.
                logger.error("%s", error.message)  # noqa: TRY400 - the user's disk, not our stack, is what matters
                continue
            except StateError as error:
                self._unserved[model] = error.message
                continue
            if before is not None and serves is not None and serves != before:
                # Nobody asked for it, so no deployment will say it.
                self._event(
                    "fell_back", f"{before.release} cannot be served; {serves.release} serves instead"
                )

    def _go_on(self, now: Moment) -> None:
        """Let the machines go on where they stopped: once, as soon as the disk lets them."""
        if self._unserved is None:
            return
        self._device.start(now)
        for model, reason in self._unserved.items():
            self._device.crashed(model, reason, now)
        self._unserved = None

    def _turn(self) -> None:
        """Do what is due, once. A disk that refuses stops updates and telemetry, never the model that serves."""
        try:
            self._budget.turn(self._now(), sum(one.held_back for one in self._uploads))
            self._ballast.keep(self._clock.monotonic_s())
            self._go_on(self._now())
            self._listen()
            now = self._now()
            self._update(now)
            self._watch(now)
            if self._windows_due(now):
                self._close_windows(now)
            self._keep_samples()
            self._buffer.tick()
            self._renew(now)
            self._look_at_signatures(now)
            self._speak(now)
            self._uploads = self._look_at_uploads()
        except StorageError as error:
            logger.error("%s", error.message)  # noqa: TRY400 - the user's disk, not our stack, is what matters
            self._stop.wait(DISK_PAUSE_S)

    def _listen(self) -> None:
        if self._transport is None:
            self._stop.wait(TICK_S)
            return
        arrival = self._transport.receive(TICK_S)
        while arrival is not None:
            self._link.hear(arrival, self._now())
            arrival = self._transport.receive(0)

    def _speak(self, now: Moment) -> None:
        self._link.speak(now)
        while (
            self._transport is not None
            and self._link.outbox
            and self._transport.publish(self._link.outbox[0])
        ):
            self._link.outbox.popleft()

    def _update(self, now: Moment) -> None:
        if self._updates.turn(now):
            heap.give_back()
        for model, slot in self._budget.substitutes(now):
            self._updates.chore(model, partial(self._installer.substitute, model, slot))
        self._inbox.look(now)

    def _on_outcome(self, entry: Entry) -> None:
        assert entry.outcome is not None
        release = entry.desired.release if entry.desired else None
        self._buffer.append(
            Event(
                seq=0,
                kind=entry.outcome.value,
                at_ms=self._clock.now_ms(),
                detail=entry.reason,
                release=release,
            )
        )

    def _priority(self, model: ModelName) -> int:
        desired = self._device.entry(model).desired
        return desired.policy.priority if desired else 0

    def _watch(self, now: Moment) -> None:
        """Notice workers that keep dying."""
        for model, seat in self._roster.seats.items():
            if seat.unstable and not self._updates.in_hand(model):
                self._device.crashed(model, f"the worker died {seat.crashes} times", now)

    def _renew(self, now: Moment) -> None:
        """Keep the certificate fresh, and connect with a new one, whoever wrote it."""
        news = self._renewal.turn(now.wall_ms, now.monotonic_s)
        if news is not None:
            logger.log(
                logging.INFO if news.kind == RENEWED else logging.ERROR, "%s %s", news.kind, news.detail
            )
            self._event(news.kind, news.detail)
            self._budget.traffic.add(RENEWAL_BYTES)
        if self._identity is None or not self._identity.changed(now.monotonic_s):
            return
        if self._transport is not None:
            try:
                self._transport.reload_identity()
            except ConfigError as error:
                logger.error("the new identity is not used: %s (%s)", error.message, error.hint)  # noqa: TRY400  # one line
                return
        self._renewal.look_again()
        logger.info("the identity was replaced; connecting with the new one")

    def _look_at_signatures(self, now: Moment) -> None:
        news = self._vigil.turn(now)
        if news is not None:
            self._event(news.kind, news.detail)
            self._link.introduce(now)

    def _windows_due(self, now: Moment) -> bool:
        with self.answering.lock:
            return self._windows.due(now.monotonic_s)

    def _close_windows(self, now: Moment) -> None:
        for window in self.answering.close(now.wall_ms):
            self._buffer.append(window)
        self._buffer.flush()

    def _keep_samples(self) -> None:
        if self._sampler is None:
            return
        taken = self._sampler.take()
        for sample in taken.samples:
            self._buffer.append(sample)
        if taken.too_long:
            self._buffer.refuse_new(Stream.SAMPLES, taken.too_long)

    def _event(self, kind: str, detail: str) -> None:
        self._buffer.append(Event(seq=0, kind=kind, at_ms=self._clock.now_ms(), detail=detail))

    def _start_server(self) -> Any:
        if not self._config.serve.listen:
            return None
        from .intake import Intake
        from .server import Server

        intake = Intake(self._storage, self._config.budget.storage_bytes)
        server = Server(self.answering, self._config.serve.listen, metrics=self._metrics, intake=intake)
        server.start()
        return server

    def _look_at_uploads(self) -> tuple[StreamFacts, ...]:
        """Counts of the buffer, which only this thread may ask, for threads that may not."""
        return tuple(
            StreamFacts(one, self._buffer.loss(one), self._buffer.held(one), self._uplink.held_back(one))
            for one in Stream
        )

    def _metrics(self) -> str:
        """Write the page of metrics, in a thread of the endpoint."""
        entries = [(model, self._device.entry(model)) for model in self._device.models]
        workers = self._roster.workers.values()
        return render(
            Facts(
                agent_version=__version__,
                releases=self.answering.totals(),
                workers=tuple(WorkerFacts(one.manifest.release, one.memory_bytes()) for one in workers),
                tolls={model: seat.toll for model, seat in self._roster.seats.items()},
                streams=self._uploads,
                updates=tuple(UpdateFacts(model, entry.state, entry.outcome) for model, entry in entries),
                budget=self._budget.facts(),
                frozen=self._vigil.known.frozen_since_ms is not None,
            )
        )

    def _birth(self, now: Moment) -> Birth:
        return take_inventory(self._config, self._journal.boot, self._vigil.known, now)

    def _now(self) -> Moment:
        return Moment(self._clock.now_ms(), self._clock.monotonic_s())

    def _end(self) -> None:
        """Leave in order; everything that matters is on disk already."""
        self._renewal.stop()
        self._vigil.close()
        self._updates.close()
        self._installer.cancel(LOOKING)
        self._installer.close()
        now = self._now()
        try:
            self._close_windows(now)
        except EdgemlError as error:
            logger.warning("the last windows are lost: %s", error.message)
        if self._transport is not None:
            if self._link.up:
                self._transport.publish(self._link.farewell(now))
                deadline = time.monotonic() + 1.0
                while self._transport.unconfirmed and time.monotonic() < deadline:
                    time.sleep(0.02)
            self._transport.close()
        self._roster.close()
        self._supervisor.close()
        try:
            self._buffer.close()
        finally:
            self._journal.close()
            self._ballast.keep_now()
        logger.info("agent %s has stopped", self._config.device)
