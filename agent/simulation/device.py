"""One simulated device: the same machine, journal, link and telemetry as a real one, as coroutines.

Decides how it looks at images, hears labels and keeps its link. What is shared and what is simulated: `world`.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import random
import time
from collections import deque
from pathlib import Path
from typing import Final

import aiomqtt
import numpy as np

from edgeml import __version__
from edgeml.columns import to_real
from edgeml.errors import StateError
from edgeml.ids import DeviceId, Digest, ModelName, TenantId, model_of
from edgeml.observer import Observer
from edgeml.runtime import installed_runtimes
from edgeml.transport import LinkDown, LinkUp, Message
from edgeml.twin import Birth, Slot

from ..buffer import Buffer, BufferLimits
from ..config import AgentConfig, read_secret
from ..device import Device
from ..executor import Executor
from ..journal import Journal
from ..link import Identity, Link
from ..machine import Action
from ..pace import Pace
from ..slots import SlotTable
from ..updater import Lane, Moment
from ..uplink import Uplink
from ..windows import Observed, ReleaseKey, Windows
from .installer import SharedInstaller
from .world import Loaded, Shared

logger = logging.getLogger(__name__)

TICK_S: Final = 0.1
LOOK_S: Final = 0.5
RECONNECT_MAX_S: Final = 5.0


class SimulatedDevice:
    """One simulated device: the same machine, journal, link and telemetry as a real one."""

    def __init__(self, config: AgentConfig, shared: Shared) -> None:
        self._config = config
        self._shared = shared
        storage = Path(config.storage)
        self._journal = Journal(storage / "journal.db")
        self._table = SlotTable(storage)
        self._installer = SharedInstaller(config, self._table, shared)
        self._executor = Executor(self._installer, config.profile)
        self._device = Device(DeviceId(config.device), self._journal, self._table)
        limits = BufferLimits(rows_max=config.telemetry.rows_max, bytes_max=config.telemetry.bytes_max)
        self._buffer = Buffer(storage / "telemetry.db", self._journal.boot, limits)
        identity = Identity(TenantId(config.tenant), DeviceId(config.device), self._journal.boot)
        pace = Pace(config.telemetry.backlog_rows_per_s)
        uplink = Uplink(self._buffer, identity.tenant, identity.device, pace)
        self._link = Link(identity, self._device, uplink, self._birth)
        self._windows = Windows(config.telemetry.window_s)
        self._observers: dict[Digest, Observer] = {}
        self._labels: deque[tuple[float, ModelName, str, int]] = deque()
        self._random = random.Random(config.device)
        self._asked = 0
        self._owed = 0.0

    async def run(self) -> None:
        """Live until cancelled."""
        now = _now()
        failed: dict[ModelName, str] = {}
        for model in self._table.models:
            try:
                self._installer.restore(model, None)
            except StateError as error:
                failed[model] = error.message
        self._device.start(now)
        for model, reason in failed.items():
            self._device.crashed(model, reason, now)
        try:
            await asyncio.gather(self._update(), self._answer(), self._talk())
        finally:
            self._buffer.flush()
            self._buffer.close()
            self._journal.close()

    async def _update(self) -> None:
        """Perform actions as they fall due."""
        while True:
            perform = self._device.next(_now(), Lane.LOCAL) or self._device.next(_now(), Lane.NETWORK)
            if perform is None:
                await asyncio.sleep(TICK_S)
                continue
            # One at a time over all devices: they share the store, the trust and the processor.
            async with self._shared.fetching:
                result = await asyncio.to_thread(self._executor.perform, perform)
            self._device.done(perform, result, _now())
            if perform.action is Action.ACTIVATE:
                # The newcomer's window begins now, as on a real device.
                self._close_windows()

    async def _answer(self) -> None:
        """Look at images, hear labels, close windows."""
        await asyncio.sleep(self._random.random())
        while True:
            started = time.monotonic()
            self._shared.refresh_scenario()
            self._look(started)
            while self._labels and self._labels[0][0] <= started:
                _, model, request, label = self._labels.popleft()
                self._windows.labelled(model, request, label)
            if self._windows.due(started):
                self._close_windows()
            await asyncio.sleep(max(0.0, LOOK_S - (time.monotonic() - started)))

    def _look(self, now_s: float) -> None:
        self._owed += self._shared.scenario.inferences_per_s * LOOK_S
        count, self._owed = int(self._owed), self._owed % 1
        picks = [self._random.randrange(len(self._shared.scene.images)) for _ in range(count)]
        if not picks:
            return
        for serving in list(self._installer.serving.values()):
            self._ask(serving, picks, now_s)

    def _ask(self, serving: Slot, picks: list[int], now_s: float) -> None:
        loaded = self._shared.load(serving.digest)
        count = len(picks)
        images = self._shared.scene.images[picks]
        if self._config.device in self._shared.scenario.rotated:
            images = np.ascontiguousarray(np.rot90(images, axes=(-2, -1)))
        key = ReleaseKey(serving.release, serving.digest)
        observer = self._observer(serving.digest, loaded)
        begun = time.perf_counter_ns()
        inputs = loaded.pipeline.prepare([images])
        outputs = loaded.session.run(inputs)
        latency_us = (time.perf_counter_ns() - begun) / 1000 / count
        if observer is not None:
            observer.observe(loaded.pipeline.watched([images], inputs), outputs)
        scores = to_real(outputs[0].reshape(count, -1), loaded.manifest.outputs[0])
        slow = (
            loaded.monitor is not None
            and loaded.monitor.latency_slow_ms is not None
            and latency_us / 1000 > loaded.monitor.latency_slow_ms
        )
        for pick, predicted in zip(picks, scores.argmax(axis=1).tolist(), strict=True):
            self._asked += 1
            request = f"{self._journal.boot}-{self._asked}"
            self._windows.answered(key, latency_us, predicted, request, slow=slow)
            if self._random.random() < self._shared.scenario.labelled_fraction:
                self._labels.append(
                    (
                        now_s + self._shared.scenario.label_delay_s,
                        model_of(serving.release),
                        request,
                        int(self._shared.scene.labels[pick]),
                    )
                )

    def _observer(self, digest: Digest, loaded: Loaded) -> Observer | None:
        if loaded.monitor is None:
            return None
        if digest not in self._observers:
            self._observers[digest] = Observer(loaded.monitor, loaded.manifest.watched)
        return self._observers[digest]

    def _close_windows(self) -> None:
        observations = {}
        for digest, observer in self._observers.items():
            taken = observer.take()
            key = ReleaseKey(self._shared.models[digest].manifest.release, digest)
            observations[key] = Observed(taken.sketch, taken.low_confidence, 0)
        for window in self._windows.close(_now().wall_ms, _now().monotonic_s, observations):
            self._buffer.append(window)
        self._buffer.flush()

    async def _talk(self) -> None:
        """Keep a link with the broker."""
        broker = self._config.broker
        assert broker is not None
        while True:
            will = self._link.will
            try:
                async with aiomqtt.Client(
                    broker.host, broker.port, username=self._config.device, password=read_secret(Path(broker.password_file)),
                    identifier=self._config.device, keepalive=30, timeout=30,
                    will=aiomqtt.Will(will.topic, will.payload, will.qos, will.retain),
                ) as client:  # fmt: skip
                    for topic in self._link.subscriptions:
                        await client.subscribe(topic, qos=1)
                    self._link.hear(LinkUp(), _now())
                    await self._converse(client)
            except (aiomqtt.MqttError, OSError) as error:
                self._link.hear(LinkDown(str(error)), _now())
            await asyncio.sleep(self._random.uniform(0.2, RECONNECT_MAX_S))

    async def _converse(self, client: aiomqtt.Client) -> None:
        async def listen() -> None:
            async for message in client.messages:
                payload = message.payload if isinstance(message.payload, bytes) else b""
                self._link.hear(Message(message.topic.value, payload), _now())

        listener = asyncio.create_task(listen())
        try:
            while not listener.done():
                self._link.speak(_now())
                while self._link.outbox:
                    message = self._link.outbox[0]
                    await client.publish(message.topic, message.payload, message.qos, message.retain)
                    if self._link.outbox and self._link.outbox[0] is message:
                        self._link.outbox.popleft()
                await asyncio.sleep(TICK_S)
            listener.result()
        finally:
            listener.cancel()

    def _birth(self, now: Moment) -> Birth:
        return Birth(
            device=DeviceId(self._config.device), session=self._journal.boot, profile=self._config.profile,
            agent_version=f"{__version__} (simulated on {platform.machine()})", runtimes=installed_runtimes(), at_ms=now.wall_ms,
        )  # fmt: skip


def _now() -> Moment:
    return Moment(time.time_ns() // 1_000_000, time.monotonic())
