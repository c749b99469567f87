"""The controller: stores before it acknowledges, and believes only what it should."""

import msgspec
import pytest
import sqlalchemy as sa

from edgeml import twin
from edgeml.errors import StorageError
from edgeml.ids import ReleaseId, digest_of
from edgeml.testing import Weather
from edgeml.topics import Leaf
from edgeml.transport import Message
from edgeml.twin import Birth, Desired, Outcome, Presence
from fleet import overview

OLD, NEW = ReleaseId("digits@1.0.0"), ReleaseId("digits@1.1.0")


def test_rows_are_acknowledged_only_after_they_are_stored(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    cam.rows(1, 2, 3)
    assert cam.acks() == []
    world.step()
    assert world.count() == 3
    assert cam.acks() == [3]


def test_database_that_fails_leaves_rows_unacknowledged(world, monkeypatch):
    (cam,) = world.enrol("cam-1")
    cam.come()
    world.step()
    cam.rows(1, 2)

    def fails(*_arguments):
        raise sa.exc.OperationalError("INSERT", {}, Exception("disk I/O error"))

    with monkeypatch.context() as patch:
        patch.setattr("fleet.telemetry_store.insert_new", fails)
        with pytest.raises(StorageError, match="disk I/O error"):
            world.step()
    assert cam.acks() == []
    world.kill_controller()
    cam.rows(1, 2)
    world.step()
    assert (world.count(), cam.acks()) == (2, [2])


def test_replayed_rows_are_stored_once_and_acknowledged_every_time(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    for _ in range(3):
        cam.rows(1, 2, 3)
        world.step()
    assert world.count() == 3
    assert cam.acks() == [3, 3, 3]


def test_rows_ahead_of_their_turn_are_stored_once_and_acknowledged_only_in_their_turn(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    cam.rows(8, 9, ahead=True)
    world.step()
    assert (world.count(), cam.acks(), cam.refusals()) == (2, [], [])
    cam.rows(1, 2)
    cam.rows(10, ahead=True)
    world.step()
    # Not 9, and not 10: rows 3 to 7 are not here.
    assert (world.count(), cam.acks()) == (5, [2])
    world.kill_controller()
    cam.rows(*range(3, 11))
    world.step()
    assert (world.count(), cam.acks()) == (10, [2, 10])


@pytest.mark.parametrize("seed", range(5))
def test_duplicates_and_reordering_change_nothing_in_the_end(make_world, seed):
    world = make_world(Weather(duplicated=0.4, reordered=0.6, seed=seed))
    cams = world.enrol("cam-1", "cam-2", "cam-3")
    for cam in cams:
        cam.come()
    for first in range(1, 30, 3):
        for cam in cams:
            cam.rows(first, first + 1, first + 2)
        if first % 4 == 0:
            world.step()
    world.step(times=20)
    assert world.count() == 3 * 30
    assert all(max(cam.acks()) == 30 for cam in cams)


def test_poison_is_counted_and_stops_nothing(world, caplog):
    (cam,) = world.enrol("cam-1")
    cam.come()
    for payload in (b"x", b"\xff" * 100, b"{}", b"null"):
        for leaf in (Leaf.TELEMETRY, Leaf.STATE, Leaf.BIRTH, Leaf.REPORTED):
            cam.raw(payload, leaf)
    cam.rows(1)
    world.step()
    assert world.controller.refused["malformed"] >= 15
    assert cam.acks() == [1]
    assert len([one for one in caplog.records if "cam-1" in one.message and "malformed" in one.message]) == 1
    world.step(61.0)
    cam.raw(b"x")
    world.step()
    assert len([one for one in caplog.records if "cam-1" in one.message and "malformed" in one.message]) == 2


def test_device_is_told_which_batch_is_refused_for_good(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    cam.raw(b"no batch", Leaf.TELEMETRY)
    world.step()
    assert cam.refusals() == [digest_of(b"no batch")]
    cam.rows(1)
    world.step()
    assert cam.acks() == [1]


def test_birth_that_names_another_device_is_refused(world):
    cam, other = world.enrol("cam-1", "cam-2")
    cam.link.start()
    cam.say(Leaf.BIRTH, Birth(device=other.name, session="x", profile="generic-x86-64", agent_version="test"))
    world.step()
    assert world.controller.refused["malformed"] == 1
    assert world.device("cam-1").birth is None
    assert world.device("cam-2").birth is None


def test_device_that_is_not_enrolled_is_counted_and_ignored(world):
    stranger = world.stranger("stranger")
    stranger.come()
    stranger.rows(1)
    world.step()
    assert world.controller.refused["unknown device"] == 3
    assert (world.count(), stranger.acks()) == (0, [])


def test_message_of_another_tenant_is_refused(world):
    world.enrol("cam-1")
    world.link.put(Message("em/v1/other/d/cam-1/state", twin.encode(Presence(online=True, session="s"))))
    world.step()
    assert not world.device("cam-1").online
    assert world.controller.refused["malformed"] == 1


def test_cleared_retained_message_says_nothing(world):
    world.enrol("cam-1")
    world.link.put(Message("em/v1/main/d/cam-1/state", b""))
    world.step()
    assert world.controller.refused.total() == 0


def test_device_comes_and_goes_with_its_will(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    world.step()
    assert world.device("cam-1").online
    cam.link.cut()
    world.step()
    assert not world.device("cam-1").online


def test_late_will_of_an_old_session_does_not_end_a_new_life(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    world.step()
    cam.session = "s2"
    cam.come()
    cam.presence(online=False, session="s1")
    world.step()
    assert world.device("cam-1").online
    cam.presence(online=False, session="s2")
    world.step()
    assert not world.device("cam-1").online


def test_a_controller_that_begins_with_a_late_will_believes_the_will_of_the_life_that_speaks(world):
    """The broker retains the late will, so that is what a controller hears first on a new link."""
    (cam,) = world.enrol("cam-1")
    cam.session = "s2"
    cam.come()
    world.step()
    cam.presence(online=False, session="s1")
    world.link.cut()
    world.clock.advance(60)
    world.start()
    world.step()
    assert not world.device("cam-1").online
    cam.rows(1)
    world.step()
    assert world.device("cam-1").online
    cam.presence(online=False, session="s1")
    world.step()
    assert world.device("cam-1").online
    cam.presence(online=False, session="s2")
    world.step()
    assert not world.device("cam-1").online


def test_life_and_death_that_the_controller_slept_through_is_believed(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    world.step()
    world.link.cut()
    cam.link.cut()
    cam.session = "s2"
    cam.link.heal()
    cam.presence(online=True)
    cam.presence(online=False)
    world.clock.advance(60)
    world.start()
    world.step()
    assert not world.device("cam-1").online


def test_report_of_an_older_generation_does_not_undo_a_newer_one(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    world.step()
    old = Desired(generation=3, deployment="d3", release=OLD, target="t", digest="a" * 64)
    new = Desired(generation=4, deployment="d4", release=NEW, target="t", digest="b" * 64)
    cam.report(NEW, Outcome.COMMITTED, new)
    cam.report(OLD, Outcome.COMMITTED, old)
    world.step()
    assert world.device("cam-1").model("digits").release == NEW
    assert world.controller.refused["old report"] == 1
    cam.session = "after a new flash"
    cam.come()
    cam.report(OLD)
    world.step()
    assert world.device("cam-1").model("digits").release == OLD


def test_heartbeat_says_what_was_refused(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    cam.raw(b"x")
    world.step()
    world.step(11.0)
    view = overview.status(world.store, world.clock.now_ms())
    assert view.controller.connected
    assert view.controller.refused == {"malformed": 1}


def test_telemetry_is_kept_as_long_as_the_settings_say(world):
    world.config = msgspec.structs.replace(
        world.config, controller_loop=replace_keep(world.config.controller_loop)
    )
    world.kill_controller()
    (cam,) = world.enrol("cam-1")
    cam.come()
    cam.rows(1, 2)
    world.step()
    world.step(3 * 86_400.0)
    assert world.count() == 0


def replace_keep(loop):
    return msgspec.structs.replace(loop, keep_days=2.0)
