"""Row 39: a device says that all is well while it runs something else. Mosquitto, a real controller, simulated devices beside it.

What it can be caught at is what it says itself: the digest in its report is held against the one it was asked for. A
device that lies about that, too, can only be caught by its telemetry, and alone it convicts and acquits nobody.
"""

import msgspec
import pytest

from edgeml.ids import DeviceId
from edgeml.topics import Leaf
from edgeml.twin import Outcome, Presence
from fleet import advance, campaigns, rollout_store
from fleet.overview import Part
from fleet.rollout import RolloutState
from fleet.twins import NOT_BELIEVED

from .crowd import GOOD_SEED, Crowd, fleet_of
from .impostor import Impostor, made_up_digest, slot_of

pytestmark = [pytest.mark.processes, pytest.mark.broker]
HONEST = [f"cam-{index}" for index in range(4)]
LIAR = "cam-liar"
OLD = "sample@1.0.0"


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    monkeypatch.setattr(advance, "FAILED_RETRY_S", 0.5)
    with fleet_of(tmp_path, [*HONEST, LIAR]) as made:
        yield made


@pytest.fixture
def crowd(fleet, monkeypatch):
    made = Crowd(fleet, HONEST, monkeypatch)
    yield made
    made.close()


@pytest.fixture
def liar(fleet, crowd):
    """One that was honest until now, in a fleet that all runs 1.0.0; `lies` are what it says from now on."""
    made = Impostor(fleet, LIAR)
    fleet.peers.append(made)
    crowd.settle()
    return made


def with_a_made_up_digest(liar, wish):
    slot = slot_of(wish)
    liar.report(wish, Outcome.COMMITTED, msgspec.structs.replace(slot, digest=made_up_digest("mine")))


def with_what_it_had(liar, wish):
    liar.report(wish, Outcome.COMMITTED, liar.slot)


def with_the_old_bytes_under_the_new_name(liar, wish):
    slot = slot_of(wish)
    liar.report(wish, Outcome.COMMITTED, msgspec.structs.replace(slot, digest=liar.slot.digest))


def with_nothing(liar, wish):
    liar.report(wish, Outcome.ALREADY_INSTALLED, None)


LIES = [with_a_made_up_digest, with_what_it_had, with_the_old_bytes_under_the_new_name, with_nothing]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_success_with_another_digest_is_a_failure_and_stops_the_wave(fleet, crowd, liar, lie):
    liar.answer = lie
    rollout = fleet.begin(fleet.publish("1.1.0", GOOD_SEED), soak_s=3600.0, retries_max=1)
    fleet.until(lambda: fleet.part(rollout, LIAR).part is Part.FAILED, "the lie to be noticed", crowd.runs)
    assert fleet.part(rollout, LIAR).reason == NOT_BELIEVED
    # It is asked again, as whoever failed is, and may mend its ways; this one does not.
    fleet.until(lambda: fleet.state(rollout) is not RolloutState.RUNNING, "the second lie", crowd.runs)
    flagged = fleet.part(rollout, LIAR)
    assert (flagged.part, flagged.outcome, flagged.reason) == (Part.FAILED, Outcome.FAILED, NOT_BELIEVED)
    assert len(liar.wishes) == 3
    assert fleet.state(rollout) is RolloutState.PAUSED
    assert f"devices failed: {LIAR}" in fleet.seen(rollout).rollout.reason
    # The others are not to blame, and go on with what they were asked.
    fleet.until(lambda: set(crowd.runs().values()) == {"sample@1.1.0"}, "the honest ones")


def test_one_that_has_the_release_and_then_says_it_runs_another_has_failed(fleet, crowd, liar):
    had = liar.slot
    rollout = fleet.begin(fleet.publish("1.1.0", GOOD_SEED), soak_s=3600.0)
    fleet.until(lambda: fleet.part(rollout, LIAR).part is Part.DONE, "the first word", crowd.runs)
    fleet.until(lambda: "soaks" in fleet.seen(rollout).rollout.reason, "the wave to soak", crowd.runs)
    liar.report(liar.wishes[-1], Outcome.COMMITTED, had)
    fleet.until(lambda: fleet.state(rollout) is not RolloutState.RUNNING, "the second word", crowd.runs)
    assert fleet.state(rollout) is RolloutState.PAUSED
    assert f"1 of 5 devices failed: {LIAR}" in fleet.seen(rollout).rollout.reason
    assert fleet.part(rollout, LIAR).release == OLD


def test_a_lie_on_the_way_back_is_flagged_and_the_others_are_back(fleet, crowd, liar):
    """It stays with the new content, and says that it went back.

    Asked again it would be believed: the way back names the content that a device says it has.
    """
    kept = liar.slot
    rollout = fleet.begin(fleet.publish("1.1.0", GOOD_SEED), soak_s=3600.0, retries_max=0)
    fleet.until(lambda: "soaks" in fleet.seen(rollout).rollout.reason, "the wave to soak", crowd.runs)
    new = liar.slot
    assert new.digest != kept.digest

    def stays(_liar, wish):
        liar.report(wish, Outcome.REVERTED, msgspec.structs.replace(slot_of(wish), digest=new.digest))

    liar.answer = stays
    campaigns.request(fleet.store, rollout, RolloutState.ABORTED)
    fleet.until(lambda: fleet.state(rollout) is RolloutState.ABORTED, "the way back", crowd.runs)
    assert set(crowd.runs().values()) == {OLD}
    flagged = fleet.part(rollout, LIAR)
    assert (flagged.part, flagged.reason) == (Part.FAILED, NOT_BELIEVED)
    told = fleet.seen(rollout).events[-1].line
    assert "4 of 5 devices are back on their incumbent" in told
    assert f"not back: {LIAR}" in told


def test_a_word_in_anothers_name_is_not_heard(fleet, crowd, liar):
    """It knows its neighbour's deployment, which it cannot have read, and says on both topics that it is done or has failed."""
    victim = DeviceId(HONEST[0])
    liar.answer = lambda *_: None
    asked = []

    def meddle():
        crowd.runs()
        if asked or not (found := assignments(fleet, rollout)):
            return
        wish = msgspec.structs.replace(
            liar.wishes[-1], deployment=found[victim].deployment, generation=found[victim].generation
        )
        asked.append(wish)
        for device in (victim, liar.name):
            liar.report(wish, Outcome.STRANDED, None, device=device)
        liar.say(Leaf.STATE, Presence(online=False, session="s"), device=victim).wait_for_publish(10)

    rollout = fleet.begin(fleet.publish("1.1.0", GOOD_SEED), soak_s=3600.0, decided_min_fraction=0.7)
    fleet.until(lambda: "soaks" in fleet.seen(rollout).rollout.reason, "the wave to soak", meddle)
    assert asked
    assert {fleet.part(rollout, name).part for name in HONEST} == {Part.DONE}
    assert fleet.part(rollout, victim).outcome is Outcome.COMMITTED
    assert fleet.view(victim).online
    assert fleet.part(rollout, LIAR).part is Part.ASKED, "a deployment of another says nothing of its own"


def assignments(fleet, rollout):
    with fleet.store.read() as connection:
        return rollout_store.load_assignments(connection, rollout)
