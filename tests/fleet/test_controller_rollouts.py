"""The controller and its rollouts: it asks, hears, asks again, and may die at any instant."""

import importlib

import msgspec
import pytest

from edgeml import topics
from edgeml.errors import ConfigError
from edgeml.ids import ReleaseId
from edgeml.twin import Desired, Outcome
from fleet import campaigns, overview, service
from fleet.overview import Part
from fleet.rollout import RolloutState

OLD, NEW = ReleaseId("digits@1.0.0"), ReleaseId("digits@1.1.0")


def roll_out_to(world, *cams):
    for cam in cams:
        cam.come()
        cam.report(OLD)
    world.step()
    rollout = world.start_rollout()
    world.step(times=3)
    return rollout


def test_rollout_asks_devices_and_hears_how_it_ended(world):
    cams = world.enrol("cam-1", "cam-2")
    rollout = roll_out_to(world, *cams)
    wanted = [cam.desired() for cam in cams]
    assert [one.release for one in wanted] == [NEW, NEW]
    assert [one.digest for one in wanted] == ["b" * 64] * 2
    assert len({one.deployment for one in wanted}) == 2
    for cam, one in zip(cams, wanted, strict=True):
        cam.report(NEW, Outcome.COMMITTED, one)
        cam.rows(1, release=NEW, at_ms=world.clock.now_ms())
    world.step(times=12)
    view = overview.rollout(world.store, rollout)
    assert view.rollout.state is RolloutState.COMPLETED
    assert view.parts[Part.DONE.value] == 2
    assert {row.incumbent for row in world.assignments(rollout).values()} == {OLD}
    assert view.events
    assert view.evidence


def test_trials_of_both_arms_reach_the_decision(world):
    cams = world.enrol(*(f"cam-{index}" for index in range(6)))
    for cam in cams:
        cam.come()
        cam.report(OLD)
    world.step()
    rollout = world.start_rollout(waves=(0.3, 1.0))
    world.step(times=3)
    asked = [cam for cam in cams if cam.desired()]
    assert 0 < len(asked) < 6
    for cam in asked:
        cam.report(NEW, Outcome.COMMITTED, cam.desired())
    for seq in range(1, 5):
        for cam in cams:
            cam.rows(seq, release=NEW if cam in asked else OLD, at_ms=world.clock.now_ms())
        world.step()
    evidence = {one.metric.value: one for one in overview.rollout(world.store, rollout).evidence}
    assert evidence["slow"].candidate_trials == len(asked) * 4 * 50
    assert evidence["slow"].incumbent_trials == (6 - len(asked)) * 4 * 50


def test_device_that_claims_success_with_other_bytes_is_not_believed(world):
    (cam,) = world.enrol("cam-1")
    rollout = roll_out_to(world, cam)
    cam.report(OLD, Outcome.COMMITTED, cam.desired())
    world.step()
    row = world.assignments(rollout)[cam.name]
    assert row.outcome is Outcome.FAILED
    assert "other content" in row.reason


def test_first_outcome_counts(world):
    (cam,) = world.enrol("cam-1")
    rollout = roll_out_to(world, cam)
    wanted = cam.desired()
    cam.report(OLD, Outcome.ROLLED_BACK, wanted, reason="golden vectors differ")
    cam.report(NEW, Outcome.COMMITTED, wanted)
    world.step()
    row = world.assignments(rollout)[cam.name]
    assert (row.outcome, row.reason) == (Outcome.ROLLED_BACK, "golden vectors differ")


def test_outcome_of_a_deployment_nobody_asked_for_changes_nothing(world):
    (cam,) = world.enrol("cam-1")
    rollout = roll_out_to(world, cam)
    cam.report(NEW, Outcome.COMMITTED, replaced(cam.desired(), deployment="nonsense"))
    world.step()
    assert world.assignments(rollout)[cam.name].outcome is None


def replaced(desired, **changes):
    return msgspec.structs.replace(desired, **changes)


def test_broker_that_comes_back_empty_is_told_everything_again(world):
    cams = world.enrol("cam-1", "cam-2")
    roll_out_to(world, *cams)
    wanted = [cam.desired() for cam in cams]
    world.broker.restart_empty()
    assert not world.broker.retained
    world.link.heal()
    world.step()
    for cam in cams:
        cam.heard.clear()
        cam.link.heal()
    assert [cam.desired() for cam in cams] == wanted
    assert topics.controller_topic(world.config.tenant, world.config.controller) in world.broker.retained


