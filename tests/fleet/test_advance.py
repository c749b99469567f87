"""How a rollout moves: tables of situations, and a state machine of devices that fail, sleep and lie."""

from __future__ import annotations

import functools
import math

import msgspec
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgeml.ids import DeploymentId, DeviceId, ReleaseId
from edgeml.telemetry import Counters
from edgeml.twin import Outcome
from fleet.advance import DECIDED_SAMPLE, advance
from fleet.cohorts import members
from fleet.gate import stops, weigh
from fleet.rollout import (
    FINISHED,
    Decision,
    DeviceFacts,
    Facts,
    Plan,
    Rollout,
    RolloutState,
    Trial,
    WavePhase,
)

OLD, NEW = ReleaseId("m@1"), ReleaseId("m@2")
START_MS = 1_790_000_000_000
replace = msgspec.structs.replace


class Field:
    """A fleet and its controller, without either: applies decisions and lets devices answer."""

    def __init__(self, count: int, *, first_ever: bool = False, **plan) -> None:
        self.plan = Plan(NEW, **({"soak_s": 100.0, "wait_max_s": 1000.0, "trials_min": 10} | plan))
        self.rollout = Rollout(id="r1", plan=self.plan, phase_since_ms=START_MS, created_at_ms=START_MS)
        self.now_ms = START_MS
        self.devices: dict[DeviceId, DeviceFacts] = {}
        self.trials: list[Trial] = []
        self.events: list[str] = []
        for i in range(count):
            self.join(f"d{i}", None if first_ever else OLD)

    def join(self, name: str, current: ReleaseId | None = OLD, **facts) -> None:
        device = DeviceId(name)
        self.devices[device] = DeviceFacts(
            **(
                {"device": device, "online": True, "suitable": True, "current": current, "incumbent": current}
                | facts
            )
        )

    def change(self, name: str, **facts) -> None:
        self.devices[DeviceId(name)] = replace(self.devices[DeviceId(name)], **facts)

    @property
    def facts(self) -> Facts:
        return Facts(tuple(self.devices.values()), tuple(self.trials))

    def decide(self, after_s: float = 1.0) -> Decision:
        """Let time pass, decide, and carry it out."""
        self.now_ms += round(after_s * 1000)
        decision = advance(self.rollout, self.facts, self.now_ms)
        self.rollout = decision.rollout
        if decision.event:
            self.events.append(decision.event)
        for one in decision.assignments:
            self.change(
                one.device,
                deployment=DeploymentId(f"{one.device}:{one.revert}:{one.retry}"),
                assigned_at_ms=self.now_ms,
                outcome=None,
                retries=one.retry,
                reverting=one.revert,
            )
        return decision

    def asked(self) -> list[DeviceFacts]:
        return [one for one in self.devices.values() if one.deployment and one.outcome is None]

    def answer(self, outcome: Outcome = Outcome.COMMITTED, only: str | None = None) -> None:
        """Let the devices that were asked decide."""
        for one in self.asked():
            if one.online and only in {None, one.device}:
                good = outcome in {Outcome.COMMITTED, Outcome.REVERTED, Outcome.ALREADY_INSTALLED}
                wanted = one.incumbent if one.reverting else NEW
                self.change(one.device, outcome=outcome, current=wanted if good else one.current)

    def serve(self, slice_: int, trials: int = 10, wrong: tuple[int, int] = (0, 0)) -> None:
        """Let every online device answer requests; `wrong` of them per arm (incumbent, candidate)."""
        for one in self.devices.values():
            if one.online and one.current is not None:
                candidate = one.current == NEW
                counters = Counters(inferences=trials, labelled=trials, wrong=wrong[candidate])
                self.trials.append(Trial(one.device, slice_, candidate, counters))

    def wave(self, number: int) -> list[DeviceId]:
        suitable = [one.device for one in self.devices.values() if one.suitable or one.deployment]
        return [device for device, wave in members(suitable, "r1", self.plan.waves).items() if wave == number]

    def until(self, *states: RolloutState, ticks: int = 300, after_s: float = 20.0) -> None:
        for _ in range(ticks):
            if self.rollout.state in states:
                return
            self.decide(after_s)
        raise AssertionError(f"still {self.rollout.state} {self.rollout.phase}: {self.rollout.reason}")

    def request(self, state: RolloutState) -> Decision:
        self.rollout = replace(self.rollout, requested=state)
        return self.decide()


