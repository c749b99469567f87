"""Row 16: a server that answers 503 to a whole fleet."""

import msgspec
import pytest

from agent.machine import Action, Event
from agent.updater import PASSING_ATTEMPTS_MAX, Result, Updater
from edgeml.ids import DeviceId, ModelName
from edgeml.twin import DeviceState, Outcome, Policy

from ..agent.test_updater import MemoryJournal, MemorySlots, at, desired
from .invariants import check


@pytest.mark.parametrize(("name", "asked_s"), [("timestamp.json", 120), ("bundle", 40), ("bundle", None)])
def test_attempts_come_later_and_later_and_not_before_they_may(unit, mirror, signer, versions, name, asked_s):
    wanted = msgspec.structs.replace(signer.release(versions[2], 2), policy=Policy(attempts_max=4))

    def habit(asked, reply):
        if asked.name == {"bundle": wanted.digest}.get(name, name):
            reply.status, reply.body = 503, b"busy"
            reply.headers = {"Retry-After": None if asked_s is None else str(asked_s)}

    mirror.habit = habit
    unit.want(wanted)
    # More often than the policy's attempts: a server that is busy is not the release's fault.
    while len(unit.waits) < 6 or unit.entry().state is not DeviceState.FETCHING:
        unit.step()
    entry = unit.entry()
    assert (entry.outcome, entry.state) == (None, DeviceState.FETCHING)
    assert "503" in entry.reason
    first, *waits = unit.waits[-6:]
    assert first == 0
    if asked_s is None:
        assert all(0.5 * 2**i <= wait <= 2**i for i, wait in enumerate(waits)), waits
    else:
        assert all(asked_s <= wait <= 1.5 * asked_s for wait in waits), waits
    assert unit.serves() == "sample@1.0.0"
    mirror.habit = lambda _asked, _reply: None
    assert unit.settle().outcome is Outcome.COMMITTED
    assert unit.serves() == "sample@2.0.0"
    check(unit.storage)


def test_a_server_that_never_comes_back_is_given_up_some_hours_later():
    device = Updater(DeviceId("cam"), ModelName("m"), MemoryJournal(), MemorySlots())
    device.start(at(0))
    device.on_desired(desired(1, 1, policy=Policy(attempts_max=5)), at(0))
    asked, now = 0, 0.0
    while device.pending is not None and device.pending.action is Action.FETCH:
        now = device.pending.not_before_s
        asked += 1
        device.done(device.next(at(now)), Result(Event.FAILED, "503", passing=True), at(now))
    assert device.entry.outcome is Outcome.FAILED
    assert asked == PASSING_ATTEMPTS_MAX
    assert 4 * 3600 < now < 12 * 3600


def test_the_rate_of_a_whole_fleet_falls_and_has_no_peaks():
    """Two thousand devices that begin in the same second; when each asks is decided by the real updaters."""
    asked = []
    for number in range(2000):
        device = Updater(DeviceId(f"cam-{number}"), ModelName("m"), MemoryJournal(), MemorySlots())
        device.start(at(0))
        device.on_desired(desired(1, 1, policy=Policy(attempts_max=12)), at(0))
        now = 0.0
        while now < 400 and device.pending is not None and device.pending.action.value == "fetch":
            now = device.pending.not_before_s
            asked.append(now)
            device.done(device.next(at(now)), Result(Event.FAILED, "503"), at(now))
    begun, minutes = asked.count(0), [sum(60 * i < one <= 60 * (i + 1) for one in asked) for i in range(6)]
    assert begun == 2000
    assert minutes[0] > 3 * minutes[2] > 3 * minutes[5] > 0
    late = [sum(second < one <= second + 1 for one in asked) for second in range(100, 360)]
    assert max(late) < 2000 / 20, "spread, not all at once"
