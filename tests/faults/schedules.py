"""Random lives of a device: wishes that come twice, late, mixed up or again long after, in every phase of every model.

Real device, updaters and link; the journal and the slots are in memory and keep what would be read back after a
restart, what an action does to them is played. A schedule is made of a seed, so a failure can be seen again.
"""

import random
from collections import Counter
from dataclasses import dataclass

import msgspec

from agent.buffer import Buffer
from agent.device import Device
from agent.journal import Entry
from agent.link import Identity, Link
from agent.machine import Action, Event
from agent.slots import demote, promote
from agent.updater import Lane, Moment, Result
from agent.uplink import Uplink
from edgeml import topics, twin
from edgeml.ids import DeploymentId, DeviceId, Digest, ModelName, ReleaseId, TenantId, model_of
from edgeml.manifest import RuntimeFamily
from edgeml.topics import Leaf
from edgeml.transport import LinkDown, LinkUp, Message
from edgeml.trustfacts import SignedFacts
from edgeml.twin import GOOD, Ack, Birth, Desired, DeviceState, Outcome, Policy, Slot, Slots

TENANT, NAME = TenantId("t"), DeviceId("cam")
MODELS = (ModelName("a"), ModelName("b"))
KINDS = ("good", "good", "good", "good", "fails to load", "fails in the shadow", "fails on trial", "refused")
VERSIONS = 4
PATIENT = Policy(attempts_max=1000, trial_restarts_max=1000)
"""Faults of a schedule are not to use up what a deployment may be tried: the end is to be the same without them."""
SHADOWED = msgspec.structs.replace(PATIENT, shadow_s=3.0)
_PLAYED = {
    Action.VERIFY: Event.VERIFIED, Action.SHADOW: Event.SHADOWED, Action.COMPARE: Event.AGREED, Action.WAIT: Event.READY, Action.ACTIVATE: Event.ACTIVATED,
    Action.OBSERVE: Event.HEALTHY, Action.REPORT: Event.REPORTED,
}  # fmt: skip


class Disk:
    """What survives."""

    def __init__(self):
        self.entries = {}
        self.held = {}
        self.fetched = set()

    @property
    def models(self):
        return tuple(sorted({*self.entries, *self.held}))

    def load(self, model):
        return self.entries.get(model, Entry())

    def write(self, model, entry):
        before = self.load(model)
        assert entry.generation >= before.generation, "an old wish was looked at again"
        assert entry.release_counter >= before.release_counter, "the ratchet went back"
        # What is kept is what would be read back.
        self.entries[model] = msgspec.json.decode(msgspec.json.encode(entry), type=Entry)

    def forget(self, model):
        del self.entries[model]

    def slots(self, model):
        return self.held.get(model, Slots())


@dataclass(frozen=True)
class Started:
    perform: object
    done: Result


