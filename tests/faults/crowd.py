"""Honest devices: the simulated ones of `agent.simulation`, with real links, journals, signatures, models and telemetry.

They live in a thread, on the system's clock, and look ten times as often as they do in the demo.
"""

import asyncio
import contextlib
import threading

import msgspec
import numpy as np

from agent.config import BlobsConfig, TelemetryConfig, install_anchor
from agent.config import load as load_config
from agent.simulation import device as simulated
from agent.simulation.device import SimulatedDevice
from agent.simulation.world import Field, Scenario, Shared
from edgeml.ids import ModelName
from edgeml.manifest import RuntimeFamily
from edgeml.runtime import open_session
from edgeml.testing import CLASSES, FEATURES, linear_model
from fleet.overview import Part
from fleet.rollout import RolloutState

from .steered import Steered

WINDOW_S = 0.25
GOOD_SEED = 0
"""Of the model that answers right, but for the wrong labels."""
MODEL = ModelName("sample")


def field(mislabelled=0.1):
    """Inputs as the reference's; the labels are the good model's answers, but for a share that is drawn by lot."""
    lot = np.random.default_rng(99)
    inputs = lot.normal(size=(4000, FEATURES)).astype(np.float32)
    labels = open_session(linear_model(GOOD_SEED), RuntimeFamily.ONNX).run([inputs])[0].argmax(axis=1)
    wrong = lot.random(len(labels)) < mislabelled
    labels[wrong] = (labels[wrong] + lot.integers(1, CLASSES, wrong.sum())) % CLASSES
    return Field(inputs, labels)


@contextlib.contextmanager
def fleet_of(directory, names, slice_s=0.5):
    """A fleet in a hurry, with these devices enrolled."""
    made = Steered(directory, tick_s=0.1, slice_s=slice_s, batches_per_s=50.0)
    made.enrol(*names)
    made.serve()
    try:
        yield made
    finally:
        made.close()


class Crowd:
    """Many devices of a fleet that is steered."""

    def __init__(self, fleet, names, monkeypatch):
        monkeypatch.setattr(simulated, "TICK_S", 0.02)
        monkeypatch.setattr(simulated, "LOOK_S", 0.1)
        directory = fleet.directory / "crowd"
        install_anchor(fleet.directory / names[0] / "agent.toml", directory)
        shared = Shared(directory, field(), None)
        shared.scenario = Scenario(inferences_per_s=50.0, label_delay_s=0.1, labelled_fraction=1.0)
        configs = [
            msgspec.structs.replace(
                load_config(fleet.directory / name / "agent.toml"),
                blobs=BlobsConfig(str(fleet.home.repository)),
                telemetry=TelemetryConfig(window_s=WINDOW_S),
            )
            for name in names
        ]
        self._fleet = fleet
        self.devices = {config.device: SimulatedDevice(config, shared) for config in configs}
        self._loop = asyncio.new_event_loop()
        self._living = None
        self._thread = threading.Thread(target=self._live)
        self._thread.start()

    def _live(self):
        async def everybody():
            await asyncio.gather(*(one.run() for one in self.devices.values()))

        self._living = self._loop.create_task(everybody())
        try:
            self._loop.run_until_complete(self._living)
        except asyncio.CancelledError:
            pass
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def runs(self):
        """The release that each runs, by its own slots."""
        assert self._thread.is_alive(), "a simulated device ended"
        current = {name: one._table.slots(MODEL).current for name, one in self.devices.items()}
        return {name: slot.release if slot else None for name, slot in current.items()}

    def settle(self):
        """Let everybody run 1.0.0, impostors included."""
        first = self._fleet.begin(self._fleet.publish("1.0.0", GOOD_SEED), soak_s=0.0)
        self._fleet.until(
            lambda: self._fleet.state(first) is RolloutState.COMPLETED, "1.0.0 everywhere", self.runs
        )
        self._fleet.until(
            lambda: {one.part for one in self._fleet.seen(first).devices} == {Part.DONE}, "1.0.0 with all"
        )

    def close(self):
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._living.cancel)
        self._thread.join(60)
        assert not self._thread.is_alive()