def field_in_gate(count: int = 20, **plan) -> Field:
    """A field whose first wave has decided and soaked, without inferences."""
    field = Field(count, **plan)
    field.decide()
    field.answer()
    for _ in range(3):
        field.decide(101)
    assert field.rollout.phase is WavePhase.GATE
    return field


# The way of a rollout without trouble


def test_wave_is_asked_waited_for_soaked_and_judged_before_the_next_one() -> None:
    field = Field(40)
    decision = field.decide()
    assert {one.device for one in decision.assignments} == set(field.wave(0))
    assert all(one.release == NEW and not one.revert and one.retry == 0 for one in decision.assignments)
    assert field.rollout.phase is WavePhase.WAITING
    assert field.decide().assignments == ()
    assert field.rollout.phase is WavePhase.WAITING
    assert f"0 of {len(field.wave(0))} reachable" in field.rollout.reason
    field.answer()
    field.decide()
    assert field.rollout.phase is WavePhase.SOAKING
    field.decide(99)
    assert field.rollout.phase is WavePhase.SOAKING
    field.decide(2)
    assert field.rollout.phase is WavePhase.GATE
    field.serve(0)
    decision = field.decide()
    assert (field.rollout.wave, field.rollout.phase) == (1, WavePhase.ISSUING)
    assert decision.evidence
    assert {one.device for one in field.decide().assignments} == set(field.wave(1))


def test_whole_rollout_completes_and_asks_everybody_once() -> None:
    field = Field(40)
    asked: list[DeviceId] = []
    for slice_ in range(40):
        asked += [one.device for one in field.decide(60).assignments]
        field.answer()
        field.serve(slice_)
    assert field.rollout.state is RolloutState.COMPLETED
    assert sorted(asked) == sorted(field.devices)
    assert "40 of 40 devices run m@2" in field.events[-1]


def test_first_release_ever_advances_on_its_own_inferences() -> None:
    field = Field(10, first_ever=True)
    for slice_ in range(40):
        field.decide(60)
        field.answer()
        field.serve(slice_)
    assert field.rollout.state is RolloutState.COMPLETED


def test_waves_without_devices_are_passed_over() -> None:
    field = Field(2, waves=(0.2, 0.4, 0.6, 1.0))
    for slice_ in range(20):
        field.decide(60)
        field.answer()
        field.serve(slice_)
    assert field.rollout.state is RolloutState.COMPLETED
    assert "wave 2 of 4 has no devices" in field.events


def test_fleet_without_a_suitable_device_is_held() -> None:
    field = Field(0)
    field.join("old", suitable=False)
    field.decide()
    assert field.rollout.state is RolloutState.PAUSED
    assert "no device of the fleet has a variant" in field.rollout.reason


def test_unsuitable_devices_are_left_out_and_named() -> None:
    field = Field(5)
    field.join("odd-one", suitable=False)
    assert "odd-one" in field.decide().event
    for slice_ in range(40):
        field.answer()
        field.serve(slice_)
        assert "odd-one" not in {one.device for one in field.decide(60).assignments}
    assert field.rollout.state is RolloutState.COMPLETED


def test_device_that_has_the_release_counts_as_done_without_being_asked() -> None:
    field = Field(0)
    for i in range(4):
        field.join(f"d{i}", NEW)
    assert field.decide().assignments == ()
    field.decide()
    assert field.rollout.phase is WavePhase.SOAKING


# Waiting and missing evidence


def test_gate_holds_without_enough_inferences_and_pauses_after_the_deadline() -> None:
    field = field_in_gate()
    field.decide()
    assert field.rollout.phase is WavePhase.GATE
    assert "0 of 10 inferences" in field.rollout.reason
    field.until(RolloutState.PAUSED)
    assert "evidence is missing" in field.rollout.reason
    assert field.rollout.wave == 0


def test_inferences_of_earlier_waves_do_not_count_for_a_later_one() -> None:
    field = field_in_gate()
    field.serve(0, 50)
    field.decide()
    field.decide()
    field.answer()
    for _ in range(4):
        field.decide(101)
    assert (field.rollout.wave, field.rollout.phase) == (1, WavePhase.GATE)
    assert "0 of 10" in field.rollout.reason


