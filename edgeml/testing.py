"""What tests of devices and fleets need, shipped for users' own tests.

A clock that is moved by hand, a broker in memory behind the `Transport` port, and a tiny real bundle. Decides how the
loopback broker behaves: as MQTT 3.1.1 allows and as brokers do, with duplicates, reordering, loss of messages and links
on demand, access by the authenticated user, and a restart that forgets everything. Needs no pytest.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from pathlib import Path
from typing import Final

import msgspec

from . import topics
from .ids import Digest, TenantId, digest_of_file, is_name
from .transport import Arrival, LinkDown, LinkUp, Message

START_MS: Final = 1_800_000_000_000
CLASSES: Final = 3
FEATURES: Final = 4
INBOX_MAX: Final = 10_000
"""Arrivals that wait for a receiver; later ones are lost, as with `edgeml.mqtt`."""


class FakeClock:
    """A clock that moves only when told."""

    def __init__(self, start_ms: int = START_MS) -> None:
        self._wall_ms = start_ms
        self._monotonic_s = 1000.0

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return self._wall_ms

    def monotonic_s(self) -> float:
        """Seconds that never go back."""
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self._wall_ms += round(seconds * 1000)
        self._monotonic_s += seconds

    def jump_wall(self, milliseconds: int) -> None:
        """Set the wall clock forward or back, as a person or NTP would."""
        self._wall_ms += milliseconds


class Weather(msgspec.Struct, frozen=True):
    """How badly the loopback broker treats messages, as fractions of deliveries.

    MQTT 3.1.1 with QoS 1 allows duplicates; brokers in clusters reorder, and drop what overflows a queue.
    """

    duplicated: float = 0.0
    reordered: float = 0.0
    """Mixed with what waits in the inbox."""
    delayed: float = 0.0
    """Held back until the next message, or the second look into an empty inbox; lost if the link is."""
    lost: float = 0.0
    seed: int = 0


class LoopbackBroker:
    """A broker in memory. Delivery is immediate, into the receiver's inbox. Safe to use from several threads."""

    def __init__(self, tenant: TenantId, weather: Weather | None = None) -> None:
        self.tenant = tenant
        self.retained: dict[str, Message] = {}
        self.refused: list[tuple[str, str]] = []
        """(user, topic or filter) of what access control did not let through."""
        self.published = 0
        self.weather = weather or Weather()
        """May be replaced at any time."""
        self.lock = threading.RLock()
        self._random = random.Random(self.weather.seed)
        self._links: list[LoopbackTransport] = []

    def connect(
        self, user: str, subscriptions: tuple[str, ...], will: Message | None = None
    ) -> LoopbackTransport:
        """Make a transport for an authenticated user; it connects when started, and takes over the user's older one."""
        return LoopbackTransport(self, user, subscriptions, will)

    def restart_empty(self) -> None:
        """Forget every retained message and drop every link, as a broker without persistence does when it is killed.

        Links stay down until their `heal`.
        """
        with self.lock:
            self.retained.clear()
            for link in list(self._links):
                link.drop("broker restarted", say_will=False)

    def publish(self, user: str, message: Message) -> None:
        """Route a message. One that access control forbids is confirmed and thrown away, as brokers do for 3.1.1."""
        with self.lock:
            if not topics.may_publish(self.tenant, user, message.topic):
                self.refused.append((user, message.topic))
                return
            self.published += 1
            if message.retain:
                if message.payload:
                    self.retained[message.topic] = message
                else:
                    self.retained.pop(message.topic, None)
            for link in list(self._links):
                if link.wants(message.topic):
                    self._deliver(link, Message(message.topic, message.payload, message.qos))

    def attach(self, link: LoopbackTransport) -> None:
        """Take a link up and give it what is retained."""
        with self.lock:
            for other in [one for one in self._links if one.user == link.user]:
                other.drop("taken over", say_will=True)
            self.refused += [(link.user, one) for one in link.refused]
            self._links.append(link)
            link.put(LinkUp())
            for topic, message in sorted(self.retained.items()):
                if link.wants(topic):
                    self._deliver(link, message)

    def detach(self, link: LoopbackTransport) -> None:
        """Forget a link."""
        with self.lock:
            if link in self._links:
                self._links.remove(link)

    def _deliver(self, link: LoopbackTransport, message: Message) -> None:
        if self._random.random() < self.weather.lost:
            return
        copies = 2 if self._random.random() < self.weather.duplicated else 1
        for _ in range(copies):
            if self._random.random() < self.weather.delayed:
                link.hold(message)
                continue
            link.put(message)
            if self._random.random() < self.weather.reordered:
                link.shuffle(self._random)


