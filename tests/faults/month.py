"""A device's link with its fleet in quick motion: real transport, buffer, journal and account; a clock that is told the time.

A backlog has no pace here, for three quarters of an hour are one step. What paho does by its own clock (it shows every so
often that it is alive) is asked of it as often as the told time says.
"""

import random
import time

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from agent.buffer import Buffer
from agent.config import UpdateConfig
from agent.device import Device
from agent.fetching import Fetching
from agent.journal import Journal
from agent.link import Identity, Link
from agent.machine import Action
from agent.machine import Event as Happening
from agent.metered_link import connect
from agent.slots import SlotTable
from agent.timetable import Timetable
from agent.traffic import Traffic
from agent.updater import Lane, Moment, Result
from agent.uplink import Uplink
from edgeml import topics, twin
from edgeml.ids import DeploymentId, DeviceId, Digest, ModelName, ReleaseId, TenantId
from edgeml.sketch import Sketch
from edgeml.telemetry import Counters, Event, Sample, SampledTensor, Stream, Why, Window, decode_batch
from edgeml.tensors import DType
from edgeml.topics import Leaf
from edgeml.twin import Birth, Desired, Policy, Presence, Reported

DEVICE, TENANT, MODEL = DeviceId("cam-1"), TenantId("default"), ModelName("digits")
RELEASE = ReleaseId("digits@1.0.0")


class Life:
    """One life of the agent's half that speaks, on a storage directory that outlives it."""

    def __init__(self, config, storage, clock):
        self.clock, self.config = clock, config
        self.journal = Journal(storage / "journal.db")
        self.buffer = Buffer(storage / "telemetry.db", self.journal.boot, clock=clock)
        self.device = Device(DEVICE, self.journal, SlotTable(storage))
        self.traffic = Traffic(storage, config.budget.network_bytes_per_day, clock)
        identity = Identity(TENANT, DEVICE, self.journal.boot)
        birth = Birth(device=DEVICE, session=self.journal.boot, profile=config.profile, agent_version="1")
        self.uplink = Uplink(self.buffer, TENANT, DEVICE, allowance=self.traffic)
        self.link = Link(identity, self.device, self.uplink, lambda _now: birth)
        self.transport = connect(config, self.link, self.traffic, clock)
        self.fetching = Fetching(
            config, storage / "store", clock, Timetable(UpdateConfig(), clock), self.traffic
        )
        self.device.start(self.now())
        self.transport.start()

    def now(self):
        return Moment(self.clock.now_ms(), self.clock.monotonic_s())

    def hear(self):
        """Take in what has come."""
        arrival = self.transport.receive(0.001)
        while arrival is not None:
            self.link.hear(arrival, self.now())
            arrival = self.transport.receive(0)

    def turn(self):
        """What the agent's loop does with its link, once."""
        self.hear()
        for lane in Lane:
            while (perform := self.device.next(self.now(), lane)) is not None:
                # What is wanted here cannot be fetched; that it is said is the point.
                failed = perform.action is Action.FETCH
                self.device.done(
                    perform, Result(Happening.FAILED if failed else Happening.REPORTED), self.now()
                )
        self.buffer.tick()
        self.link.speak(self.now())
        while self.link.outbox and self.transport.publish(self.link.outbox[0]):
            self.link.outbox.popleft()

    def show_that_it_is_alive(self):
        """As paho does when its keepalive is over."""
        if self.transport.connected:
            self.transport._inner._client._send_pingreq()

    def end(self):
        self.transport.close()
        self.close_files()

    def kill(self):
        """End without a word, and without writing anything down."""
        if self.transport._inner is not None:
            self.transport._inner.close()
        self.close_files()

    def close_files(self):
        self.buffer.close()
        self.journal.close()


class Control:
    """What the fleet does: wants something new, stores rows once, acknowledges what it has stored."""

    def __init__(self, port, clock):
        self.clock = clock
        self.acknowledges = True
        self.stored = {stream: set() for stream in Stream}
        self.twice = 0
        self.copies = 0
        """Rows that came ahead of their turn, which nothing is acknowledged for."""
        self.states, self.reports = [], []
        self.generation = 0
        self.client = paho.Client(CallbackAPIVersion.VERSION2)
        self.client.on_message = self._hear
        self.client.connect("127.0.0.1", port)
        self.client.subscribe([(one, 1) for one in topics.up_filters(TENANT)])
        self.client.loop_start()

    def _hear(self, _client, _data, message):
        address = topics.parse(message.topic)
        match address.leaf:
            case Leaf.STATE:
                self.states.append((self.clock.now_ms(), twin.decode(message.payload, Presence)))
            case Leaf.REPORTED:
                self.reports.append((self.clock.now_ms(), twin.decode(message.payload, Reported)))
            case Leaf.TELEMETRY:
                self._store(address.stream, decode_batch(message.payload))

    def _store(self, stream, batch):
        if not self.acknowledges:
            return
        self.copies += len(batch.ahead_windows) + len(batch.ahead_events)
        if not batch.rows:
            return
        keys = {(batch.boot, row.seq) for row in batch.rows}
        self.twice += len(keys & self.stored[stream])
        self.stored[stream] |= keys
        ack = twin.Ack(boot=batch.boot, stream=stream.value, seq=batch.rows[-1].seq)
        self.client.publish(topics.device_topic(TENANT, DEVICE, Leaf.ACK), twin.encode(ack), 1)

    def want(self):
        """Want another release; the device says what becomes of it."""
        self.generation += 1
        desired = Desired(
            generation=self.generation, deployment=DeploymentId(f"d{self.generation}"), release=RELEASE, target="t",
            digest=Digest(f"{self.generation:064x}"), policy=Policy(attempts_max=1),
        )  # fmt: skip
        topic = topics.device_topic(TENANT, DEVICE, Leaf.DESIRED, MODEL)
        self.client.publish(topic, twin.encode(desired), 1, retain=True)
        return self.generation

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


class Rows:
    """What a device has to say: windows with sketches, events, and samples, which are large."""

    def __init__(self):
        self._chance = random.Random(46)
        self._shapes = [self._window() for _ in range(50)]

    def _window(self):
        counts = tuple(tuple(self._chance.randrange(9) for _ in range(19)) for _ in range(8))
        sums = tuple(self._chance.randrange(-(10**6), 10**6) for _ in range(8))
        return Window(
            0, RELEASE, Digest("ab" * 32), 0, 60_000, Counters(inferences=60), (0,) * 30 + counts[0],
            Sketch(Digest("cd" * 32), 60, counts, sums, sums), 50 << 20,
        )  # fmt: skip

    def window(self, at_ms):
        return msgspec.structs.replace(self._chance.choice(self._shapes), started_at_ms=at_ms)

    def event(self, at_ms):
        return Event(0, "slow", at_ms, f"latency {self._chance.uniform(10, 20):.3f} ms", RELEASE)

    def sample(self, at_ms):
        packed = self._chance.randbytes(20_000)
        tensor = SampledTensor("x", DType.UINT8, (20_000,), packed)
        return Sample(0, RELEASE, Digest("ab" * 32), str(at_ms), (tensor,), at_ms, Why.RANDOM)


def wait_until(condition, timeout_s):
    """Give real processes real time; tell whether it came to that."""
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


__all__ = ["Control", "Life", "Rows", "wait_until"]
