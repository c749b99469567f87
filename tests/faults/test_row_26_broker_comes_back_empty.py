"""Row 26: the broker dies and its disk with it; it comes back and knows nothing. A whole agent, a real mosquitto that
keeps on disk what is retained, a real controller.

What was said to it is said again by whoever said it: the device says what it is and runs, the controller what is
wanted, and rows that nobody stored are sent again.
"""

import pytest

from edgeml import topics, twin
from edgeml.ids import DeviceId, ModelName
from edgeml.telemetry import Stream
from edgeml.topics import Leaf
from edgeml.twin import Birth, Desired, Outcome, Presence, Reported
from fleet.config import FleetConfig

from .headquarters import TENANT
from .invariants import check

OLD, NEW = "sample@1.0.0", "sample@2.0.0"
ROUNDS = 4
CONTROLLER = topics.controller_topic(TENANT, FleetConfig().controller)

pytestmark = pytest.mark.processes


def topic(leaf, model=None):
    return topics.device_topic(TENANT, DeviceId("cam-1"), leaf, model and ModelName(model))


STATE, WISH, REPORT = topic(Leaf.STATE), topic(Leaf.DESIRED, "sample"), topic(Leaf.REPORTED, "sample")


def lose_broker(life):
    """Kill it, and delete what it had written down."""
    life.broker.save()
    life.kill_broker()
    life.broker.lose()


def test_a_wish_that_the_broker_lost_before_the_device_heard_it_is_said_again(apart):
    apart.meet()
    apart.ask(OLD)
    session = apart.service._journal.boot
    apart.line.cut()
    apart.until(lambda: not apart.headquarters.online(), "the will", seconds=0.0)
    rollout = apart.roll_out(NEW)
    apart.until(lambda: WISH in apart.broker.retained(), "the wish")
    wished = twin.decode(apart.broker.retained()[WISH], Desired)
    assert wished.release == NEW
    lose_broker(apart)
    for _ in range(5):
        apart.live(OLD)

    apart.broker.begin()
    assert apart.broker.retained() == {}, "it knows nothing"
    apart.broker.kill()
    apart.come_back()
    apart.until(lambda: len(apart.heard) > 2 and apart.headquarters.online(), "the device to be there")
    said = [
        (one.leaf, payload)
        for _, one, payload in apart.heard
        if one.leaf in {Leaf.STATE, Leaf.BIRTH, Leaf.REPORTED}
    ]
    assert [leaf for leaf, _ in said[:3]] == [Leaf.STATE, Leaf.BIRTH, Leaf.REPORTED]
    presence, birth = twin.decode(said[0][1], Presence), twin.decode(said[1][1], Birth)
    assert presence.online
    assert presence.session == birth.session == session, "the life that it was before"
    assert twin.decode(said[2][1], Reported).slots.current.release == OLD

    apart.until(lambda: apart.entry().desired is not None, "the device to hear of it")
    assert apart.entry().desired == wished, "the same wish, of the same generation"
    apart.until(lambda: apart.entry().outcome is not None, "the trial to end", seconds=1.0)
    assert apart.entry().outcome is Outcome.COMMITTED
    apart.ask(NEW)
    apart.until(lambda: apart.is_complete(rollout), "the rollout to be completed", seconds=1.0)

    # Once more, when there is nothing to do: all of it is there again.
    lose_broker(apart)
    apart.come_back()
    kept = {STATE, WISH, REPORT, CONTROLLER}
    apart.until(lambda: apart.broker.retained().keys() >= kept, "what is retained")
    retained = apart.broker.retained()
    assert retained.keys() == kept
    assert twin.decode(retained[WISH], Desired) == wished
    assert twin.decode(retained[REPORT], Reported).outcome is Outcome.COMMITTED
    assert all(twin.decode(retained[one], Presence).online for one in (STATE, CONTROLLER))
    apart.live(NEW)
    assert apart.entry().outcome is Outcome.COMMITTED
    apart.account()
    apart.close()
    assert check(apart.agent.storage).slots("sample").current.release == NEW


def test_rows_that_the_broker_confirmed_and_lost_are_sent_again_and_stored_once(apart):
    apart.meet()
    for number in range(ROUNDS):
        for _ in range(5):
            apart.live(OLD)
        # The broker takes rows that the controller does not get.
        apart.controllers_line.cut()
        apart.until(lambda: not apart.headquarters.connected, "the controller to be cut off", seconds=0.0)
        for _ in range(5):
            apart.live(OLD)
        apart.until(apart.is_waiting, "rows that only the broker has")
        lose_broker(apart)
        acknowledged = apart.buffer.loss(Stream.EVENTS).acknowledged
        for _ in range(5):
            apart.live(OLD)
        assert apart.buffer.loss(Stream.EVENTS).acknowledged == acknowledged
        apart.come_back()
        apart.until(
            lambda held=acknowledged: apart.buffer.loss(Stream.EVENTS).acknowledged > held,
            f"rows in round {number}",
        )
    apart.account()
    assert apart.asked == apart.noted == 15 * ROUNDS
    apart.close()
    assert check(apart.agent.storage).slots("sample").current.release == OLD