def test_gate_holds_without_anything_to_compare_with() -> None:
    field = field_in_gate()
    for device in field.wave(0):
        field.trials.append(Trial(device, 0, candidate=True, counters=Counters(inferences=50)))
    field.decide()
    assert field.rollout.phase is WavePhase.GATE
    assert "incumbent to compare with" in field.rollout.reason


def test_operator_may_do_without_comparison() -> None:
    field = field_in_gate(incumbent_trials_min=0)
    for device in field.wave(0):
        field.trials.append(Trial(device, 0, candidate=True, counters=Counters(inferences=50)))
    field.decide()
    assert field.rollout.wave == 1


def test_silent_wave_is_paused_after_the_deadline() -> None:
    field = Field(20)
    field.until(RolloutState.PAUSED)
    assert "have decided" in field.rollout.reason


def test_offline_devices_are_asked_and_neither_pass_nor_fail_a_wave() -> None:
    field = Field(40, waves=(0.5, 1.0))
    asleep = field.wave(0)[:3]
    for device in asleep:
        field.change(device, online=False)
    decision = field.decide()
    assert set(asleep) <= {one.device for one in decision.assignments}
    assert "3 are offline" in decision.event
    field.answer()
    field.decide()
    assert field.rollout.phase is WavePhase.SOAKING


def test_wave_of_sleepers_only_holds_for_want_of_evidence() -> None:
    field = Field(10)
    for device in field.devices:
        field.change(device, online=False)
    field.until(RolloutState.PAUSED)
    assert field.rollout.wave == 0
    assert "evidence is missing" in field.rollout.reason


def test_devices_that_wake_up_while_soaking_are_waited_for() -> None:
    field = Field(20, waves=(0.5, 1.0))
    for device in field.wave(0)[1:]:
        field.change(device, online=False)
    field.decide()
    field.answer()
    field.decide()
    assert field.rollout.phase is WavePhase.SOAKING
    for device in field.wave(0):
        field.change(device, online=True)
    field.decide()
    assert field.rollout.phase is WavePhase.WAITING


# Failures and retries


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.ROLLED_BACK, Outcome.STRANDED])
def test_failures_above_the_limit_pause_and_are_not_asked_again(outcome: Outcome) -> None:
    field = Field(20)
    field.decide()
    bad = field.wave(0)[0]
    field.answer(outcome, only=bad)
    decision = field.decide()
    assert field.rollout.state is RolloutState.PAUSED
    assert bad in field.rollout.reason
    assert decision.assignments == ()
    assert field.decide(5000).assignments == ()


def test_few_failures_among_many_devices_do_not_pause() -> None:
    field = Field(400, waves=(0.25, 1.0))
    field.decide()
    wave = field.wave(0)
    assert len(wave) > 2 * DECIDED_SAMPLE
    for device in wave[:2]:  # the first two to decide
        field.answer(Outcome.ROLLED_BACK, only=device)
    field.decide()
    assert field.rollout.state is RolloutState.RUNNING
    field.answer(Outcome.ROLLED_BACK, only=wave[2])
    field.decide()
    assert field.rollout.state is RolloutState.PAUSED


