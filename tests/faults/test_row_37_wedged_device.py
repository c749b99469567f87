"""Row 37: a device takes its wish and is never heard of it again. Mosquitto, a real controller, simulated devices beside it.

There is no outcome for it: it stays asked, is asked again a few times and no more, and a wave either has enough devices
without it or is paused in the time that the plan names.
"""

import pytest

from edgeml.ids import DeviceId
from edgeml.twin import DeviceState
from fleet import campaigns, enroll
from fleet.overview import Part
from fleet.rollout import RolloutState

from .crowd import GOOD_SEED, Crowd, fleet_of
from .impostor import Impostor, truly

pytestmark = [pytest.mark.processes, pytest.mark.broker]
HONEST = [f"cam-{index}" for index in range(4)]
SILENT, STUCK = "cam-silent", "cam-stuck"
WAIT_MAX_S, RETRIES = 6.0, 2


def says_nothing(_impostor, _wish):
    pass


def fetches_for_ever(impostor, wish):
    impostor.report(wish, None, impostor.slot, DeviceState.FETCHING)


@pytest.fixture
def fleet(tmp_path):
    with fleet_of(tmp_path, [*HONEST, SILENT, STUCK]) as made:
        yield made


@pytest.fixture
def crowd(fleet, monkeypatch):
    made = Crowd(fleet, HONEST, monkeypatch)
    yield made
    made.close()


@pytest.fixture
def wedged(fleet, crowd):
    """A silent and a stuck device, that did well so far, in a fleet that all runs 1.0.0."""
    both = Impostor(fleet, SILENT), Impostor(fleet, STUCK)
    fleet.peers += both
    crowd.settle()
    both[0].answer, both[1].answer = says_nothing, fetches_for_ever
    return both


def parts(fleet, rollout):
    return {one.device: one.part for one in fleet.seen(rollout).devices}


def test_a_wave_that_has_enough_without_them_goes_on(fleet, crowd, wedged):
    release = fleet.publish("1.1.0", GOOD_SEED)
    rollout = fleet.begin(release, soak_s=0.5, wait_max_s=3600.0, decided_min_fraction=0.6)
    fleet.until(lambda: fleet.state(rollout) is RolloutState.COMPLETED, "the rollout", crowd.runs)
    assert set(crowd.runs().values()) == {release}
    assert parts(fleet, rollout) == dict.fromkeys(HONEST, Part.DONE) | dict.fromkeys(
        [SILENT, STUCK], Part.ASKED
    )
    assert [len(one.wishes) for one in wedged] == [2, 2], "they were asked; that is not what failed"
    told = fleet.seen(rollout).events[-1].line
    assert "4 of 6 devices run sample@1.1.0" in told
    assert f"2 have not decided: {SILENT}, {STUCK}" in told
    # Whoever finds its voice later is still heard.
    truly(wedged[0], wedged[0].wishes[-1])
    fleet.until(lambda: parts(fleet, rollout)[SILENT] is Part.DONE, "the late word")


def test_a_wave_that_has_not_is_paused_in_time_and_names_them_and_an_operator_ends_it(fleet, crowd, wedged):
    silent, _ = wedged
    release = fleet.publish("1.1.0", GOOD_SEED)
    rollout = fleet.begin(release, soak_s=0.5, wait_max_s=WAIT_MAX_S, retries_max=RETRIES)
    fleet.until(
        lambda: fleet.state(rollout) is not RolloutState.RUNNING, "the wave to have waited", crowd.runs
    )
    assert fleet.state(rollout) is RolloutState.PAUSED
    assert set(crowd.runs().values()) == {release}, "the others did not wait for them"
    events = fleet.seen(rollout).events
    waited_s = (events[-1].at_ms - events[0].at_ms) / 1000
    assert WAIT_MAX_S <= waited_s <= 3 * WAIT_MAX_S
    reason = fleet.seen(rollout).rollout.reason
    assert "only 4 of 6 reachable devices of wave 1 have decided" in reason
    assert f"not decided: {SILENT}, {STUCK}" in reason
    assert [len(one.wishes) for one in wedged] == [2 + RETRIES] * 2, "asked again, and no more than that"
    assert {fleet.part(rollout, name).retry for name in (SILENT, STUCK)} == {RETRIES}
    # One is repaired and answers its newest wish, the other is given up.
    truly(silent, silent.wishes[-1])
    enroll.remove(fleet.home, fleet.store, DeviceId(STUCK), fleet.clock.now_ms())
    fleet.until(lambda: parts(fleet, rollout)[SILENT] is Part.DONE, "the repaired one")
    campaigns.request(fleet.store, rollout, RolloutState.RUNNING)
    fleet.until(lambda: fleet.state(rollout) is RolloutState.COMPLETED, "the rollout")
    assert parts(fleet, rollout) == dict.fromkeys([*HONEST, SILENT], Part.DONE) | {STUCK: Part.REMOVED}