class LoopbackTransport:
    """One client of a loopback broker; implements `edgeml.transport.Transport`."""

    def __init__(
        self, broker: LoopbackBroker, user: str, subscriptions: tuple[str, ...], will: Message | None
    ) -> None:
        self.user = user
        self.refused = tuple(
            one for one in subscriptions if not topics.may_subscribe(broker.tenant, user, one)
        )
        """Filters that access control forbids; the link works without them."""
        self._broker = broker
        self._will = will
        self._filters = tuple(one for one in subscriptions if one not in self.refused)
        self._inbox: deque[Arrival] = deque()
        self._held: deque[Message] = deque()
        self._looked = False
        self._up = False

    @property
    def connected(self) -> bool:
        """Whether the link is up."""
        return self._up

    @property
    def unconfirmed(self) -> int:
        """Always none: delivery is immediate."""
        return 0

    def start(self) -> None:
        """Connect."""
        with self._broker.lock:
            if self._up:
                return
            if self.user != topics.CONTROLLER_USER and not is_name(self.user):
                self.put(LinkDown("login refused: no such user"))
                return
            self._up = True
            self._broker.attach(self)

    def publish(self, message: Message) -> bool:
        """Hand a message over; False if the link is down."""
        with self._broker.lock:
            if not self._up:
                return False
            self._broker.publish(self.user, message)
            return True

    def receive(self, timeout_s: float) -> Arrival | None:  # noqa: ARG002 - part of the port; time is not spent here
        """Return the next arrival, or None; never waits."""
        with self._broker.lock:
            if self._inbox:
                self._looked = False
                return self._inbox.popleft()
            if self._held and self._looked:
                self._looked = False
                return self._held.popleft()
            self._looked = True
            return None

    def close(self) -> None:
        """Disconnect in order: no will."""
        self.drop("closed", say_will=False)

    def drop(self, reason: str, *, say_will: bool) -> None:
        """Lose the link, and with it what was held back."""
        with self._broker.lock:
            if not self._up:
                return
            self._up = False
            self._broker.detach(self)
            self._held.clear()
            self.put(LinkDown(reason))
            if say_will and self._will is not None:
                self._broker.publish(self.user, self._will)

    def cut(self) -> None:
        """Lose the link without a word; the broker says the will."""
        self.drop("cut", say_will=True)

    def heal(self) -> None:
        """Get the link back."""
        self.start()

    def put(self, arrival: Arrival) -> None:
        """Put something into the inbox, and behind it what was held back."""
        held = list(self._held) if isinstance(arrival, Message) else []
        for one in (arrival, *held):
            if len(self._inbox) < INBOX_MAX:
                self._inbox.append(one)
        if held:
            self._held.clear()

    def hold(self, message: Message) -> None:
        """Keep a message back until something overtakes it."""
        self._held.append(message)

    def shuffle(self, source: random.Random) -> None:
        """Mix up messages that wait since the last change of the link."""
        first = max((i + 1 for i, one in enumerate(self._inbox) if not isinstance(one, Message)), default=0)
        messages = [self._inbox.pop() for _ in range(len(self._inbox) - first)]
        source.shuffle(messages)
        self._inbox.extend(messages)

    def wants(self, topic: str) -> bool:
        """Tell whether a subscription matches and may be served."""
        return any(_matches(one, topic) for one in self._filters) and topics.may_receive(
            self._broker.tenant, self.user, topic
        )


def _matches(topic_filter: str, topic: str) -> bool:
    """Match as MQTT 3.1.1 section 4.7 does; no wildcard matches a first level that begins with `$`."""
    wanted, given = topic_filter.split("/"), topic.split("/")
    if given[0].startswith("$") and wanted[0] in {"+", "#"}:
        return False
    if wanted[-1] == "#":
        wanted = wanted[:-1]
        if len(given) < len(wanted):
            return False
        given = given[: len(wanted)]
    return len(wanted) == len(given) and all(
        want in {"+", have} for want, have in zip(wanted, given, strict=True)
    )


def sample_bundle(
    path: Path,
    version: str = "1.0.0",
    profiles: tuple[str, ...] = ("generic-x86-64",),
    seed: int = 0,
    model: str = "sample",
) -> Digest:
    """Write a tiny real bundle (a linear classifier, 4 features, 3 classes) and return its digest.

    Needs onnx, onnxruntime and numpy. Another seed gives another model; the same arguments give the same bytes.
    """
    import numpy as np

    from . import golden, monitor
    from .bundle import GOLDEN, MONITOR, write_bundle
    from .ids import digest_of
    from .manifest import Manifest, Measurement, Provenance, RuntimeFamily, ScoreKind, Task
    from .reference import build_monitor
    from .runtime import open_session

    generator = np.random.default_rng(seed)
    content = linear_model(seed)
    session = open_session(content, RuntimeFamily.ONNX)
    samples = generator.normal(size=(256, FEATURES)).astype(np.float32)
    answers = session.run([samples])
    manifest = Manifest(
        model=model,
        version=version,
        variant="onnx-fp32",
        runtime=RuntimeFamily.ONNX,
        profiles=profiles,
        inputs=session.inputs,
        outputs=session.outputs,
        files=(),
        measurement=Measurement("not measured", session.runtime.split()[0], 1, 0.0, 0.0, 0),
        provenance=Provenance("sample", digest_of(content)),
        task=Task.CLASSIFICATION,
        scores=ScoreKind.LOGITS,
        labels=("a", "b", "c"),
    )
    watch = build_monitor(manifest, {session.inputs[0].name: samples}, {session.outputs[0].name: answers[0]})
    recorded = golden.Golden((samples[: golden.SAMPLES],), (answers[0][: golden.SAMPLES],))
    members = {"model.onnx": content, MONITOR: monitor.encode(watch), GOLDEN: golden.encode(recorded)}
    write_bundle(path, manifest, members)
    return digest_of_file(path)


def linear_model(seed: int = 0) -> bytes:
    """Return the ONNX bytes of a linear classifier: `x` float32 [batch, 4] to `logits` float32 [batch, 3]."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_name="edgeml"
    )
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
