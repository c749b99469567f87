"""The link of a device with a budget: counted by the kernel, given up when the day is used up, made anew the next day."""

import pytest

from agent.allowance import DAY_S
from agent.metered_link import REDIAL_S, MeteredLink
from agent.ration import is_used_up, last_bytes
from agent.traffic import Traffic
from edgeml.errors import ConfigError
from edgeml.mqtt import Login, PahoTransport
from edgeml.testing import FakeClock
from edgeml.transport import LinkDown, LinkUp, Message

from ..edgeml.test_mqtt import CONNECT, DISCONNECT, PUBLISH, ScriptedBroker
from ..waiting import wait_for

BUDGET = 1 << 20
FAREWELL = Message("em/v1/t/d/cam-1/state", b"goodbye", 1, retain=True)


@pytest.fixture
def broker():
    started = ScriptedBroker()
    yield started
    started.stop()


class Scene:
    def __init__(self, directory, port, budget=BUDGET):
        self.clock = FakeClock()
        self.traffic = Traffic(directory, budget, self.clock)
        self.made, self.refuses = 0, False
        self.login = Login(host="127.0.0.1", port=port, username="cam-1", password="s", client_id="cam-1")
        self.link = MeteredLink(self.dial, self.traffic, self.clock, lambda: FAREWELL)
        self.link.start()

    def dial(self, meter):
        self.made += 1
        if self.refuses:
            raise ConfigError("no identity")
        return PahoTransport(self.login, subscriptions=("em/v1/t/d/cam-1/desired",), meter=meter)

    def until(self, kind):
        def arrived():
            arrival = self.link.receive(0.02)
            return arrival if isinstance(arrival, kind) else None

        return wait_for(arrived, f"a {kind.__name__}")


@pytest.fixture
def scene(tmp_path, broker):
    made = Scene(tmp_path, broker.port)
    yield made
    made.link.close()


def test_a_link_counts_from_its_first_attempt_and_the_count_outlives_it(scene, tmp_path):
    scene.until(LinkUp)
    before = scene.traffic.spent_bytes
    assert before > 500
    assert scene.link.publish(Message("em/v1/t/d/cam-1/state", b"x" * 5000))
    wait_for(lambda: not scene.link.unconfirmed, "the confirmation")
    scene.link.receive(0)
    assert before + 5000 < scene.traffic.spent_bytes < before + 6000
    scene.link.close()
    scene.link.close()
    assert Traffic(tmp_path, BUDGET, scene.clock).spent_bytes == scene.traffic.spent_bytes > before + 5000


def test_a_used_up_day_ends_the_link_with_a_farewell_and_the_next_one_brings_it_back(scene, broker):
    scene.until(LinkUp)
    scene.traffic.add(BUDGET - last_bytes(BUDGET) - scene.traffic.spent_bytes)
    assert is_used_up(scene.traffic.day)
    assert "used up" in scene.until(LinkDown).reason
    assert broker.next(PUBLISH)[1].endswith(b"goodbye")
    broker.next(DISCONNECT)
    assert (scene.link.connected, scene.link.unconfirmed, scene.link.given_up) == (False, 0, 1)
    assert not scene.link.publish(FAREWELL)
    accepted = broker.accepted
    scene.clock.advance(60)
    assert [scene.link.receive(0.01) for _ in range(20)] == [None] * 20
    assert broker.accepted == accepted, "not even an attempt"
    scene.clock.advance(DAY_S)
    scene.until(LinkUp)
    broker.next(CONNECT)
    assert scene.link.given_up == 1


def test_without_a_budget_it_only_counts(tmp_path, broker):
    scene = Scene(tmp_path, broker.port, None)
    scene.traffic.add(1 << 40)
    scene.until(LinkUp)
    broker.cut()
    scene.until(LinkDown)
    scene.until(LinkUp)
    assert scene.made == 1, "paho connects again by itself"
    assert scene.traffic.spent_bytes > (1 << 40) + 1000
    scene.link.close()


def test_within_the_reserve_a_link_that_breaks_waits_for_its_turn(scene, broker):
    scene.until(LinkUp)
    scene.traffic.add(7 * BUDGET // 8)
    broker.cut()
    scene.until(LinkDown)
    accepted = broker.accepted
    assert [scene.link.receive(0.05) for _ in range(30)] == [None] * 30
    assert broker.accepted == accepted
    scene.clock.advance(3 * 3600)
    scene.until(LinkUp)


def test_a_broker_that_is_not_there_costs_little_and_is_tried_again_sooner(scene, broker):
    scene.until(LinkUp)
    scene.traffic.add(7 * BUDGET // 8)
    broker.connack = 5
    broker.cut()
    scene.until(LinkDown)
    scene.clock.advance(3 * 3600)
    scene.until(LinkDown)
    accepted = broker.accepted
    assert [scene.link.receive(0.05) for _ in range(10)] == [None] * 10
    assert broker.accepted == accepted
    broker.connack = 0
    scene.clock.advance(1800)
    scene.until(LinkUp)


def test_an_identity_that_cannot_be_used_the_next_day_is_said_and_tried_again(scene, caplog):
    scene.until(LinkUp)
    scene.traffic.add(BUDGET)
    scene.until(LinkDown)
    scene.refuses = True
    scene.clock.advance(DAY_S)
    made = scene.made
    assert [scene.link.receive(0.001) for _ in range(5)] == [None] * 5
    assert scene.made == made + 1
    assert "cannot be made" in caplog.text
    scene.refuses = False
    scene.clock.advance(REDIAL_S)
    scene.until(LinkUp)


def test_a_device_that_wakes_with_nothing_left_does_not_connect(tmp_path, broker):
    Traffic(tmp_path, BUDGET, FakeClock()).add(BUDGET)
    scene = Scene(tmp_path, broker.port)
    assert [scene.link.receive(0.01) for _ in range(10)] == [None] * 10
    assert broker.accepted == 0
    scene.clock.advance(DAY_S)
    scene.until(LinkUp)
    scene.link.close()
