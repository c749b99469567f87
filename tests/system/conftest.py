"""A whole fleet in one process: the real controller, real devices but for their processes, a loopback broker, a fake clock."""

import random

import numpy as np
import pytest

from agent.buffer import Buffer
from agent.config import AgentConfig, BlobsConfig, BrokerConfig, TelemetryConfig
from agent.device import Device
from agent.executor import Executor
from agent.journal import Journal
from agent.link import Identity, Link
from agent.simulation.installer import SharedInstaller
from agent.simulation.world import Field, Shared
from agent.slots import SlotTable
from agent.updater import Lane, Moment
from agent.uplink import Uplink
from agent.windows import Observed, ReleaseKey, Windows
from edgeml import topics
from edgeml.ids import DeviceId, ModelName, TenantId, model_of
from edgeml.observer import Observer
from edgeml.testing import FakeClock, LoopbackBroker, sample_bundle
from edgeml.topics import CONTROLLER_USER
from edgeml.twin import Birth
from fleet import campaigns, devices, founding, overview
from fleet.config import FleetHome, LoopSettings, database_url
from fleet.config import load as load_config
from fleet.devices import Enrolment
from fleet.repository import Repository
from fleet.rollout import FINISHED, Plan
from fleet.service import Controller
from fleet.store import Store

PROFILE = "generic-x86-64"
WINDOW_S = 4.0


class LoopAgent:
    """A device without its processes: real journal, slots, buffer, signatures and model; time is the fake clock's."""

    def __init__(self, world, name):
        self.world = world
        self.name = name
        self.counted = 0
        self.random = random.Random(name)
        self.begin()

    def begin(self):
        storage = self.world.directory / "devices" / self.name
        storage.mkdir(parents=True, exist_ok=True)
        token = storage / "token"
        token.write_text("not asked for by the loopback broker")
        token.chmod(0o600)
        config = AgentConfig(
            device=self.name, profile=PROFILE, storage=str(storage), tenant=self.world.tenant,
            broker=BrokerConfig("loopback", 1, str(token)), blobs=BlobsConfig(str(self.world.home.repository)),
            telemetry=TelemetryConfig(window_s=WINDOW_S),
        )  # fmt: skip
        self.journal = Journal(storage / "journal.db")
        self.table = SlotTable(storage)
        self.installer = SharedInstaller(config, self.table, self.world.shared)
        self.executor = Executor(self.installer, PROFILE)
        self.device = Device(DeviceId(self.name), self.journal, self.table)
        self.buffer = Buffer(storage / "telemetry.db", self.journal.boot)
        identity = Identity(self.world.tenant, DeviceId(self.name), self.journal.boot)
        self.link = Link(
            identity, self.device, Uplink(self.buffer, identity.tenant, identity.device), self.birth
        )
        self.windows = Windows(WINDOW_S)
        self.observers = {}
        self.owed = []
        self.asked = 0
        self.transport = self.world.broker.connect(self.name, self.link.subscriptions, self.link.will)
        for model in self.table.models:
            self.installer.restore(model, None)
        self.device.start(self.now())
        self.transport.start()

    def end(self):
        """Vanish as a killed process would: nothing is flushed, the broker says the will."""
        self.transport.cut()
        self.buffer._connection.close()
        self.journal.close()

    def restart(self):
        self.end()
        self.begin()

    def now(self):
        return Moment(self.world.clock.now_ms(), self.world.clock.monotonic_s())

    def birth(self, now):
        return Birth(
            device=DeviceId(self.name),
            session=self.journal.boot,
            profile=PROFILE,
            agent_version="test",
            at_ms=now.wall_ms,
        )

    def tick(self):
        while (arrival := self.transport.receive(0)) is not None:
            self.link.hear(arrival, self.now())
        while (
            perform := self.device.next(self.now(), Lane.LOCAL) or self.device.next(self.now(), Lane.NETWORK)
        ) is not None:
            self.device.done(perform, self.executor.perform(perform), self.now())
        self.look()
        if self.windows.due(self.world.clock.monotonic_s()):
            self.close_windows()
        self.link.speak(self.now())
        while self.link.outbox and self.transport.publish(self.link.outbox[0]):
            self.link.outbox.popleft()

    def look(self):
        owed, self.owed = self.owed, []
        for model, request, label in owed:
            assert self.windows.labelled(model, request, label)
        for serving in list(self.installer.serving.values()):
            self.ask(serving)

    def ask(self, serving):
        loaded = self.world.shared.load(serving.digest)
        picks = [self.random.randrange(len(self.world.shared.scene.images)) for _ in range(5)]
        images = self.world.shared.scene.images[picks]
        if self.name in self.world.shifted:
            images = images + np.float32(2.0)
        answers = loaded.session.run([images])
        observer = self.observers.setdefault(serving.digest, Observer(loaded.monitor, loaded.manifest))
        observer.observe([images], answers)
        for pick, predicted in zip(picks, answers[0].argmax(axis=1).tolist(), strict=True):
            self.asked += 1
            request = f"{self.journal.boot}-{self.asked}"
            self.windows.answered(
                ReleaseKey(serving.release, serving.digest), 50.0, predicted, request, slow=False
            )
            self.owed.append((model_of(serving.release), request, int(self.world.shared.scene.labels[pick])))

    def close_windows(self):
        observations = {}
        for digest, observer in self.observers.items():
            taken = observer.take()
            observations[ReleaseKey(self.world.shared.models[digest].manifest.release, digest)] = Observed(
                taken.sketch, taken.low_confidence, 0
            )
        for window in self.windows.close(
            self.world.clock.now_ms(), self.world.clock.monotonic_s(), observations
        ):
            self.buffer.append(window)
            self.counted += window.counters.inferences
        self.buffer.flush()


