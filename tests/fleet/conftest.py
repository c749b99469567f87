"""A controller on a loopback broker with devices that say what a test tells them to."""

import msgspec
import pytest
import sqlalchemy as sa

from edgeml import telemetry, topics, twin
from edgeml.ids import DeviceId, ReleaseId, TenantId
from edgeml.manifest import RuntimeFamily
from edgeml.telemetry import Batch, Counters, Loss, Stream, Window
from edgeml.testing import FakeClock, LoopbackBroker
from edgeml.topics import CONTROLLER_USER, Leaf
from edgeml.transport import Message
from edgeml.trustfacts import SignedFacts, SignedTarget
from edgeml.twin import Ack, Birth, Desired, DeviceState, Presence, Reported, Slot, Slots
from fleet import campaigns, devices, rollout_store, schema
from fleet.config import FleetConfig, LoopSettings
from fleet.devices import Enrolment
from fleet.rollout import Plan
from fleet.service import Controller
from fleet.store import Store

TENANT = TenantId("main")
OLD, NEW = ReleaseId("digits@1.0.0"), ReleaseId("digits@1.1.0")
ALARMS_OLD, ALARMS_NEW = ReleaseId("alarms@1.0.0"), ReleaseId("alarms@2.0.0")
DIGESTS = {OLD: "a" * 64, NEW: "b" * 64, ALARMS_OLD: "d" * 64, ALARMS_NEW: "e" * 64}
PROFILE = "generic-x86-64"


class Published:
    """What is signed: two releases of two models, for one profile."""

    def __init__(self, directory):
        self.directory = directory

    def releases(self):
        return [self.variant_for(release, PROFILE) for release in DIGESTS]

    def variant_for(self, release, profile):
        if release not in DIGESTS or profile != PROFILE:
            return None
        facts = SignedFacts(release, "v", 1, (PROFILE,), RuntimeFamily.ONNX, 1 << 18, "c" * 64)
        return SignedTarget(f"{release.replace('@', '/')}/v.edgeml", DIGESTS[release], 1000, facts)


class Cam:
    """What a device says; what it hears is kept."""

    def __init__(self, world, name, session="s1"):
        self.name, self.session, self.tenant = DeviceId(name), session, TENANT
        will = Message(
            self.topic(Leaf.STATE), twin.encode(Presence(online=False, session=session)), retain=True
        )
        self.link = world.broker.connect(name, topics.down_filters(TENANT, self.name), will)
        self.heard = []

    def topic(self, leaf, tail=None):
        return topics.device_topic(self.tenant, self.name, leaf, tail)

    def come(self):
        self.link.start()
        self.presence(online=True)
        self.say(
            Leaf.BIRTH, Birth(device=self.name, session=self.session, profile=PROFILE, agent_version="test")
        )

    def presence(self, *, online, session=None):
        self.say(Leaf.STATE, Presence(online=online, session=session or self.session))

    def report(self, release=OLD, outcome=None, desired=None, digest=None, reason="", model="digits"):
        slots = Slots(Slot(release, digest or DIGESTS[release], "t", 1)) if release else Slots()
        generation, deployment = (desired.generation, desired.deployment) if desired else (0, None)
        self.say(
            Leaf.REPORTED,
            Reported(
                generation=generation,
                deployment=deployment,
                state=DeviceState.IDLE,
                slots=slots,
                outcome=outcome,
                reason=reason,
            ),
            model,
        )

    def say(self, leaf, message, model=None):
        rule = topics.RULES[leaf]
        self.link.publish(Message(self.topic(leaf, model), twin.encode(message), rule.qos, rule.retain))

    def rows(self, *seqs, boot="b1", release=OLD, at_ms=0, ahead=False, **counters):
        made = tuple(
            Window(seq, release, DIGESTS[release], at_ms, 1000, Counters(inferences=50, **counters))
            for seq in seqs
        )
        batch = Batch(boot, made, loss=Loss(produced=len(seqs)))
        self.raw(telemetry.encode_batch(batch.ahead() if ahead else batch))

    def raw(self, payload, leaf=Leaf.TELEMETRY, stream=Stream.WINDOWS):
        tails = {Leaf.TELEMETRY: stream, Leaf.REPORTED: "digits"}
        self.link.publish(Message(self.topic(leaf, tails.get(leaf)), payload))

    def listen(self):
        # More than once: messages may be held back for a while.
        for _ in range(20):
            while (arrival := self.link.receive(0)) is not None:
                if isinstance(arrival, Message):
                    self.heard.append(arrival)
        return self.heard

    def desired(self, model="digits"):
        found = [
            msgspec.json.decode(one.payload, type=Desired)
            for one in self.listen()
            if one.topic.endswith(f"/desired/{model}")
        ]
        return found[-1] if found else None

    def acks(self):
        """Highest stored seqs that were said."""
        return [one.seq for one in self._answers() if one.refused is None]

    def refusals(self):
        """Digests of payloads that were refused for good."""
        return [one.refused for one in self._answers() if one.refused is not None]

    def _answers(self):
        return [
            msgspec.json.decode(one.payload, type=Ack) for one in self.listen() if one.topic.endswith("/ack")
        ]


class World:
    def __init__(self, directory, weather=None):
        self.published = Published(directory / "repository")
        self.url = f"sqlite:///{directory / 'fleet.db'}"
        self.store = Store(self.url)
        self.clock = FakeClock()
        self.broker = LoopbackBroker(TENANT, weather)
        self.config = FleetConfig(tenant=TENANT, controller_loop=LoopSettings(slice_s=10.0, republish_s=30.0))
        self.cams = {}
        self.controller = None
        self.start()

    def start(self):
        self.link = self.broker.connect(CONTROLLER_USER, topics.up_filters(TENANT))
        self.controller = Controller(self.store, self.published, self.link, self.clock, self.config)
        self.link.start()

    def kill_controller(self):
        self.link.cut()
        self.start()

    def stranger(self, name):
        """A device that nobody enrolled."""
        return Cam(self, name)

    def enrol(self, *names, profile=PROFILE):
        with self.store.write() as connection:
            for name in names:
                devices.enrol(
                    connection,
                    Enrolment(
                        device=DeviceId(name),
                        tenant=TENANT,
                        profile=profile,
                        token_sha256="0" * 64,
                        broker_hash="-",
                        enrolled_at_ms=0,
                    ),
                )
                self.cams[name] = Cam(self, name)
        return [self.cams[name] for name in names]

    def step(self, seconds=1.0, times=1):
        for _ in range(times):
            self.clock.advance(seconds)
            self.controller.step(0)

    def start_rollout(self, waves=(1.0,), release=NEW, **more):
        plan = Plan(release, waves=waves, soak_s=5.0, trials_min=1, **more)
        return campaigns.start(self.store, self.published, plan, self.clock.now_ms()).id

    def device(self, name):
        with self.store.read() as connection:
            return devices.load(connection, DeviceId(name))

    def count(self, table=schema.windows):
        with self.store.read() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(table))

    def assignments(self, rollout):
        with self.store.read() as connection:
            return rollout_store.load_assignments(connection, rollout)


@pytest.fixture
def make_world(tmp_path):
    made = []

    def make(weather=None):
        made.append(World(tmp_path, weather))
        return made[-1]

    yield make
    for world in made:
        world.store.close()


@pytest.fixture
def world(make_world):
    return make_world()
