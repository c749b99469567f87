"""Two devices with one identity: what the controller does with their words, and how an operator ends it."""

import pytest

from edgeml.errors import ConfigError
from edgeml.ids import DeviceId, ReleaseId
from edgeml.topics import Leaf
from edgeml.twin import Birth, Outcome
from fleet import campaigns, enroll, overview, quarantines
from fleet.config import FleetHome
from fleet.overview import Part
from fleet.quarantines import TWO_DEVICES, Quarantine
from fleet.rollout import RolloutState

from .test_cli import Shell

OLD, NEW = ReleaseId("digits@1.0.0"), ReleaseId("digits@1.1.0")


def introduce(cam, session):
    cam.session = session
    cam.presence(online=True)
    cam.say(Leaf.BIRTH, Birth(device=cam.name, session=session, profile="generic-x86-64", agent_version="t"))


def throw_each_other_off(world, cam, minutes=4):
    """Two agents that come back every few seconds; the controller looks once in between."""
    for number in range(minutes * 20):
        introduce(cam, "ab"[number % 2])
        world.step(3.0)


def impose(world, name):
    with world.store.write() as connection:
        quarantines.impose(connection, DeviceId(name), Quarantine(world.clock.now_ms(), TWO_DEVICES))


def lift(world, name):
    return quarantines.lift(world.store, name, world.clock.now_ms())


def kept_out(world):
    view = overview.status(world.store, world.clock.now_ms())
    return {one.device for one in view.devices if one.quarantine is not None}


@pytest.fixture
def cams(world):
    made = world.enrol("cam-1", "cam-2")
    for cam in made:
        cam.come()
        cam.report(OLD)
    world.step()
    return made


def test_two_lives_that_alternate_are_noticed_and_one_that_reboots_is_not(world, cams, caplog):
    both, rebooting = cams
    for number in range(80):
        introduce(both, "ab"[number % 2])
        introduce(rebooting, f"boot-{number}")
        world.step(3.0)
    assert kept_out(world) == {"cam-1"}
    (said,) = [one for one in caplog.records if one.levelname == "ERROR"]
    assert "edgeml fleet device readmit cam-1" in said.message


def test_what_it_sends_is_not_taken_in_until_it_is_readmitted(world, cams):
    cam, _ = cams
    impose(world, "cam-1")
    cam.rows(1, 2)
    world.step()
    assert (world.count(), cam.acks()) == (0, []), "it keeps them"
    assert world.controller.refused["quarantined"] == 1
    assert world.device("cam-1").online
    assert lift(world, "cam-1").reason == TWO_DEVICES
    cam.rows(1, 2)
    world.step()
    assert (world.count(), cam.acks()) == (2, [2])


def test_rows_that_come_together_with_what_gives_it_away_are_not_taken_in_either(world, cams):
    cam, _ = cams
    for number in range(200):
        introduce(cam, "ab"[number % 2])
        cam.rows(number)
        world.step(3.0)
        if kept_out(world):
            break
    assert kept_out(world) == {"cam-1"}
    assert world.count() == number, "all but the last"


def test_rollouts_ask_nothing_of_it_and_go_on_and_ask_it_when_it_is_readmitted(world, cams):
    cam, other = cams
    impose(world, "cam-1")
    rollout = world.start_rollout()
    world.step(times=3)
    assert (cam.desired(), other.desired().release) == (None, NEW)
    other.report(NEW, Outcome.COMMITTED, other.desired())
    world.step(times=2)
    parts = overview.rollout(world.store, rollout).parts
    assert (parts[Part.QUARANTINED.value], parts[Part.DONE.value]) == (1, 1)
    lift(world, "cam-1")
    world.step(times=2)
    assert cam.desired().release == NEW


def test_a_rollout_completes_without_it(world, cams):
    cam, other = cams
    rollout = world.start_rollout(waves=(1.0,))
    world.step(times=3)
    impose(world, "cam-1")
    cam.listen().clear()
    other.report(NEW, Outcome.COMMITTED, other.desired())
    for seq in range(20):
        other.rows(seq, release=NEW, at_ms=world.clock.now_ms())
        world.step()
    view = overview.rollout(world.store, rollout)
    assert view.rollout.state is RolloutState.COMPLETED
    assert "1 of 1 devices run digits@1.1.0, 1 in quarantine were left as they are" in view.events[-1].line
    assert f"goes on without cam-1, which is in quarantine: {TWO_DEVICES}" in [
        one.line for one in view.events
    ]
    world.step(61.0, times=3)
    assert cam.desired() is None, "it is not reminded either"


def test_its_word_decides_no_deployment_and_the_way_back_leaves_it_alone(world, cams):
    cam, other = cams
    rollout = world.start_rollout()
    world.step(times=3)
    impose(world, "cam-1")
    cam.report(NEW, Outcome.COMMITTED, cam.desired())
    world.step()
    assert world.assignments(rollout)["cam-1"].outcome is None
    assert world.device("cam-1").model("digits").release == NEW, "it is shown what is said"
    campaigns.request(world.store, rollout, RolloutState.ABORTED)
    world.step(times=2)
    assert other.desired().release == OLD
    assert cam.desired().release == NEW
    other.report(OLD, Outcome.REVERTED, other.desired())
    world.step(times=2)
    view = overview.rollout(world.store, rollout)
    assert view.rollout.state is RolloutState.ABORTED
    assert "1 of 1 devices are back on their incumbent, 1 in quarantine" in view.events[-1].line


def test_who_is_readmitted_too_early_is_back_within_minutes_and_a_controller_that_starts_notices_it_too(
    world, cams
):
    throw_each_other_off(world, cams[0])
    assert kept_out(world) == {"cam-1"}
    lift(world, "cam-1")
    world.step()
    assert kept_out(world) == set()
    throw_each_other_off(world, cams[0], minutes=1)
    world.kill_controller()
    assert kept_out(world) == set()
    throw_each_other_off(world, cams[0])
    assert kept_out(world) == {"cam-1"}


def test_a_device_that_is_removed_and_added_again_is_in_no_quarantine(world, cams, tmp_path):
    impose(world, "cam-1")
    enroll.remove(FleetHome(tmp_path / "fleet"), world.store, "cam-1", 0)
    world.enrol("cam-1")
    assert kept_out(world) == set()


def test_the_operator_reads_it_and_ends_it(tmp_path):
    shell = Shell(FleetHome(tmp_path / "fleet"))
    shell.run("keys", "init")
    shell.run("device", "add", "cam-1", "--profile", "raspberry-pi-4", "--out", tmp_path / "kit")
    for name, why in (("cam-1", "no quarantine"), ("cam-9", "does not exist")):
        with pytest.raises(ConfigError, match=why) as caught:
            shell.run("device", "readmit", name)
        assert "device list" in caught.value.hint
    store = shell.store()
    with store.write() as connection:
        quarantines.impose(connection, DeviceId("cam-1"), Quarantine(1_790_000_000_000, TWO_DEVICES))
    store.close()
    assert "quarantined" in shell.run("device", "list").stdout
    assert "edgeml fleet device readmit cam-1" in shell.run("status").stdout
    assert shell.json("device", "list")[0]["quarantine"] == {
        "since_ms": 1_790_000_000_000,
        "reason": TWO_DEVICES,
    }
    assert shell.run("device", "readmit", "cam-1").stdout == "readmitted cam-1\n"
    assert shell.json("device", "list")[0]["quarantine"] is None