class World:
    """The fleet and its devices."""

    def __init__(self, directory, weather=None, devices_count=10):
        self.directory = directory
        self.clock = FakeClock()
        self.home = FleetHome(directory / "fleet")
        founding.found(self.home)
        config = load_config(self.home)
        self.config = type(config)(
            **{
                **{f: getattr(config, f) for f in config.__struct_fields__},
                "controller_loop": LoopSettings(slice_s=WINDOW_S),
            }
        )
        self.tenant = TenantId(self.config.tenant)
        self.store = Store(database_url(self.home, self.config))
        self.repository = Repository(self.home.repository)
        self.broker = LoopbackBroker(self.tenant, weather)
        self.shifted = set()
        self.names = [f"cam-{index:02}" for index in range(devices_count)]
        shared = directory / "shared"
        (shared / "trust").mkdir(parents=True)
        (shared / "trust" / "root.json").write_bytes(
            (self.home.repository / "metadata" / "1.root.json").read_bytes()
        )
        self.shared = Shared(shared, self.field(), None)
        with self.store.write() as connection:
            for name in self.names:
                devices.enrol(
                    connection,
                    Enrolment(
                        device=DeviceId(name),
                        tenant=self.tenant,
                        profile=PROFILE,
                        token_sha256="0" * 64,
                        broker_hash="",
                        enrolled_at_ms=0,
                    ),
                )
        self.agents = {name: LoopAgent(self, name) for name in self.names}
        self.start_controller()

    def field(self):
        """Samples as the reference's, with the labels that the good model (seed 0) gives."""
        from edgeml.manifest import RuntimeFamily
        from edgeml.runtime import open_session
        from edgeml.testing import linear_model

        samples = np.random.default_rng(99).normal(size=(2000, 4)).astype(np.float32)
        answers = open_session(linear_model(0), RuntimeFamily.ONNX).run([samples])[0]
        return Field(samples, answers.argmax(axis=1))

    def start_controller(self):
        self.controller_link = self.broker.connect(CONTROLLER_USER, topics.up_filters(self.tenant))
        self.controller = Controller(
            self.store, self.repository, self.controller_link, self.clock, self.config
        )
        self.controller_link.start()

    def restart_controller(self):
        self.controller_link.cut()
        self.start_controller()

    def publish(self, version, seed=0):
        path = self.directory / f"{version}.edgeml"
        sample_bundle(path, version, seed=seed)
        founding.publish(self.home, self.store, [path], self.home.keys)
        return f"sample@{version}"

    def start_rollout(self, release, waves=(0.3, 0.6, 1.0), soak_s=40.0, **more):
        plan = Plan(release=release, waves=waves, soak_s=soak_s, trials_min=10, **more)
        return campaigns.start(self.store, self.repository, plan, self.clock.now_ms()).id

    def step(self):
        self.clock.advance(1.0)
        for agent in self.agents.values():
            if agent is not None:
                agent.tick()
        self.controller.step(0)

    def run_until_finished(self, rollout_id, every_step=lambda _second: None, seconds=600):
        for second in range(seconds):
            self.step()
            every_step(second)
            view = overview.rollout(self.store, rollout_id)
            if view.rollout.state in FINISHED:
                return view
        raise AssertionError(
            f"still {view.rollout.state} {view.rollout.phase} wave {view.rollout.wave}: {view.rollout.reason}"
        )

    def current(self):
        """The release each device runs, by its own slots."""
        found = {}
        for name, agent in self.agents.items():
            slot = agent.table.slots(ModelName("sample")).current
            found.setdefault(slot.release if slot else None, []).append(name)
        return found


@pytest.fixture
def make_world(tmp_path):
    made = []

    def make(**more):
        world = World(tmp_path / f"world-{len(made)}", **more)
        made.append(world)
        return world

    yield make
    for world in made:
        for agent in world.agents.values():
            agent.end()
        world.store.close()