def test_online_device_that_does_not_answer_is_asked_again(world):
    (cam,) = world.enrol("cam-1")
    roll_out_to(world, cam)
    first = cam.desired()
    cam.heard.clear()
    world.step(31.0, times=2)
    assert cam.desired() == first
    cam.report(NEW, Outcome.COMMITTED, first)
    world.step(times=2)
    cam.heard.clear()
    world.step(31.0, times=2)
    assert cam.desired() is None


def test_device_that_is_ahead_of_the_database_gets_a_higher_generation(world):
    (cam,) = world.enrol("cam-1")
    cam.come()
    cam.report(OLD, None, Desired(generation=41, deployment="x", release=OLD, target="t", digest="a" * 64))
    world.step()
    world.start_rollout()
    world.step(times=3)
    assert cam.desired().generation == 42


def test_device_without_a_suitable_variant_is_left_out(world):
    (fit,) = world.enrol("cam-1")
    (unfit,) = world.enrol("cam-2", profile="stm32h7")
    roll_out_to(world, fit, unfit)
    assert fit.desired() is not None
    assert unfit.desired() is None


def test_pause_that_is_asked_for_while_the_controller_is_down_is_carried_out(world):
    (cam,) = world.enrol("cam-1")
    rollout = roll_out_to(world, cam)
    world.link.cut()
    campaigns.request(world.store, rollout, RolloutState.PAUSED)
    world.start()
    world.step(times=2)
    assert overview.rollout(world.store, rollout).rollout.state is RolloutState.PAUSED
    campaigns.request(world.store, rollout, RolloutState.RUNNING)
    world.step(times=2)
    assert overview.rollout(world.store, rollout).rollout.state is RolloutState.RUNNING


def test_request_that_comes_between_reading_and_deciding_is_not_lost(world, monkeypatch):
    (cam,) = world.enrol("cam-1")
    cam.come()
    cam.report(OLD)
    world.step()
    rollout = world.start_rollout()
    real = service.advance

    def and_the_operator_pauses(*arguments):
        monkeypatch.setattr(service, "advance", real)
        campaigns.request(world.store, rollout, RolloutState.PAUSED)
        return real(*arguments)

    monkeypatch.setattr(service, "advance", and_the_operator_pauses)
    world.step(times=3)
    assert overview.rollout(world.store, rollout).rollout.state is RolloutState.PAUSED
    assert cam.desired() is None


class Killed(Exception):
    """The controller died here."""


# How often each is called at least, with three devices in two waves.
CUTS = {
    "fleet.rollout_store.save": 3,
    "fleet.rollout_store.save_event": 3,
    "fleet.rollout_store.save_assignment": 3,
    "fleet.rollout_store.decide": 3,
    "fleet.devices.save_desired": 3,
    "fleet.devices.save": 3,
    "fleet.devices.mark_published": 1,
}


@pytest.mark.parametrize(
    ("where", "nth"), [(where, nth) for where, most in CUTS.items() for nth in range(1, most + 1)]
)
def test_controller_that_dies_anywhere_goes_on_where_it_was(world, monkeypatch, where, nth):
    """Every write is cut at its n-th call; then a new controller with the same database finishes the rollout."""
    cams = world.enrol("cam-1", "cam-2", "cam-3")
    for cam in cams:
        cam.come()
        cam.report(OLD)
    world.step()
    rollout = world.start_rollout(waves=(0.4, 1.0))
    module, _, name = where.rpartition(".")
    real = getattr(importlib.import_module(module), name)
    calls = 0

    def cut(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == nth:
            raise Killed
        return real(*arguments, **keywords)

    monkeypatch.setattr(where, cut)
    answered = set()
    for seq in range(1, 40):
        try:
            world.step()
        except Killed:
            world.kill_controller()
        for cam in cams:
            wanted = cam.desired()
            running = wanted.release if wanted else OLD
            if wanted and wanted.deployment not in answered:
                answered.add(wanted.deployment)
                cam.report(NEW, Outcome.COMMITTED, wanted)
            cam.rows(seq, release=running, at_ms=world.clock.now_ms())
    assert overview.rollout(world.store, rollout).rollout.state is RolloutState.COMPLETED
    assert calls >= nth, "the cut was made"
    assert len(answered) == 3, "nobody was asked twice"
    assert len(world.assignments(rollout)) == 3


def test_second_rollout_at_the_same_time_is_refused(world):
    first = world.start_rollout()
    with pytest.raises(ConfigError, match=first):
        world.start_rollout()
    with pytest.raises(ConfigError, match="not published") as caught:
        world.start_rollout(release=ReleaseId("digits@9.9.9"))
    assert OLD in caught.value.hint
