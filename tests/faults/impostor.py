"""A device with a valid login that says what a test wants: it speaks the protocol, and need not tell the truth."""

import hashlib

from edgeml import telemetry, topics, twin
from edgeml.ids import ModelName, ReleaseId, model_of
from edgeml.telemetry import Batch, Counters, Stream, Window
from edgeml.topics import RULES, Leaf
from edgeml.twin import Birth, Desired, DeviceState, Outcome, Presence, Reported, Slot, Slots

from .served import PROFILE, Peer

MODEL = ModelName("sample")


def truly(impostor, wish):
    """Answer as an honest device that did what was asked."""
    impostor.report(wish, Outcome.COMMITTED, slot_of(wish))


def slot_of(wish):
    """What a device has that did what was asked."""
    return Slot(wish.release, wish.digest, wish.target, 1)


class Impostor(Peer):
    """One that comes as devices do, and then answers each new wish by the function `answer`."""

    def __init__(self, served, name):
        self.wishes, self.slot, self.seq = [], None, 0
        self.answer = truly
        self.session = f"s-{name}"
        super().__init__(served, name)
        self.say(Leaf.STATE, Presence(online=True, session=self.session))
        self.say(
            Leaf.BIRTH, Birth(device=self.name, session=self.session, profile=PROFILE, agent_version="test")
        )

    def _on_message(self, client, data, message):
        if "/desired/" not in message.topic:
            super()._on_message(client, data, message)
            return
        wish = twin.decode(message.payload, Desired)
        if not self.wishes or wish.generation > self.wishes[-1].generation:
            self.wishes.append(wish)
            self.answer(self, wish)

    def say(self, leaf, message, tail=None, device=None):
        """Publish one of the twin's messages, also in another device's name."""
        topic = topics.device_topic(self.tenant, device or self.name, leaf, tail)
        rule = RULES[leaf]
        return self.client.publish(topic, twin.encode(message), rule.qos, rule.retain)

    def report(self, wish, outcome, slot, state=DeviceState.IDLE, reason="", device=None):
        """Say how a deployment ended, and what runs."""
        if slot is not None:
            self.slot = slot
        reported = Reported(
            generation=wish.generation, deployment=wish.deployment, state=state, slots=Slots(slot), outcome=outcome,
            reason=reason,
        )  # fmt: skip
        return self.say(Leaf.REPORTED, reported, model_of(wish.release), device)

    def work(self, at_ms, slot=None, **counters):
        """Send a window of what it runs, or of what it says."""
        slot = slot or self.slot
        self.seq += 1
        counts = Counters(**{"inferences": 10, "labelled": 10, **counters})
        window = Window(self.seq, ReleaseId(slot.release), slot.digest, at_ms, 500, counts)
        return self.send(telemetry.encode_batch(Batch("b1", (window,))), Stream.WINDOWS)


def made_up_digest(text):
    """A digest of nothing that is published."""
    return hashlib.sha256(text.encode()).hexdigest()