class Schedule:
    """One life after another of one device, as a seed decides."""

    def __init__(self, seed, buffer, seen=None):
        self.random = random.Random(seed)
        self.buffer = buffer
        self.seen = Counter() if seen is None else seen
        """How often a newer wish, a repetition or a restart came in which state."""
        self.disk = Disk()
        self.kinds = {
            (model, version): self.random.choice(KINDS) for model in MODELS for version in range(VERSIONS)
        }
        self.seconds = 0.0
        self.wishes = []
        self.latest = {}
        self.channel = []
        self.retained = {}
        self.crashed_since = set()
        self.begin()

    def begin(self):
        self.device = Device(NAME, self.disk, self.disk)
        self.link = Link(
            Identity(TENANT, NAME, "s"),
            self.device,
            Uplink(self.buffer, TENANT, NAME),
            lambda now: Birth(device=NAME, session="s", profile="p", agent_version="t", at_ms=now.wall_ms),
        )
        self.in_hand = {}
        self.device.start(self.now())

    def now(self):
        return Moment(int(self.seconds * 1000), self.seconds)

    def run(self, steps):
        often, seldom = (self.act, self.finish), (
            self.wish, self.wish, self.deliver, self.deliver, self.replay, self.restart, self.restart, self.die, self.die, self.relink,
            self.acknowledge,
        )  # fmt: skip
        for _ in range(steps):
            self.random.choice(often if self.random.random() < 0.8 else seldom)()
        self.holds()
        return self.settle()

    # What happens.

    def wish(self):
        model = self.random.choice(MODELS)
        version = self.random.randrange(VERSIONS)
        before = self.latest.get(model)
        wanted = Desired(
            generation=before.generation + 1 if before else 1,
            deployment=DeploymentId(f"{model}{len(self.wishes)}"),
            release=ReleaseId(f"{model}@{version}"),
            target=f"{model}/{version}/v.edgeml",
            digest=digest_of_version(model, version),
            policy=self.random.choice((PATIENT, SHADOWED)),
        )
        self.latest[model] = wanted
        self.wishes.append(wanted)
        self.channel += [wanted] * self.random.choice((0, 1, 1, 2))

    def deliver(self):
        if self.channel:
            self.hear(self.channel.pop(self.random.randrange(len(self.channel))))

    def replay(self):
        """Row 23: an old one comes again, long after."""
        if self.wishes:
            self.hear(self.random.choice(self.wishes))

    def hear(self, wanted):
        model = model_of(wanted.release)
        entry = self.device.entry(model)
        newer = wanted.generation > entry.generation
        self.seen["newer" if newer else "again", entry.state] += 1
        if newer:
            self.crashed_since.discard(model)
        topic = topics.device_topic(TENANT, NAME, Leaf.DESIRED, model)
        self.link.hear(Message(topic, twin.encode(wanted)), self.now())
        if not newer:
            assert self.device.entry(model) == entry, "a wish that is not newer changed something"

    def act(self):
        lane = self.random.choice(tuple(Lane))
        if lane is Lane.LOCAL and any(one.perform.lane is lane for one in self.in_hand.values()):
            return
        perform = self.device.next(self.now(), lane)
        if perform is None:
            self.seconds += self.random.choice((0.1, 5.0))
            return
        assert perform.model not in self.in_hand, "two actions of one model at once"
        may_fail = perform.action in {Action.FETCH, Action.VERIFY}
        failed = may_fail and self.random.random() < 0.2
        self.in_hand[perform.model] = Started(
            perform, Result(Event.FAILED, "no") if failed else self.play(perform)
        )

    def finish(self):
        if self.in_hand:
            model = self.random.choice(list(self.in_hand))
            started = self.in_hand.pop(model)
            self.device.done(started.perform, started.done, self.now())

    def restart(self):
        """The power goes; what was begun is done to the disk, and nobody heard of it."""
        for model in MODELS:
            self.seen["restart", self.device.entry(model).state] += 1
        self.begin()

    def die(self):
        """A serving worker dies too often."""
        if self.random.random() < 0.3:
            model = self.random.choice(MODELS)
            if model not in self.in_hand and model in self.device.models:
                self.seen["crash", self.device.entry(model).state] += 1
                self.crashed_since.add(model)
                self.device.crashed(model, "the worker died 3 times", self.now())

    def relink(self):
        if self.random.random() < 0.5:
            self.link.hear(LinkDown("cut"), self.now())
        self.link.hear(LinkUp(), self.now())
        self.channel += self.latest.values()
        self.speak()

    def acknowledge(self):
        """Acknowledgements of what was never sent, or not in this life."""
        boot = self.random.choice(("b1", "b0", "x"))
        ack = Ack(
            boot=boot, stream=self.random.choice(("windows", "events", "x")), seq=self.random.randrange(9)
        )
        self.link.hear(Message(topics.device_topic(TENANT, NAME, Leaf.ACK), twin.encode(ack)), self.now())

    def speak(self):
        self.link.speak(self.now())
        while self.link.outbox:
            message = self.link.outbox.popleft()
            if message.retain:
                self.retained[message.topic] = message.payload

    # What an action does.

    def play(self, perform):
        wanted = perform.entry.desired
        kind = None if wanted is None else self.kinds[_key(wanted.digest)]
        match perform.action:
            case Action.FETCH if kind == "refused":
                return Result(Event.REFUSED, "not for this device")
            case Action.FETCH:
                self.disk.fetched.add(wanted.digest)
                facts = SignedFacts(
                    wanted.release, "v", 1, ("p",), RuntimeFamily.ONNX, 4096, Digest("0" * 64)
                )
                return Result(Event.FETCHED, facts=facts)
            case Action.ACTIVATE if kind == "fails to load":
                return Result(Event.REFUSED, "golden vectors", poisoned=True)
            case Action.WAIT if wanted.policy.shadow_s and self.disk.slots(perform.model).current is not None:
                return Result(Event.SHADOW)
            case Action.COMPARE if kind == "fails in the shadow":
                return Result(Event.REFUSED, "it differs", poisoned=True)
            case Action.ACTIVATE if kind == "fails in the shadow":
                return Result(Event.REFUSED, "golden vectors", poisoned=True)
            case Action.OBSERVE if kind == "fails on trial":
                return Result(Event.FAILED, "crashed", poisoned=True)
            case Action.COMMIT:
                slot = Slot(wanted.release, wanted.digest, wanted.target, 1)
                self.disk.held[perform.model] = promote(self.disk.slots(perform.model), slot)
                self.holds()
                return Result(Event.COMMITTED)
            case Action.RESTORE:
                return self.restore(perform)
            case action:
                return Result(_PLAYED[action])

    def restore(self, perform):
        slots = self.disk.slots(perform.model)
        nothing = slots.current is None
        while slots.current is not None and slots.current.digest == perform.entry.condemned:
            slots = demote(slots)
        if slots.current is None and not nothing:
            return Result(Event.FAILED, "no slot can be served")
        self.disk.held[perform.model] = slots
        return Result(Event.ROLLED_BACK)

    # What must hold.

    def holds(self):
        for model in self.disk.models:
            slots = self.disk.slots(model)
            for slot in (slots.current, slots.previous, slots.factory):
                if slot is not None:
                    assert slot.digest in self.disk.fetched, "I2: never fetched"
                    assert self.kinds[_key(slot.digest)] == "good", "I1: never proven"

    def settle(self):
        """The faults end: what is retained comes once more, and the device comes to rest on it."""
        for started in self.in_hand.values():
            self.device.done(started.perform, started.done, self.now())
        self.in_hand = {}
        for wanted in self.latest.values():
            self.hear(wanted)
        for _ in range(2000):
            perform = self.device.next(self.now(), Lane.LOCAL) or self.device.next(self.now(), Lane.NETWORK)
            if perform is not None:
                self.device.done(perform, self.play(perform), self.now())
                self.holds()
            elif all(
                self.device.entry(one).state in {DeviceState.IDLE, DeviceState.STRANDED}
                for one in self.device.models
            ):
                break
            else:
                self.seconds += 1.0
        else:
            raise AssertionError("I6: the device never comes to rest")
        return {model: self.ends(model, wanted) for model, wanted in self.latest.items()}

    def ends(self, model, wanted):
        """What does not depend on the order in which things came."""
        entry = self.device.entry(model)
        current = self.disk.slots(model).current
        kind = self.kinds[_key(wanted.digest)]
        assert entry.generation == wanted.generation
        assert entry.desired == wanted, "the last wish is not the one that was carried out"
        assert entry.waiting is None
        on_it = current is not None and current.digest == wanted.digest
        if kind == "good" and model not in self.crashed_since:
            assert on_it, f"the last wish is good and not current: {entry}"
            assert entry.outcome in GOOD, entry
        if kind != "good":
            assert not on_it
            assert entry.outcome in {Outcome.ROLLED_BACK, Outcome.REJECTED, Outcome.STRANDED}, entry
        self.link.hear(LinkUp(), self.now())
        self.speak()
        said = self.retained[topics.device_topic(TENANT, NAME, Leaf.REPORTED, model)]
        report = twin.decode(said, twin.Reported)
        assert (report.state, report.slots, report.generation, report.outcome) == (
            entry.state, self.disk.slots(model), entry.generation, entry.outcome
        ), "I4: what is said is not what is true"  # fmt: skip
        return current


def digest_of_version(model, version):
    return Digest(f"{model}{version}".ljust(64, "0"))


def _key(digest):
    return ModelName(digest[0]), int(digest[1])


def new_buffer(path):
    """A buffer that all schedules share: it is empty, and asked at every word of the link."""
    return Buffer(path, "b1")
