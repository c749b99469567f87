"""Row 41: devices leave, come, and change what they are while a rollout runs. Nothing waits for them, and counts add up."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.ids import DeviceId, ReleaseId
from edgeml.telemetry import Counters
from edgeml.twin import DeviceState, Outcome, Reported, Slot, Slots
from fleet import enroll, overview
from fleet.config import FleetHome
from fleet.devices import Device, Twin
from fleet.facts import gather
from fleet.overview import Part
from fleet.removals import Removal
from fleet.rollout import FINISHED, Plan, Rollout, RolloutState, WavePhase
from fleet.telemetry_store import SliceCounts

from ..fleet.conftest import PROFILE, World
from ..fleet.rollouts.conftest import Field

OLD, NEW = ReleaseId("digits@1.0.0"), ReleaseId("digits@1.1.0")


def take_away(field, name):
    """Remove a device from the facts, as the controller sees it."""
    del field.devices[DeviceId(name)]
    field.removed = (*field.removed, DeviceId(name))


# Where the rollout stands, and what one device of the wave alone holds up.


def waiting(field):
    field.decide()
    slow = field.wave(0)[0]
    for device in field.wave(0)[1:]:
        field.answer(only=device)
    field.decide()
    assert field.rollout.phase is WavePhase.WAITING
    return slow


def awake_again(field):
    """It slept while the wave decided, and woke up: the wave waits for it anew."""
    slow = field.wave(0)[0]
    field.change(slow, online=False)
    field.decide()
    field.answer()
    field.decide()
    assert field.rollout.phase is WavePhase.SOAKING
    field.change(slow, online=True)
    field.decide()
    assert field.rollout.phase is WavePhase.WAITING
    return slow


def failing(field):
    """It was asked again and again, and is about to fail for good."""
    slow = waiting(field)
    field.change(slow, outcome=Outcome.FAILED, retries=1)
    field.decide()
    assert field.rollout.phase is WavePhase.WAITING
    return slow


@pytest.mark.parametrize("standing", [waiting, awake_again, failing])
def test_a_wave_does_not_wait_for_a_device_that_is_gone(standing):
    field = Field(20, waves=(0.3, 1.0), decided_min_fraction=1.0)
    gone = standing(field)
    take_away(field, gone)
    for device in field.wave(0):
        if field.devices[device].deployment is None:
            # It moved up into the wave, in the place of the one that left.
            field.decide()
            field.answer(only=device)
    field.decide()
    assert field.rollout.phase is WavePhase.SOAKING
    for slice_ in range(60):
        field.serve(slice_)
        field.decide(60)
        field.answer()
    assert field.rollout.state is RolloutState.COMPLETED
    assert field.events[-1].endswith("completed: 19 of 19 devices run m@2, 1 were removed meanwhile")


@pytest.mark.parametrize("said", [None, Outcome.COMMITTED, Outcome.FAILED])
def test_a_rollback_does_not_wait_for_a_device_that_is_gone(said):
    field = Field(20, waves=(0.3, 1.0))
    field.decide()
    field.answer()
    gone, *others = field.wave(0)
    field.change(gone, outcome=said)
    field.request(RolloutState.ABORTED)
    for device in others:
        field.answer(only=device)
    field.decide()
    assert field.rollout.state is RolloutState.ROLLING_BACK
    take_away(field, gone)
    field.decide()
    assert field.rollout.state is RolloutState.ABORTED
    assert f"{len(others)} of {len(others)} devices are back" in field.events[-1]
    assert "1 were removed" in field.events[-1]


def test_a_failure_that_the_operator_accepted_and_that_is_gone_hides_no_other():
    field = Field(20, waves=(0.3, 1.0), failed_max_fraction=0.01)
    field.decide()
    first, second, *_ = field.wave(0)
    field.answer(Outcome.ROLLED_BACK, only=first)
    field.until(RolloutState.PAUSED)
    field.request(RolloutState.RUNNING)
    assert field.rollout.failures_accepted == 1
    take_away(field, first)
    field.decide()
    assert (field.rollout.state, field.rollout.failures_accepted) == (RolloutState.RUNNING, 0)
    field.answer(Outcome.ROLLED_BACK, only=second)
    field.decide()
    assert field.rollout.state is RolloutState.PAUSED
    assert second in field.rollout.reason


devices_of_a_fleet = st.lists(st.sampled_from([OLD, NEW, None]), min_size=1, max_size=6)


@given(devices_of_a_fleet, st.data())
def test_what_a_device_has_shown_stays_evidence_in_both_arms(running, data):
    """Trials are the same with a device and without it."""
    rollout = Rollout(id="r", plan=Plan(NEW), phase_since_ms=0, created_at_ms=0)
    fleet = [device(f"cam-{index}", release) for index, release in enumerate(running)]
    counts = [
        SliceCounts(one.device, release, slice_, Counters(inferences=slice_ + 1))
        for one in fleet
        for release in (OLD, NEW)
        for slice_ in range(data.draw(st.integers(0, 3)))
    ]
    gone = data.draw(st.sampled_from(fleet))
    removal = Removal(
        device=gone.device, at_ms=0, asked=False, outcome=None, incumbent=gone.model("digits").release
    )

    def variant_for(*_):
        return None

    before = gather(rollout, fleet, {}, counts, variant_for, removed={})
    rest = [one for one in fleet if one is not gone]
    after = gather(rollout, rest, {}, counts, variant_for, removed={gone.device: removal})
    assert after.trials == before.trials
    assert len(after.devices) + len(after.removed) == len(before.devices)


def device(name, release):
    slots = Slots(Slot(release, "a" * 64, "t", 1)) if release else Slots()
    said = Twin("digits", Reported(generation=0, state=DeviceState.IDLE, slots=slots))
    return Device(
        device=DeviceId(name), tenant="main", profile=PROFILE, online=True, session="s",
        first_seen_ms=0, last_seen_ms=0, birth=None, models=(said,),
    )  # fmt: skip


class MovingFleet:
    """A fleet in a real store, with a real controller, whose operator takes devices away and brings others."""

    def __init__(self, directory, seed):
        self.world = World(directory)
        self.home = FleetHome(directory / "fleet")
        self.random = random.Random(seed)
        self.ever = set()
        self.bring(*(f"cam-{index:02}" for index in range(12)))
        self.world.step()
        self.rollout = self.world.start_rollout(waves=(0.3, 0.6, 1.0), decided_min_fraction=1.0)
        self.seq = 0

    def bring(self, *names, profile=PROFILE):
        for cam in self.world.enrol(*names, profile=profile):
            cam.session = f"s{len(self.ever)}"
            cam.come()
            cam.report(OLD)
            self.ever.add(cam.name)

    def take_away(self, name):
        enroll.remove(self.home, self.world.store, name, self.world.clock.now_ms())
        self.world.cams.pop(name).link.cut()

    def live(self):
        """Whoever is there works, and answers what it is asked."""
        self.seq += 1
        for cam in self.world.cams.values():
            wanted = cam.desired()
            if wanted and self.random.random() < 0.5:
                cam.report(wanted.release, Outcome.COMMITTED, wanted)
            running = self.world.device(cam.name).model("digits").release or OLD
            cam.rows(self.seq, boot=cam.session, release=running, at_ms=self.world.clock.now_ms())
        self.world.step()

    def view(self):
        return overview.rollout(self.world.store, self.rollout)

    def check(self):
        """Every device that ever was in the fleet while the rollout ran has one part in it."""
        view = self.view()
        names = [one.device for one in view.devices]
        assert len(names) == len(set(names))
        assert set(names) == self.ever
        assert sum(view.parts.values()) == len(names)
        removed = {one.device for one in view.devices if one.part is Part.REMOVED}
        assert removed == self.ever - set(self.world.cams)
        return view


@pytest.fixture
def make_field(tmp_path):
    made = []

    def make(seed):
        made.append(MovingFleet(tmp_path, seed))
        return made[-1]

    yield make
    for one in made:
        one.world.store.close()


@pytest.mark.parametrize("seed", range(8))
def test_a_fleet_in_motion_is_rolled_out_to_and_every_device_is_counted_once(make_field, seed):
    field, number = make_field(seed), 100
    for step in range(200):
        field.live()
        if step < 20 and field.random.random() < 0.4 and len(field.world.cams) > 3:
            field.take_away(field.random.choice(sorted(field.world.cams)))
        if step < 20 and field.random.random() < 0.3:
            number += 1
            field.bring(f"cam-{number}")
        if field.check().rollout.state in FINISHED:
            break
    view = field.check()
    assert view.rollout.state is RolloutState.COMPLETED, view.rollout.reason
    assert view.parts[Part.REMOVED.value] > 0
    assert view.parts[Part.DONE.value] == len(field.world.cams)
    assert "were removed meanwhile" in view.events[-1].line
    gone = [one.line for one in view.events if "which was removed" in one.line]
    assert len(gone) == view.parts[Part.REMOVED.value]


def test_each_is_remembered_as_far_as_it_had_come(make_field):
    field = make_field(0)
    field.world.step(times=3)
    asked = [cam for cam in field.world.cams.values() if cam.desired()]
    done, silent, *_ = asked
    untouched = next(cam for cam in field.world.cams.values() if cam not in asked)
    done.report(NEW, Outcome.COMMITTED, done.desired())
    field.world.step()
    for cam in (done, silent, untouched):
        field.take_away(cam.name)
    view = field.check()
    removed = {one.device: one.outcome for one in view.devices if one.part is Part.REMOVED}
    assert removed == {done.name: Outcome.COMMITTED, silent.name: None, untouched.name: None}
    lines = [one.line for one in view.events]
    for cam, how_far in (
        (done, "after it had ended as committed"),
        (silent, "before it had decided"),
        (untouched, "before it was asked"),
    ):
        assert f"goes on without {cam.name}, which was removed {how_far}" in lines


def test_who_comes_back_as_something_else_is_a_new_device_and_holds_nothing_up(make_field):
    """There are no labels: what a device is to a rollout is its profile, and another profile is another device."""
    field = make_field(1)
    field.world.step(times=3)
    changed = next(cam.name for cam in field.world.cams.values() if cam.desired())
    field.take_away(changed)
    field.bring(changed, profile="stm32h7")
    for _ in range(150):
        field.live()
        if field.check().rollout.state in FINISHED:
            break
    view = field.view()
    assert view.rollout.state is RolloutState.COMPLETED, view.rollout.reason
    parts = {one.device: one.part for one in view.devices}
    assert parts.pop(changed) is Part.NOT_ASKED
    assert set(parts.values()) == {Part.DONE}
