"""What is shipped for users' tests: a clock that obeys, a broker that behaves like MQTT, a bundle that is real."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml import golden, monitor, topics
from edgeml.bundle import GOLDEN, MONITOR, Bundle, read_verified
from edgeml.clock import Clock
from edgeml.ids import DeviceId, ModelName, TenantId, digest_of_file
from edgeml.manifest import RuntimeFamily
from edgeml.observer import Observer
from edgeml.runtime import open_session
from edgeml.telemetry import Stream
from edgeml.testing import (
    INBOX_MAX,
    FakeClock,
    LoopbackBroker,
    LoopbackTransport,
    Weather,
    _matches,
    linear_model,
    sample_bundle,
)
from edgeml.topics import CONTROLLER_USER, Leaf, device_topic
from edgeml.transport import LinkDown, LinkUp, Message, Transport

ROOT = Path(__file__).parents[2]
TENANT = TenantId("acme")
CAM, OTHER = DeviceId("cam-1"), DeviceId("cam-2")
STATE = device_topic(TENANT, CAM, Leaf.STATE)
BIRTH = device_topic(TENANT, CAM, Leaf.BIRTH)
MODEL = ModelName("digits")
DESIRED = device_topic(TENANT, CAM, Leaf.DESIRED, MODEL)
DESIRED_FILTER = f"em/v1/{TENANT}/d/{CAM}/desired/+"
ACK = device_topic(TENANT, CAM, Leaf.ACK)
ROWS = device_topic(TENANT, CAM, Leaf.TELEMETRY, Stream.WINDOWS)


def drain(link):
    return list(iter(lambda: link.receive(0), None))


def payloads(link):
    return [one.payload for one in drain(link) if isinstance(one, Message)]


def device(broker, name=CAM, will=None):
    link: Transport = broker.connect(str(name), topics.down_filters(TENANT, name), will)
    link.start()
    return link


def controller(broker):
    link = broker.connect(CONTROLLER_USER, topics.up_filters(TENANT))
    link.start()
    return link


@pytest.fixture
def broker():
    return LoopbackBroker(TENANT)


class TestTheClock:
    def test_time_passes_only_when_told(self):
        clock: Clock = FakeClock(start_ms=5_000)
        before = (clock.now_ms(), clock.monotonic_s())
        assert (clock.now_ms(), clock.monotonic_s()) == before
        clock.advance(1.5)
        assert clock.now_ms() == 6_500
        assert clock.monotonic_s() == before[1] + 1.5

    @pytest.mark.parametrize("jump_ms", [-60_000, 3_600_000])
    def test_setting_the_wall_clock_leaves_durations_alone(self, jump_ms):
        clock = FakeClock()
        before = (clock.now_ms(), clock.monotonic_s())
        clock.jump_wall(jump_ms)
        assert (clock.now_ms(), clock.monotonic_s()) == (before[0] + jump_ms, before[1])


class TestDelivery:
    def test_a_message_arrives_where_it_is_subscribed_and_nowhere_else(self, broker):
        fleet, cam, other = controller(broker), device(broker), device(broker, OTHER)
        assert cam.publish(Message(BIRTH, b"hello"))
        assert fleet.publish(Message(ACK, b"stored"))
        assert drain(fleet) == [LinkUp(), Message(BIRTH, b"hello")]
        assert drain(cam) == [LinkUp(), Message(ACK, b"stored")]
        assert drain(other) == [LinkUp()]

    def test_messages_of_one_publisher_keep_their_order(self, broker):
        fleet, cam = controller(broker), device(broker)
        for number in range(50):
            cam.publish(Message(ROWS, b"%d" % number))
        assert payloads(fleet) == [b"%d" % number for number in range(50)]

    def test_receiving_never_waits(self, broker):
        assert device(broker).receive(1e9) == LinkUp()
        assert device(broker, OTHER).receive(1e9) == LinkUp()

    def test_an_inbox_that_nobody_empties_is_bounded(self, broker):
        fleet, cam = controller(broker), device(broker)
        for _ in range(INBOX_MAX + 10):
            cam.publish(Message(ROWS, b"x"))
        assert len(drain(fleet)) == INBOX_MAX


class TestRetained:
    def test_a_retained_message_waits_for_who_comes_later_and_the_newest_counts(self, broker):
        fleet = controller(broker)
        fleet.publish(Message(DESIRED, b"old", retain=True))
        fleet.publish(Message(DESIRED, b"new", retain=True))
        assert drain(device(broker)) == [LinkUp(), Message(DESIRED, b"new", retain=True)]

    def test_to_who_is_there_already_it_comes_without_the_flag(self, broker):
        fleet, cam = controller(broker), device(broker)
        fleet.publish(Message(DESIRED, b"new", retain=True))
        assert drain(cam) == [LinkUp(), Message(DESIRED, b"new", retain=False)]

    def test_an_empty_one_clears_the_topic(self, broker):
        fleet = controller(broker)
        fleet.publish(Message(DESIRED, b"old", retain=True))
        fleet.publish(Message(DESIRED, b"", retain=True))
        assert drain(device(broker)) == [LinkUp()]

    def test_one_that_is_not_retained_is_gone(self, broker):
        fleet = controller(broker)
        fleet.publish(Message(ACK, b"x"))
        assert drain(device(broker)) == [LinkUp()]

    def test_a_new_link_hears_it_again(self, broker):
        controller(broker).publish(Message(DESIRED, b"new", retain=True))
        cam = device(broker)
        drain(cam)
        cam.cut()
        cam.heal()
        assert drain(cam) == [LinkDown("cut"), LinkUp(), Message(DESIRED, b"new", retain=True)]


class TestLinks:
    def test_a_link_that_is_cut_takes_nothing_and_its_will_is_said(self, broker):
        fleet = controller(broker)
        cam = device(broker, will=Message(STATE, b"gone", retain=True))
        drain(fleet)
        assert cam.connected
        cam.cut()
        cam.cut()
        assert not cam.connected
        assert not cam.publish(Message(BIRTH, b"lost"))
        assert payloads(fleet) == [b"gone"]
        assert broker.retained[STATE].payload == b"gone"

    def test_leaving_in_order_says_no_will(self, broker):
        fleet = controller(broker)
        cam = device(broker, will=Message(STATE, b"gone", retain=True))
        cam.close()
        cam.close()
        assert payloads(fleet) == []

    def test_a_second_link_of_the_same_user_takes_over_and_the_first_ones_will_is_said(self, broker):
        fleet = controller(broker)
        first = device(broker, will=Message(STATE, b"gone"))
        second = device(broker)
        assert [type(one) for one in drain(first)] == [LinkUp, LinkDown]
        assert second.connected
        assert payloads(fleet) == [b"gone"]

    def test_what_is_published_while_a_link_is_down_is_lost_unless_retained(self, broker):
        fleet, cam = controller(broker), device(broker)
        cam.cut()
        fleet.publish(Message(ACK, b"lost"))
        cam.heal()
        assert payloads(cam) == []

    def test_a_broker_that_restarts_empty_drops_links_without_wills_and_forgets(self, broker):
        fleet = controller(broker)
        cam = device(broker, will=Message(STATE, b"gone"))
        fleet.publish(Message(DESIRED, b"new", retain=True))
        drain(cam)
        drain(fleet)
        broker.restart_empty()
        assert not cam.connected
        assert not fleet.connected
        assert drain(cam) == [LinkDown("broker restarted")]
        cam.heal()
        fleet.heal()
        assert drain(cam) == [LinkUp()]
        assert drain(fleet) == [LinkDown("broker restarted"), LinkUp()]

    def test_nothing_is_ever_unconfirmed(self, broker):
        cam = device(broker)
        cam.publish(Message(BIRTH, b"x"))
        assert cam.unconfirmed == 0


class TestAccess:
    @pytest.mark.parametrize(
        "topic", [DESIRED, ACK, device_topic(TENANT, OTHER, Leaf.STATE), "em/v1/acme/ctl/c/state", "x"]
    )
    def test_a_device_may_not_publish_there_and_its_message_is_thrown_away(self, broker, topic):
        fleet, cam = controller(broker), device(broker)
        assert cam.publish(Message(topic, b"x", retain=True))
        assert broker.refused == [(CAM, topic)]
        assert payloads(fleet) == []
        assert broker.retained == {}

    def test_a_will_is_checked_too(self, broker):
        cam = device(broker, will=Message(DESIRED, b"evil", retain=True))
        cam.cut()
        assert broker.retained == {}
        assert broker.refused == [(CAM, DESIRED)]

    @pytest.mark.parametrize(
        "topic_filter", ["#", "em/v1/acme/d/+/desired/+", "em/v1/acme/d/cam-2/desired/+"]
    )
    def test_a_device_may_not_subscribe_to_more_and_the_rest_still_works(self, broker, topic_filter):
        fleet = controller(broker)
        cam = broker.connect(str(CAM), (topic_filter, DESIRED_FILTER))
        cam.start()
        fleet.publish(Message(DESIRED, b"mine"))
        fleet.publish(Message(device_topic(TENANT, OTHER, Leaf.DESIRED, MODEL), b"not mine"))
        assert payloads(cam) == [b"mine"]
        assert broker.refused == [(CAM, topic_filter)]

    def test_a_user_that_cannot_be_one_is_not_let_in(self, broker):
        link = broker.connect("no/body", ())
        link.start()
        assert not link.connected
        assert [type(one) for one in drain(link)] == [LinkDown]


@pytest.mark.parametrize(
    ("topic_filter", "topic", "matches"),
    [
        ("a/b", "a/b", True), ("a/b", "a/c", False), ("a/b", "a/b/c", False), ("a/+", "a/b", True), ("a/+", "a", False),
        ("a/+", "a/", True), ("+/+", "/a", True), ("+", "/a", False), ("a/+/c", "a/b/c", True), ("a/+/c", "a/b/d", False),
        ("#", "a/b/c", True), ("a/#", "a", True), ("a/#", "a/b/c", True), ("a/#", "b", False), ("+/b/#", "a/b/c", True),
        ("+/b/#", "a/c/c", False), ("#", "$SYS/x", False), ("+/x", "$SYS/x", False), ("$SYS/#", "$SYS/x", True), ("a/b/#", "a", False),
    ],
)  # fmt: skip
def test_filters_match_as_the_specification_says(topic_filter, topic, matches):
    assert _matches(topic_filter, topic) == matches


SENT = [b"%d" % number for number in range(200)]


class TestWeather:
    def arrived(self, weather, looks=4):
        broker = LoopbackBroker(TENANT, weather)
        fleet, cam = controller(broker), device(broker)
        found = []
        for payload in SENT:
            cam.publish(Message(ROWS, payload))
            if int(payload) % 5 == 0:
                found += payloads(fleet)
        for _ in range(looks):
            found += payloads(fleet)
        return found

    def test_duplicates(self):
        found = self.arrived(Weather(duplicated=0.5))
        assert set(found) == set(SENT)
        assert 250 < len(found) < 350

    @pytest.mark.parametrize("kind", ["reordered", "delayed"])
    def test_order_is_lost_but_no_message(self, kind):
        found = self.arrived(Weather(**{kind: 0.5}))
        assert sorted(found, key=int) == SENT
        assert any(int(one) > int(two) for one, two in itertools.pairwise(found))

    def test_loss(self):
        found = self.arrived(Weather(lost=0.5))
        assert 50 < len(found) < 150
        assert found == sorted(found, key=int)

    def test_the_same_seed_gives_the_same_weather(self):
        storm = {"duplicated": 0.3, "reordered": 0.3, "delayed": 0.3, "lost": 0.3}
        assert self.arrived(Weather(**storm, seed=1)) == self.arrived(Weather(**storm, seed=1))
        assert self.arrived(Weather(**storm, seed=1)) != self.arrived(Weather(**storm, seed=2))

    def test_no_message_overtakes_a_change_of_the_link(self):
        broker = LoopbackBroker(TENANT, Weather(reordered=1.0, delayed=0.5))
        fleet, cam = controller(broker), device(broker)
        cam.publish(Message(ROWS, b"before"))
        fleet.cut()
        fleet.heal()
        for _ in range(20):
            cam.publish(Message(ROWS, b"after"))
        arrivals = drain(fleet)
        up = max(index for index, one in enumerate(arrivals) if isinstance(one, LinkUp))
        assert all(one.payload == b"after" for one in arrivals[up + 1 :])
        assert not any(isinstance(one, Message) and one.payload == b"after" for one in arrivals[:up])

    @given(
        acts=st.lists(st.sampled_from(["say", "want", "cut", "heal", "restart", "look"]), max_size=60),
        weather=st.builds(
            Weather,
            duplicated=st.sampled_from([0.0, 0.6]),
            reordered=st.sampled_from([0.0, 0.6]),
            delayed=st.sampled_from([0.0, 0.6]),
            lost=st.sampled_from([0.0, 0.3]),
            seed=st.integers(0, 9),
        ),
    )
    @settings(max_examples=100)
    def test_nothing_arrives_that_was_not_said_and_links_go_up_and_down_in_turn(self, acts, weather):
        broker = LoopbackBroker(TENANT, weather)
        fleet, cam = controller(broker), device(broker)
        said, heard = set(), []
        for number, act in enumerate(acts):
            match act:
                case "say":
                    if cam.publish(Message(ROWS, b"%d" % number)):
                        said.add(b"%d" % number)
                case "want":
                    fleet.publish(Message(DESIRED, b"%d" % number, retain=True))
                case "cut":
                    fleet.cut()
                case "heal":
                    fleet.heal()
                    cam.heal()
                case "restart":
                    broker.restart_empty()
                case "look":
                    heard += drain(fleet)
        for _ in range(5):
            heard += drain(fleet)
        assert {one.payload for one in heard if isinstance(one, Message)} <= said
        links = [type(one) for one in heard if not isinstance(one, Message)]
        assert links == [LinkUp, LinkDown] * (len(links) // 2) + [LinkUp] * (len(links) % 2)
        assert fleet.connected == (links[-1] is LinkUp)


class TestTheSample:
    def test_it_is_a_bundle_that_answers_its_golden_vectors_and_counts(self, tmp_path):
        digest = sample_bundle(tmp_path / "s.edgeml", "1.2.3")
        with read_verified(tmp_path / "s.edgeml", digest) as opened:
            opened.verify()
            about = opened.manifest
            session = open_session(opened.model(), about.runtime)
            vectors = golden.decode(opened.read(GOLDEN), about)
            watch = monitor.decode(opened.read(MONITOR))
        assert about.release == "sample@1.2.3"
        answers = session.run(list(vectors.inputs))
        assert golden.compare(vectors.outputs, answers, about).passed
        observer = Observer(watch, about)
        observer.observe(vectors.inputs, answers)
        assert observer.take().sketch.rows == golden.SAMPLES

    def test_the_same_arguments_give_the_same_bytes_and_others_give_others(self, tmp_path):
        made = [
            sample_bundle(tmp_path / str(index), *arguments)
            for index, arguments in enumerate(
                [(), (), ("1.0.1",), ("1.0.0", ("other",)), ("1.0.0", ("generic-x86-64",), 1)]
            )
        ]
        assert made[0] == made[1]
        assert len(set(made)) == 4
        assert made[0] == digest_of_file(tmp_path / "0")

    def test_another_seed_gives_a_model_that_answers_otherwise(self):
        samples = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
        one, other = (
            open_session(linear_model(seed), RuntimeFamily.ONNX).run([samples])[0] for seed in (0, 7)
        )
        assert (one.argmax(axis=1) != other.argmax(axis=1)).mean() > 0.2

    def test_it_claims_no_measurement(self, tmp_path):
        sample_bundle(tmp_path / "s")
        with Bundle(tmp_path / "s") as opened:
            assert opened.manifest.measurement.host == "not measured"


def test_it_is_light_to_import_and_needs_no_pytest():
    done = subprocess.run(
        [sys.executable, "-c", "import edgeml.testing, sys; print(' '.join(sys.modules))"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded & {"pytest", "hypothesis", "numpy", "onnx", "onnxruntime", "paho"} == set()


def test_a_loopback_transport_is_a_transport():
    assert {name for name in vars(Transport) if not name.startswith("_")} <= set(dir(LoopbackTransport))
