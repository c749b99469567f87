"""Row 27: the broker is killed again and again, always before it has written down what it was told since it last did. A
whole agent, a real mosquitto that keeps on disk what is retained, a real controller.

What the broker confirmed is worth nothing: rows leave the device by the controller's own acknowledgement alone, and
what the broker still knows is what was true a while ago. It writes when the test says so, as at the end of its interval.
"""

import random

import pytest

from edgeml import topics, twin
from edgeml.ids import DeviceId, ModelName
from edgeml.topics import Leaf
from edgeml.twin import Desired, DeviceState, Outcome

from .headquarters import TENANT
from .invariants import check

OLD, NEW, NEWEST = "sample@1.0.0", "sample@2.0.0", "sample@3.0.0"
WISH = topics.device_topic(TENANT, DeviceId("cam-1"), Leaf.DESIRED, ModelName("sample"))
KILLS = 16

pytestmark = pytest.mark.processes


def kill(life):
    """Kill it, and see what the device counts as acknowledged while nobody is there to acknowledge anything."""
    life.kill_broker()
    life.check_kept()


def test_rows_leave_the_device_only_when_the_controller_has_them_however_often_the_broker_dies(apart):
    chance = random.Random(27)
    apart.meet()
    apart.live(OLD)
    apart.broker.save()
    for number in range(KILLS):
        if number % 4 == 3:
            # Only the controller is cut off: for a while the broker takes rows that nobody stores.
            apart.controllers_line.cut()
            apart.until(lambda: not apart.headquarters.connected, "the controller to be cut off", seconds=0.0)
        for _ in range(chance.randrange(1, 6)):
            apart.live(OLD)
        if number % 4 == 3:
            apart.until(apart.is_waiting, "rows that the broker confirmed, and that it loses")
        # In the middle of whatever it was doing: nothing was waited for.
        apart.note()
        apart.service._turn()
        kill(apart)
        for _ in range(chance.randrange(4)):
            apart.live(OLD)
        apart.come_back()
    apart.account()
    assert apart.noted > 2 * KILLS
    apart.close()
    assert check(apart.agent.storage).slots("sample").current.release == OLD


def test_a_broker_that_remembers_an_old_wish_does_not_take_the_device_back(apart):
    """The next wish is killed with it at each step: told, on trial, kept."""
    apart.meet()
    first = apart.roll_out(NEW)
    apart.until(lambda: apart.entry().state is DeviceState.TRIAL, "the trial", seconds=1.0)
    apart.ask(NEW)
    apart.until(lambda: apart.is_complete(first), "the first rollout to be completed", seconds=1.0)
    apart.broker.save()
    old = apart.broker.retained()[WISH]
    assert twin.decode(old, Desired).release == NEW

    second = apart.roll_out(NEWEST)
    apart.until(lambda: apart.broker.retained()[WISH] != old, "the next wish", seconds=0.0)
    wished = twin.decode(apart.broker.retained()[WISH], Desired)
    assert wished.generation == twin.decode(old, Desired).generation + 1
    for reached in (
        lambda: True,
        lambda: apart.entry().state is DeviceState.TRIAL,
        lambda: apart.entry().outcome is Outcome.COMMITTED and apart.entry().desired == wished,
    ):
        apart.until(reached, "the next step of the device", seconds=1.0)
        kill(apart)
        # Cut off: what it has heard by now is all that it knows.
        before = apart.entry()
        done = before.desired == wished and before.outcome is Outcome.COMMITTED
        served = (NEWEST,) if done else (NEW, NEWEST)
        apart.live(*served)
        apart.broker.begin()
        assert apart.broker.retained()[WISH] == old, "it remembers what it wrote down, and no more"
        # The device hears the old wish, and nobody else.
        apart.line.mend()
        apart.until(lambda: apart.up, "the device's link", seconds=0.0)
        for _ in range(5):
            apart.live(*served)
        assert apart.entry().generation == before.generation
        apart.controllers_line.mend()
        apart.until(lambda: apart.headquarters.connected, "the controller's link", seconds=0.0)
        apart.until(lambda: apart.entry().desired == wished, "the wish, told again")
        apart.until(
            lambda: twin.decode(apart.broker.retained()[WISH], Desired) == wished, "the broker to know it"
        )
    apart.ask(NEWEST)
    apart.until(lambda: apart.is_complete(second), "the rollout to be completed", seconds=1.0)
    assert apart.is_complete(first)
    apart.account()
    apart.close()
    table = check(apart.agent.storage)
    assert table.slots("sample").current.release == NEWEST
    assert table.slots("sample").previous.release == NEW
