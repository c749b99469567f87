"""Controller and ten devices: what the fleet as a whole must do, whatever happens to its parts."""

import pytest
import sqlalchemy as sa

from edgeml.drift import Verdict
from edgeml.testing import Weather
from edgeml.twin import FullDownload
from fleet import campaigns, overview, schema
from fleet.rollout import RolloutState


def stored_inferences(world):
    with world.store.read() as connection:
        return connection.execute(sa.select(sa.func.sum(schema.windows.c.inferences))).scalar() or 0


def settle(world, seconds=60):
    for _ in range(seconds):
        world.step()


def test_a_release_reaches_everybody_and_a_worse_one_is_stopped_at_the_first_wave(make_world):
    world = make_world()
    first = world.publish("1.0.0")
    assert (
        world.run_until_finished(world.start_rollout(first, waves=(1.0,))).rollout.state
        is RolloutState.COMPLETED
    )
    assert set(world.current()) == {first}
    second = world.publish("1.1.0")
    assert world.run_until_finished(world.start_rollout(second)).rollout.state is RolloutState.COMPLETED
    assert set(world.current()) == {second}
    bad = world.publish("1.2.0", seed=7)
    # The first wave may be two devices of ten: their evidence needs time.
    view = world.run_until_finished(world.start_rollout(bad, soak_s=200.0))
    assert view.rollout.state is RolloutState.ROLLED_BACK
    assert "wrong" in view.rollout.reason
    assert set(world.current()) == {second}
    touched = [device for device in view.devices if device.part is not overview.Part.NOT_ASKED]
    assert view.rollout.wave == 0
    assert 0 < len(touched) < 10
    assert any(event.evidence for event in view.events), "the decision stores its evidence"
    assert world.broker.refused == []


def test_a_rollout_without_full_downloads_reaches_devices_that_a_delta_fits_and_no_others(make_world):
    world = make_world(devices_count=2)
    first = world.publish("1.0.0")
    policy = {"waves": (1.0,), "full_download": FullDownload.NEVER}
    refused = world.start_rollout(first, **policy)
    settle(world, 20)
    view = overview.rollout(world.store, refused)
    assert view.rollout.state is RolloutState.PAUSED
    assert all("in full, which this deployment forbids" in device.reason for device in view.devices)
    assert set(world.current()) == {None}
    campaigns.request(world.store, refused, RolloutState.ABORTED)
    settle(world, 20)
    view = world.run_until_finished(world.start_rollout(first, waves=(1.0,)))
    assert view.rollout.state is RolloutState.COMPLETED
    before = overview.fetched_bytes(world.store)
    second = world.publish("1.1.0")
    view = world.run_until_finished(world.start_rollout(second, **policy))
    assert view.rollout.state is RolloutState.COMPLETED
    assert set(world.current()) == {second}
    [delta] = next(one for one in world.repository.releases() if one.facts.release == second).facts.deltas
    assert overview.fetched_bytes(world.store) - before == delta.length_bytes


@pytest.mark.parametrize(
    "weather",
    [Weather(duplicated=0.3, reordered=0.3, seed=1), Weather(duplicated=1.0, reordered=1.0, seed=2)],
    ids=["bad", "awful"],
)
def test_duplicates_and_reordering_change_nothing(make_world, weather):
    world = make_world(weather=weather)
    release = world.publish("1.0.0")
    assert (
        world.run_until_finished(world.start_rollout(release, waves=(0.3, 1.0))).rollout.state
        is RolloutState.COMPLETED
    )
    assert set(world.current()) == {release}
    settle(world)
    assert stored_inferences(world) == sum(agent.counted for agent in world.agents.values())


def test_a_broker_that_comes_back_empty_again_and_again_only_delays(make_world):
    world = make_world()

    def forget(second):
        if second % 7 == 3:
            world.broker.restart_empty()
            for agent in world.agents.values():
                agent.transport.heal()
            world.controller_link.heal()

    release = world.publish("1.0.0")
    view = world.run_until_finished(world.start_rollout(release), forget)
    assert view.rollout.state is RolloutState.COMPLETED
    assert set(world.current()) == {release}


def test_a_controller_killed_every_other_second_still_finishes_and_never_assigns_twice(make_world):
    world = make_world()

    def kill(second):
        if second % 2:
            world.restart_controller()

    first = world.publish("1.0.0")
    world.run_until_finished(world.start_rollout(first, waves=(1.0,)), kill)
    bad = world.publish("1.2.0", seed=7)
    view = world.run_until_finished(world.start_rollout(bad), kill)
    assert view.rollout.state is RolloutState.ROLLED_BACK
    assert set(world.current()) == {first}
    generations = [
        agent.device.entry(model).generation
        for agent in world.agents.values()
        for model in agent.device.models
    ]
    assert max(generations) <= 3


def test_devices_killed_at_random_still_converge_and_lose_no_row_that_was_kept(make_world):
    world = make_world()

    def kill(second):
        if second % 3 == 0:
            world.agents[world.names[second % len(world.names)]].restart()

    first = world.publish("1.0.0")
    world.run_until_finished(world.start_rollout(first, waves=(1.0,)), kill)
    second = world.publish("1.1.0")
    view = world.run_until_finished(world.start_rollout(second), kill)
    assert view.rollout.state is RolloutState.COMPLETED
    assert set(world.current()) == {second}
    settle(world)
    assert stored_inferences(world) == sum(agent.counted for agent in world.agents.values())


def test_a_device_that_was_away_converges_when_it_comes_back(make_world):
    world = make_world()
    first = world.publish("1.0.0")
    world.run_until_finished(world.start_rollout(first, waves=(1.0,)))
    sleeper = world.agents[world.names[4]]
    sleeper.transport.cut()
    second = world.publish("1.1.0")
    view = world.run_until_finished(world.start_rollout(second, waves=(1.0,), wait_max_s=60.0))
    assert view.rollout.state is RolloutState.COMPLETED
    assert world.current() == {
        second: [name for name in world.names if name != sleeper.name],
        first: [sleeper.name],
    }
    sleeper.transport.heal()
    settle(world)
    assert set(world.current()) == {second}
    assert stored_inferences(world) == sum(agent.counted for agent in world.agents.values())


def test_exactly_the_devices_that_see_something_else_are_flagged(make_world):
    world = make_world()
    first = world.publish("1.0.0")
    world.run_until_finished(world.start_rollout(first, waves=(1.0,)))
    settle(world, 120)
    assert {row.verdict for row in overview.drift(world.store, world.clock.now_ms())} == {Verdict.OK}
    world.shifted = {world.names[2], world.names[7]}
    settle(world, 120)
    rows = overview.drift(world.store, world.clock.now_ms())
    assert {row.device for row in rows if row.verdict in {Verdict.WARN, Verdict.PAGE}} == world.shifted