def test_failed_device_is_asked_again_later_and_later_and_then_no_more() -> None:
    field = Field(2, wait_max_s=100_000.0)
    field.decide()
    field.answer(only="d0")
    asked = []
    for _ in range(200):
        field.answer(Outcome.FAILED)
        asked += [(field.now_ms - START_MS) // 1000 for _ in field.decide(60).assignments]
        if field.rollout.state is RolloutState.PAUSED:
            break
    gaps = np.diff([1, *asked])
    assert len(asked) == 3
    assert [round(gap / 60) for gap in gaps] == [5, 10, 20]
    assert field.rollout.state is RolloutState.PAUSED


def test_silent_device_is_asked_again_at_even_intervals() -> None:
    field = Field(2, wait_max_s=4000.0)
    field.decide()
    field.answer(only="d0")
    asked = [(one.device, one.retry) for _ in range(38) for one in field.decide(100).assignments]
    assert asked == [("d1", 1), ("d1", 2), ("d1", 3)]


def test_device_that_tries_the_release_is_not_asked_again() -> None:
    field = Field(2, wait_max_s=4000.0)
    field.decide()
    for device in field.devices:
        field.change(device, current=NEW)  # in trial: it runs it and has not decided
    assert [field.decide(100).assignments for _ in range(38)] == [()] * 38


def test_device_that_says_it_is_done_and_runs_something_else_has_failed() -> None:
    field = Field(20)
    field.decide()
    field.change(field.wave(0)[0], outcome=Outcome.COMMITTED, current=OLD)
    field.decide()
    assert field.rollout.state is RolloutState.PAUSED


def test_device_that_somebody_else_took_over_does_not_count() -> None:
    field = Field(20)
    field.decide()
    first, second = field.wave(0)
    field.change(first, outcome=Outcome.SUPERSEDED)
    field.answer(only=second)
    field.decide()
    assert field.rollout.phase is WavePhase.SOAKING


# Late joiners


def test_device_that_joins_a_wave_that_has_begun_is_asked_at_once_and_others_wait() -> None:
    field = field_in_gate(40)
    for i in range(100, 200):
        field.join(f"d{i}")
    early = {one.device for one in field.decide().assignments}
    assert early == {device for device in field.wave(0) if int(device[1:]) >= 100}
    assert early


def test_canary_that_is_pushed_out_of_the_first_wave_stays_asked() -> None:
    field = Field(3, waves=(0.001, 1.0))
    field.decide()
    before = set(field.wave(0))
    for i in range(10, 60):
        field.join(f"d{i}")
    pushed = before - set(field.wave(0))
    assert pushed
    assert pushed.isdisjoint(one.device for one in field.decide().assignments)


# Evidence


def bad_field(count: int = 53, waves: tuple[float, ...] = (0.1, 1.0)) -> Field:
    field = Field(count, waves=waves, soak_s=1e5, wait_max_s=1e6)
    field.decide()
    field.answer()
    field.decide()
    return field


def test_release_that_is_worse_is_taken_back_with_the_reason() -> None:
    field = bad_field()
    wave = field.wave(0)
    for slice_ in range(12):
        field.serve(slice_, 20, wrong=(1, 10))
        decision = field.decide()
        if field.rollout.state is RolloutState.ROLLING_BACK:
            break
    assert field.rollout.state is RolloutState.ROLLING_BACK
    assert slice_ <= 6
    assert "wrong 50.0%" in field.rollout.reason
    assert "against 5.0%" in field.rollout.reason
    assert {(one.device, one.release, one.revert) for one in decision.assignments} == {
        (one, OLD, True) for one in wave
    }
    assert any(one.log_e > math.log(400) for one in decision.evidence)


@pytest.mark.parametrize("phase", list(WavePhase))
def test_evidence_stops_in_every_phase_also_when_paused(phase: WavePhase) -> None:
    for state in (RolloutState.RUNNING, RolloutState.PAUSED):
        field = bad_field()
        for slice_ in range(12):
            field.serve(slice_, 20, wrong=(1, 10))
        field.rollout = replace(field.rollout, phase=phase, state=state)
        field.decide()
        assert field.rollout.state is RolloutState.ROLLING_BACK


def test_every_touched_device_goes_back_whatever_it_said_last() -> None:
    field = bad_field(waves=(0.2, 1.0))
    wave = field.wave(0)
    assert len(wave) >= 7
    said = [Outcome.REJECTED, Outcome.FAILED, Outcome.ROLLED_BACK, Outcome.SUPERSEDED, None]
    for device, outcome in zip(wave, said, strict=False):
        field.change(device, outcome=outcome, current=OLD)
    field.change(wave[5], online=False)
    decision = field.request(RolloutState.ABORTED)
    assert {one.device for one in decision.assignments} == set(wave)


def rolling_back(count: int = 53) -> Field:
    field = bad_field(count)
    field.rollout = replace(field.rollout, plan=replace(field.plan, wait_max_s=4000.0))
    for slice_ in range(12):
        field.serve(slice_, 20, wrong=(1, 10))
    field.decide()
    assert field.rollout.state is RolloutState.ROLLING_BACK
    return field


def test_rollback_ends_when_every_device_is_back() -> None:
    field = rolling_back()
    wave = field.wave(0)
    field.decide()
    assert field.rollout.state is RolloutState.ROLLING_BACK
    field.answer(Outcome.REVERTED)
    field.decide()
    assert field.rollout.state is RolloutState.ROLLED_BACK
    assert f"{len(wave)} of {len(wave)} devices are back" in field.events[-1]


def test_rollback_does_not_wait_for_offline_devices_and_counts_them() -> None:
    field = rolling_back()
    field.change(field.wave(0)[0], online=False)
    field.answer(Outcome.REVERTED)
    field.decide()
    assert field.rollout.state is RolloutState.ROLLED_BACK
    assert "1 offline ones go back when they return" in field.events[-1]


def test_rollback_asks_silent_and_failed_devices_again_and_ends_at_its_deadline_naming_them() -> None:
    field = rolling_back()
    silent, failed, refused = field.wave(0)[:3]
    field.answer(Outcome.FAILED, only=failed)
    field.answer(Outcome.REJECTED, only=refused)
    for device in field.wave(0)[3:]:
        field.answer(Outcome.REVERTED, only=device)
    again = []
    for _ in range(60):
        again += [(one.device, one.retry) for one in field.decide(100).assignments]
        field.answer(Outcome.FAILED, only=failed)
        if field.rollout.state in FINISHED:
            break
    assert field.rollout.state is RolloutState.ROLLED_BACK
    assert sorted(again) == sorted((device, retry) for device in (silent, failed) for retry in (1, 2, 3))
    assert all(device in field.events[-1] for device in (silent, failed, refused))


def test_device_that_is_still_on_its_incumbent_is_back_only_when_it_has_answered() -> None:
    field = Field(20)
    field.decide()
    field.request(RolloutState.ABORTED)
    field.decide()
    assert field.rollout.state is RolloutState.ROLLING_BACK
    field.answer(Outcome.ALREADY_INSTALLED)
    field.decide()
    assert field.rollout.state is RolloutState.ABORTED


def test_devices_that_had_nothing_before_are_told_apart() -> None:
    field = Field(10, first_ever=True)
    field.decide()
    field.answer()
    assert field.request(RolloutState.ABORTED).assignments == ()
    field.decide()
    assert field.rollout.state is RolloutState.ABORTED
    assert "2 had nothing to go back to" in field.events[-1]


def test_device_that_had_the_release_before_keeps_it() -> None:
    field = Field(0)
    for i in range(4):
        field.join(f"d{i}", NEW)
    field.decide()
    assert field.request(RolloutState.ABORTED).assignments == ()


# The operator


def test_pause_holds_everything_and_resume_goes_on_in_the_same_wave() -> None:
    field = Field(20)
    field.decide()
    field.request(RolloutState.PAUSED)
    assert field.rollout.state is RolloutState.PAUSED
    assert field.rollout.requested is None
    assert field.decide(1e6).assignments == ()
    field.request(RolloutState.RUNNING)
    assert (field.rollout.state, field.rollout.wave, field.rollout.phase) == (
        RolloutState.RUNNING,
        0,
        WavePhase.WAITING,
    )
    field.decide()
    assert field.rollout.state is RolloutState.RUNNING  # its deadline began anew
    field.answer()
    field.decide()
    assert field.rollout.phase is WavePhase.SOAKING


def test_pause_before_anybody_was_asked_asks_after_the_resume() -> None:
    field = Field(20)
    assert field.request(RolloutState.PAUSED).assignments == ()
    assert field.request(RolloutState.RUNNING).assignments == ()
    assert len(field.decide().assignments) == 2


def test_resume_accepts_the_failures_there_are_and_no_later_ones() -> None:
    field = Field(20)
    field.decide()
    first, second = field.wave(0)
    field.answer(Outcome.REJECTED, only=first)
    field.decide()
    assert field.rollout.state is RolloutState.PAUSED
    field.request(RolloutState.RUNNING)
    field.decide()
    assert field.rollout.state is RolloutState.RUNNING
    field.answer(Outcome.REJECTED, only=second)
    field.decide()
    assert field.rollout.state is RolloutState.PAUSED


def test_abort_takes_touched_devices_back_and_ends_aborted() -> None:
    field = Field(20)
    field.decide()
    field.answer()
    decision = field.request(RolloutState.ABORTED)
    assert field.rollout.state is RolloutState.ROLLING_BACK
    assert field.rollout.reason == "aborted by the operator"
    assert {one.device for one in decision.assignments} == set(field.wave(0))
    field.answer(Outcome.REVERTED)
    field.decide()
    assert field.rollout.state is RolloutState.ABORTED
    assert field.rollout.requested is None


@pytest.mark.parametrize("state", list(RolloutState))
@pytest.mark.parametrize("requested", list(RolloutState))
def test_every_request_in_every_state_is_carried_out_or_cleared(
    state: RolloutState, requested: RolloutState
) -> None:
    field = Field(5)
    field.decide()
    field.rollout = replace(field.rollout, state=state)
    field.request(requested)
    becomes = {
        (RolloutState.RUNNING, RolloutState.PAUSED): RolloutState.PAUSED,
        (RolloutState.PAUSED, RolloutState.RUNNING): RolloutState.RUNNING,
        (RolloutState.RUNNING, RolloutState.ABORTED): RolloutState.ROLLING_BACK,
        (RolloutState.PAUSED, RolloutState.ABORTED): RolloutState.ROLLING_BACK,
    }
    assert field.rollout.state is becomes.get((state, requested), state)
    carried_on = requested is RolloutState.ABORTED and state not in FINISHED
    assert field.rollout.requested is (RolloutState.ABORTED if carried_on else None)


@pytest.mark.parametrize("state", sorted(FINISHED, key=str))
def test_finished_rollout_never_moves_again(state: RolloutState) -> None:
    field = bad_field()
    for slice_ in range(12):
        field.serve(slice_, 20, wrong=(1, 10))
    field.rollout = replace(field.rollout, state=state)
    before = field.rollout
    assert field.decide(1e6) == Decision(before)


def test_clock_that_goes_back_only_holds() -> None:
    field = field_in_gate()
    decision = field.decide(-1e9)
    assert (field.rollout.state, decision.assignments) == (RolloutState.RUNNING, ())


# Any order of events


class Rolling(RuleBasedStateMachine):
    """Devices fail, sleep, lie and join; the operator interferes; the controller must keep its promises."""

    @initialize(
        count=st.integers(0, 12),
        waves=st.sampled_from([(1.0,), (0.05, 0.25, 1.0), (0.3, 0.6, 1.0)]),
        first_ever=st.booleans(),
        retries_max=st.integers(0, 2),
    )
    def begin(self, count: int, waves: tuple[float, ...], first_ever: bool, retries_max: int) -> None:
        self.field = Field(count, first_ever=first_ever, waves=waves, retries_max=retries_max)
        self.slice = 0
        self.left_alone = False

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
            [one.device for one in facts.devices if one.suitable or one.deployment], before.id, plan.waves
        )
        for one in decision.assignments:
            device = devices[one.device]
            assert one.retry <= plan.retries_max
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
        convicted = stops(weigh(facts.trials, plan), plan)
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
            del self.field.devices[pick.choice(self.names())]

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


