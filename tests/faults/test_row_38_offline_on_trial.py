"""Row 38: a device loses its fleet while a release is on trial. A whole agent, a controller, a mosquitto that is
killed; or only the device's own line is cut.

The device decides alone, at the end of its trial, and says so later; the fleet's wave waits for it, but not for ever.
Time passes on a clock that the test sets.
"""

import os
import signal

import pytest
import sqlalchemy as sa

from agent import service as agent_service
from edgeml import mqtt
from edgeml.ids import ReleaseId
from edgeml.twin import DeviceState, Outcome
from fleet import campaigns, overview, schema
from fleet.overview import Part
from fleet.rollout import Plan, RolloutState

from .headquarters import Headquarters
from .invariants import check
from .life import Life, SetClock
from .link import Line

OLD, NEW = "sample@1.0.0", ReleaseId("sample@2.0.0")
TRIAL_S, WAIT_MAX_S, SOAK_S = 120.0, 3600.0, 60.0

pytestmark = pytest.mark.processes


@pytest.fixture
def line(broker):
    """The device's own way to the broker."""
    made = Line([broker.port], bytes_s=1e7, rtt_s=0.0, lost=0.0)
    yield made
    made.close()


@pytest.fixture
def life(make_agent, broker, line, tmp_path, versions, monkeypatch):
    monkeypatch.setattr(agent_service, "TICK_S", 0.01)
    for name in ("RECONNECT_FIRST_S", "RECONNECT_MAX_S"):
        monkeypatch.setattr(mqtt, name, mqtt.RECONNECT_MIN_S)
    headquarters = Headquarters(tmp_path, broker.port, SetClock())
    for number in (1, 2):
        (tmp_path / f"{number}.edgeml").write_bytes(versions[number])
        headquarters.publish(tmp_path / f"{number}.edgeml")
    agent = make_agent(tmp_path / "state")
    agent.join(broker, headquarters)
    agent.settings.write_text(
        agent.settings.read_text().replace(f"port = {broker.port}\n", f"port = {line.ports[broker.port]}\n")
    )
    made = Life(agent, broker, headquarters)
    yield made
    made.close()


def seen(life, rollout):
    return overview.rollout(life.headquarters.store, rollout)


def state(life, rollout):
    return seen(life, rollout).rollout.state


def on_trial(life, line=None):
    """Start a rollout, and kill the broker when its release is on trial, or only cut the device's line; return the rollout."""
    life.until(lambda: life.up and life.headquarters.connected, "both links")
    life.ask(OLD)
    # The fleet knows what it runs before it wants something else.
    life.until(
        lambda: overview.status(life.headquarters.store, 0).releases == {OLD: 1}, "the device's report"
    )
    plan = Plan(
        release=NEW,
        waves=(1.0,),
        soak_s=SOAK_S,
        wait_max_s=WAIT_MAX_S,
        trials_min=1,
        trial_s=TRIAL_S,
        retries_max=0,
    )
    rollout = life.headquarters.start(plan)
    life.until(lambda: life.entry().state is DeviceState.TRIAL, "the trial", seconds=0.5)
    if line is None:
        life.broker.kill()
        life.until(
            lambda: not life.up and not life.headquarters.connected, "both links to be down", seconds=0.0
        )
    else:
        line.cut()
        life.until(lambda: not life.up and not seen(life, rollout).devices[0].online, "the will", seconds=0.0)
    assert life.entry().state is DeviceState.TRIAL, "the trial ended before the test could begin"
    return rollout


def pass_time(life, seconds, release):
    """Let time pass, with a request now and then."""
    until_s = life.clock.monotonic_s() + seconds
    while life.clock.monotonic_s() < until_s:
        life.turn(10.0)
        life.ask(release)


def decided_alone(life):
    """How it ended on the device, while nobody could be asked."""
    life.until(lambda: life.entry().outcome is not None, "the device's decision", seconds=5.0)
    assert not life.up
    return life.entry().outcome


def come_back(life):
    life.broker.begin()
    life.until(lambda: life.up and life.headquarters.connected, "both links again", seconds=0.0)


def held_rows(life):
    with life.headquarters.store.read() as connection:
        return connection.scalar(
            sa.select(sa.func.sum(schema.windows.c.inferences)).where(schema.windows.c.release == NEW)
        )


