"""Any order of events: devices that fail, sleep and lie, random fleets, and thousands of simulated answers."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from edgeml.ids import DeviceId, ReleaseId
from edgeml.telemetry import Counters
from edgeml.twin import Outcome
from fleet.advance import advance
from fleet.cohorts import members
from fleet.gate import stops, weigh
from fleet.rollout import (
    FINISHED,
    Decision,
    Facts,
    Rollout,
    RolloutState,
    Trial,
    WavePhase,
)

OLD, NEW = ReleaseId("m@1"), ReleaseId("m@2")
START_MS = 1_790_000_000_000
replace = msgspec.structs.replace


class Rolling(RuleBasedStateMachine):
    """Devices fail, sleep, lie and join; the operator interferes; the controller must keep its promises."""

    def __init__(self, new_field) -> None:
        super().__init__()
        self.new_field = new_field

    @initialize(
        count=st.integers(0, 12),
        waves=st.sampled_from([(1.0,), (0.05, 0.25, 1.0), (0.3, 0.6, 1.0)]),
        first_ever=st.booleans(),
        retries_max=st.integers(0, 2),
    )
    def begin(self, count: int, waves: tuple[float, ...], first_ever: bool, retries_max: int) -> None:
        self.field = self.new_field(count, first_ever=first_ever, waves=waves, retries_max=retries_max)
        self.slice = 0

    def names(self) -> list[DeviceId]:
        return sorted(self.field.devices)

    @rule(after_s=st.sampled_from([0.0, 1.0, 60.0, 101.0, 400.0, 2000.0, -50.0]))
    def tick(self, after_s: float) -> None:
        field, before, facts = self.field, self.field.rollout, self.field.facts
        decision = field.decide(after_s)
        self.check(before, facts, decision)

    def check(self, before: Rollout, facts: Facts, decision: Decision) -> None:
        after, plan = decision.rollout, before.plan
        assert advance(before, facts, self.field.now_ms) == decision
        if decision.assignments and self.field.now_ms > max(
            (one.assigned_at_ms or 0 for one in facts.devices), default=0
        ):
            assert advance(after, facts, self.field.now_ms).assignments == ()
        devices = {one.device: one for one in facts.devices}
        waves = members(
            [one.device for one in facts.devices if (one.suitable or one.deployment) and not one.quarantined],
            before.id,
            plan.waves,
        )
        for one in decision.assignments:
            device = devices[one.device]
            assert one.retry <= plan.retries_max
            assert not device.quarantined
            if one.revert:
                assert after.state is RolloutState.ROLLING_BACK
                assert one.release == device.incumbent != plan.release
                assert device.deployment
            else:
                assert (before.state, after.state) == (RolloutState.RUNNING, RolloutState.RUNNING)
                assert one.release == plan.release != device.current
                assert waves[one.device] <= before.wave or one.retry
                assert device.deployment is None or (one.retry and device.outcome in {None, Outcome.FAILED})
        assert len({one.device for one in decision.assignments}) == len(decision.assignments)
        convicted = stops(weigh(facts.trials), plan)
        if (after.wave, after.state) != (before.wave, before.state) and after.state in {
            RolloutState.RUNNING,
            RolloutState.COMPLETED,
        }:
            assert convicted is None or before.requested is not None
        if after.wave != before.wave:
            assert after.wave == before.wave + 1
            assert before.phase is WavePhase.GATE or before.wave not in waves.values()
        if before.state in FINISHED:
            assert (after, decision.assignments) == (replace(before, requested=None), ())
        if (
            convicted
            and before.state in {RolloutState.RUNNING, RolloutState.PAUSED}
            and before.requested is None
        ):
            assert after.state is RolloutState.ROLLING_BACK
        assert "\n" not in decision.event + after.reason

    @rule(pick=st.randoms(use_true_random=False), outcome=st.sampled_from(list(Outcome)))
    def one_answers(self, pick, outcome: Outcome) -> None:
        if asked := [one.device for one in self.field.asked() if one.online]:
            self.field.answer(outcome, only=pick.choice(sorted(asked)))

    @rule()
    def all_answer(self) -> None:
        self.field.answer(Outcome.COMMITTED)

    @rule(pick=st.randoms(use_true_random=False))
    def one_lies(self, pick) -> None:
        if self.names():
            self.field.change(
                pick.choice(self.names()), current=pick.choice([OLD, NEW, None, ReleaseId("x@9")])
            )

    @rule(pick=st.randoms(use_true_random=False), online=st.booleans())
    def one_sleeps_or_wakes(self, pick, online: bool) -> None:
        if self.names():
            self.field.change(pick.choice(self.names()), online=online)

    @rule(number=st.integers(100, 120), suitable=st.booleans(), current=st.sampled_from([OLD, NEW, None]))
    def one_joins(self, number: int, suitable: bool, current: ReleaseId | None) -> None:
        if DeviceId(f"d{number}") not in self.field.devices:
            self.field.join(f"d{number}", current, suitable=suitable)

    @rule(pick=st.randoms(use_true_random=False))
    def one_is_removed(self, pick) -> None:
        if self.names():
            gone = pick.choice(self.names())
            del self.field.devices[gone]
            self.field.removed = (*self.field.removed, gone)

    @rule(pick=st.randoms(use_true_random=False), quarantined=st.booleans())
    def one_is_put_into_quarantine_or_readmitted(self, pick, quarantined: bool) -> None:
        if self.names():
            self.field.change(pick.choice(self.names()), quarantined=quarantined)

    @rule(trials=st.integers(0, 20), wrong=st.sampled_from([(0, 0), (0, 0), (1, 1), (0, 20)]))
    def all_serve(self, trials: int, wrong: tuple[int, int]) -> None:
        self.field.serve(self.slice, trials, (min(wrong[0], trials), min(wrong[1], trials)))
        self.slice += 1

    @rule(
        state=st.sampled_from(
            [RolloutState.PAUSED, RolloutState.RUNNING, RolloutState.RUNNING, RolloutState.ABORTED]
        )
    )
    def operator_asks(self, state: RolloutState) -> None:
        self.field.rollout = replace(self.field.rollout, requested=state)

    @invariant()
    def state_can_be_stored(self) -> None:
        if hasattr(self, "field"):
            assert (
                msgspec.json.decode(msgspec.json.encode(self.field.rollout), type=Rollout)
                == self.field.rollout
            )

    def teardown(self) -> None:
        """Left alone, it ends or pauses, whatever the devices do not do."""
        if not hasattr(self, "field"):
            return
        for _ in range(150):
            if (
                self.field.rollout.state in FINISHED | {RolloutState.PAUSED}
                and self.field.rollout.requested is None
            ):
                return
            self.tick(60.0)
        raise AssertionError(f"{self.field.rollout} never ends")


def test_no_order_of_events_breaks_a_promise_and_every_rollout_ends(new_field) -> None:
    run_state_machine_as_test(
        lambda: Rolling(new_field), settings=settings(max_examples=60, stateful_step_count=30)
    )


@pytest.mark.parametrize("seed", range(30))
def test_random_fleet_ends_well_or_says_why_not(new_field, seed: int) -> None:
    """Devices that are slow, fail, sleep for hours and come back, over days of simulated time."""
    rng = np.random.default_rng(seed)
    field = new_field(int(rng.integers(3, 60)), soak_s=600.0, wait_max_s=6000.0)
    failing = {device for device in field.devices if rng.random() < rng.choice([0.0, 0.05, 0.5])}
    for slice_ in range(400):
        field.decide(120.0)
        for one in list(field.devices.values()):
            if rng.random() < 0.1:
                field.change(one.device, online=bool(rng.random() < 0.8))
            if one.deployment and one.outcome is None and rng.random() < 0.3:
                bad = one.device in failing and not one.reverting
                outcome = rng.choice([Outcome.FAILED, Outcome.ROLLED_BACK]) if bad else Outcome.COMMITTED
                field.answer(outcome, only=one.device)
        field.serve(slice_)
        if field.rollout.state in FINISHED | {RolloutState.PAUSED}:
            break
    assert field.rollout.state in FINISHED | {RolloutState.PAUSED}
    assert field.rollout.state is RolloutState.COMPLETED or field.rollout.reason


def simulated(
    new_field, seed: int, fleet: int, soak_s: float, rates: tuple[float, float]
) -> tuple[RolloutState, int, int]:
    """State, slice and wave in which a rollout through all waves ended, looked at in every slice."""
    rng = np.random.default_rng(seed)
    field = new_field(fleet, waves=(0.1, 0.4, 1.0), soak_s=soak_s)
    field.rollout = replace(field.rollout, id=f"r{seed}")
    for slice_ in range(40):
        field.decide(60.0)
        field.answer()
        for one in field.devices.values():
            candidate = one.current == NEW
            wrong = int(rng.binomial(20, rates[candidate]))
            field.trials.append(
                Trial(one.device, slice_, candidate, Counters(inferences=20, labelled=20, wrong=wrong))
            )
        if field.rollout.state is not RolloutState.RUNNING:
            return field.rollout.state, slice_, field.rollout.wave
    return field.rollout.state, 40, field.rollout.wave


def test_harmless_release_reaches_everybody_in_nearly_every_of_300_runs(new_field) -> None:
    ends = [simulated(new_field, seed, 12, 60.0, (0.1, 0.1))[0] for seed in range(300)]
    assert ends.count(RolloutState.ROLLING_BACK) <= 6
    assert ends.count(RolloutState.COMPLETED) == 300 - ends.count(RolloutState.ROLLING_BACK)


def test_release_that_is_wrong_half_of_the_time_is_stopped_in_its_first_wave_within_a_few_slices(
    new_field,
) -> None:
    ends = [simulated(new_field, seed, 53, 900.0, (0.03, 0.5)) for seed in range(20)]
    assert {state for state, _, _ in ends} == {RolloutState.ROLLING_BACK}
    assert {wave for _, _, wave in ends} == {0}
    assert max(slice_ for _, slice_, _ in ends) <= 15