TestRolling = Rolling.TestCase
TestRolling.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("seed", range(30))
def test_random_fleet_ends_well_or_says_why_not(seed: int) -> None:
    """Devices that are slow, fail, sleep for hours and come back, over days of simulated time."""
    rng = np.random.default_rng(seed)
    field = Field(int(rng.integers(3, 60)), soak_s=600.0, wait_max_s=6000.0)
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


@functools.cache
def simulated(
    seed: int, fleet: int, soak_s: float, rates: tuple[float, float]
) -> tuple[RolloutState, int, int]:
    """State, slice and wave in which a rollout through all waves ended, looked at in every slice."""
    rng = np.random.default_rng(seed)
    field = Field(fleet, waves=(0.1, 0.4, 1.0), soak_s=soak_s)
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


def test_harmless_release_reaches_everybody_in_nearly_every_of_300_runs() -> None:
    ends = [simulated(seed, 12, 60.0, (0.1, 0.1))[0] for seed in range(300)]
    assert ends.count(RolloutState.ROLLING_BACK) <= 6
    assert ends.count(RolloutState.COMPLETED) == 300 - ends.count(RolloutState.ROLLING_BACK)


def test_release_that_is_wrong_half_of_the_time_is_stopped_in_its_first_wave_within_a_few_slices() -> None:
    ends = [simulated(seed, 53, 900.0, (0.03, 0.5)) for seed in range(20)]
    assert {state for state, _, _ in ends} == {RolloutState.ROLLING_BACK}
    assert {wave for _, _, wave in ends} == {0}
    assert max(slice_ for _, slice_, _ in ends) <= 15