def test_a_good_release_is_kept_without_the_fleet_and_the_wave_goes_on_when_it_hears_so(life):
    rollout = on_trial(life)
    life.ask(NEW)
    began_s = life.clock.monotonic_s()
    assert decided_alone(life) is Outcome.COMMITTED
    assert 0.9 * TRIAL_S <= life.clock.monotonic_s() - began_s <= 1.5 * TRIAL_S
    pass_time(life, WAIT_MAX_S / 4, NEW)
    # The fleet has heard nothing: it neither advances nor gives up.
    [device] = seen(life, rollout).devices
    assert (state(life, rollout), device.part) == (RolloutState.RUNNING, Part.ASKED)
    assert "0 of 1 reachable devices" in seen(life, rollout).rollout.reason
    come_back(life)
    life.until(lambda: seen(life, rollout).devices[0].part is Part.DONE, "the report")
    life.until(
        lambda: state(life, rollout) is RolloutState.COMPLETED, "the rollout to be completed", seconds=2.0
    )
    # What it saw while it was away counts as evidence.
    assert held_rows(life) >= WAIT_MAX_S / 4 / 10 - 12
    life.ask(NEW)
    life.close()
    assert check(life.agent.storage).slots("sample").current.release == NEW


def test_the_wave_waits_no_longer_than_it_may_and_an_operator_goes_on_later(life):
    rollout = on_trial(life)
    life.ask(NEW)
    began_s = life.clock.monotonic_s()
    assert decided_alone(life) is Outcome.COMMITTED
    life.until(
        lambda: state(life, rollout) is not RolloutState.RUNNING, "the wave to have waited", seconds=60.0
    )
    waited_s = life.clock.monotonic_s() - began_s
    assert state(life, rollout) is RolloutState.PAUSED
    assert WAIT_MAX_S - TRIAL_S <= waited_s <= WAIT_MAX_S + 2 * 60.0
    assert (
        f"0 of 1 reachable devices of wave 1 have decided, in {WAIT_MAX_S:.0f} s"
        in seen(life, rollout).rollout.reason
    )
    life.ask(NEW)
    come_back(life)
    life.until(lambda: seen(life, rollout).devices[0].part is Part.DONE, "the report")
    assert state(life, rollout) is RolloutState.PAUSED, "an operator looks first"
    campaigns.request(life.headquarters.store, rollout, RolloutState.RUNNING)
    life.until(
        lambda: state(life, rollout) is RolloutState.COMPLETED, "the rollout to be completed", seconds=2.0
    )
    life.close()
    check(life.agent.storage)


def test_the_only_device_of_a_wave_goes_offline_and_the_fleet_neither_advances_nor_gives_up(life, line):
    """The broker and the fleet go on: they know that it is offline."""
    rollout = on_trial(life, line)
    life.ask(NEW)
    began_s = life.clock.monotonic_s()
    assert decided_alone(life) is Outcome.COMMITTED
    pass_time(life, WAIT_MAX_S / 2, NEW)
    assert state(life, rollout) is RolloutState.RUNNING
    assert "0 of 1 inferences" in seen(life, rollout).rollout.reason
    life.until(
        lambda: state(life, rollout) is not RolloutState.RUNNING, "the wave to have waited", seconds=60.0
    )
    assert life.clock.monotonic_s() - began_s <= WAIT_MAX_S + SOAK_S + 2 * 60.0
    assert "evidence is missing" in seen(life, rollout).rollout.reason
    line.mend()
    life.until(lambda: life.up, "the device to be back", seconds=0.0)
    life.until(lambda: seen(life, rollout).devices[0].part is Part.DONE, "the report")
    campaigns.request(life.headquarters.store, rollout, RolloutState.RUNNING)
    life.until(
        lambda: state(life, rollout) is RolloutState.COMPLETED, "the rollout to be completed", seconds=2.0
    )
    life.close()
    check(life.agent.storage)


def test_a_bad_release_is_taken_back_without_the_fleet_and_fails_when_it_hears_so(life):
    rollout = on_trial(life)
    life.ask(NEW)
    os.kill(life.service._roster.seat("sample").active.pid, signal.SIGKILL)
    assert decided_alone(life) is Outcome.ROLLED_BACK
    life.ask(OLD)
    pass_time(life, 600.0, OLD)
    [device] = seen(life, rollout).devices
    assert (state(life, rollout), device.part) == (RolloutState.RUNNING, Part.ASKED)
    come_back(life)
    life.until(lambda: seen(life, rollout).devices[0].part is Part.FAILED, "the report")
    life.until(lambda: state(life, rollout) is not RolloutState.RUNNING, "the rollout to stop", seconds=2.0)
    [device] = seen(life, rollout).devices
    assert (device.outcome, device.release) == (Outcome.ROLLED_BACK, OLD)
    life.ask(OLD)
    life.close()
    assert check(life.agent.storage).slots("sample").current.release == OLD
