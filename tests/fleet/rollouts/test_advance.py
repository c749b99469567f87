"""How a rollout goes forward: waves, waiting, missing evidence, failures, late joiners."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgeml.ids import DeviceId, ReleaseId
from edgeml.telemetry import Counters
from edgeml.twin import Outcome
from fleet.advance import DECIDED_SAMPLE
from fleet.rollout import (
    RolloutState,
    Trial,
    WavePhase,
)

OLD, NEW = ReleaseId("m@1"), ReleaseId("m@2")
START_MS = 1_790_000_000_000
replace = msgspec.structs.replace


# The way of a rollout without trouble


def test_wave_is_asked_waited_for_soaked_and_judged_before_the_next_one(new_field) -> None:
    field = new_field(40)
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


def test_whole_rollout_completes_and_asks_everybody_once(new_field) -> None:
    field = new_field(40)
    asked: list[DeviceId] = []
    for slice_ in range(40):
        asked += [one.device for one in field.decide(60).assignments]
        field.answer()
        field.serve(slice_)
    assert field.rollout.state is RolloutState.COMPLETED
    assert sorted(asked) == sorted(field.devices)
    assert "40 of 40 devices run m@2" in field.events[-1]


def test_first_release_ever_advances_on_its_own_inferences(new_field) -> None:
    field = new_field(10, first_ever=True)
    for slice_ in range(40):
        field.decide(60)
        field.answer()
        field.serve(slice_)
    assert field.rollout.state is RolloutState.COMPLETED


def test_waves_without_devices_are_passed_over(new_field) -> None:
    field = new_field(2, waves=(0.2, 0.4, 0.6, 1.0))
    for slice_ in range(20):
        field.decide(60)
        field.answer()
        field.serve(slice_)
    assert field.rollout.state is RolloutState.COMPLETED
    assert "wave 2 of 4 has no devices" in field.events


def test_fleet_without_a_suitable_device_is_held(new_field) -> None:
    field = new_field(0)
    field.join("old", suitable=False)
    field.decide()
    assert field.rollout.state is RolloutState.PAUSED
    assert "no device of the fleet has a variant" in field.rollout.reason


def test_unsuitable_devices_are_left_out_and_named(new_field) -> None:
    field = new_field(5)
    field.join("odd-one", suitable=False)
    assert "odd-one" in field.decide().event
    for slice_ in range(40):
        field.answer()
        field.serve(slice_)
        assert "odd-one" not in {one.device for one in field.decide(60).assignments}
    assert field.rollout.state is RolloutState.COMPLETED


def test_device_that_has_the_release_counts_as_done_without_being_asked(new_field) -> None:
    field = new_field(0)
    for i in range(4):
        field.join(f"d{i}", NEW)
    assert field.decide().assignments == ()
    field.decide()
    assert field.rollout.phase is WavePhase.SOAKING


# Waiting and missing evidence


def test_gate_holds_without_enough_inferences_and_pauses_after_the_deadline(field_in_gate) -> None:
    field = field_in_gate()
    field.decide()
    assert field.rollout.phase is WavePhase.GATE
    assert "0 of 10 inferences" in field.rollout.reason
    field.until(RolloutState.PAUSED)
    assert "evidence is missing" in field.rollout.reason
    assert field.rollout.wave == 0


def test_inferences_of_earlier_waves_do_not_count_for_a_later_one(field_in_gate) -> None:
    field = field_in_gate()
    field.serve(0, 50)
    field.decide()
    field.decide()
    field.answer()
    for _ in range(4):
        field.decide(101)
    assert (field.rollout.wave, field.rollout.phase) == (1, WavePhase.GATE)
    assert "0 of 10" in field.rollout.reason


def test_gate_holds_without_anything_to_compare_with(field_in_gate) -> None:
    field = field_in_gate()
    for device in field.wave(0):
        field.trials.append(Trial(device, 0, candidate=True, counters=Counters(inferences=50)))
    field.decide()
    assert field.rollout.phase is WavePhase.GATE
    assert "incumbent to compare with" in field.rollout.reason


def test_operator_may_do_without_comparison(field_in_gate) -> None:
    field = field_in_gate(incumbent_trials_min=0)
    for device in field.wave(0):
        field.trials.append(Trial(device, 0, candidate=True, counters=Counters(inferences=50)))
    field.decide()
    assert field.rollout.wave == 1


def test_silent_wave_is_paused_after_the_deadline(new_field) -> None:
    field = new_field(20)
    field.until(RolloutState.PAUSED)
    assert "have decided" in field.rollout.reason


def test_offline_devices_are_asked_and_neither_pass_nor_fail_a_wave(new_field) -> None:
    field = new_field(40, waves=(0.5, 1.0))
    asleep = field.wave(0)[:3]
    for device in asleep:
        field.change(device, online=False)
    decision = field.decide()
    assert set(asleep) <= {one.device for one in decision.assignments}
    assert "3 are offline" in decision.event
    field.answer()
    field.decide()
    assert field.rollout.phase is WavePhase.SOAKING


def test_wave_of_sleepers_only_holds_for_want_of_evidence(new_field) -> None:
    field = new_field(10)
    for device in field.devices:
        field.change(device, online=False)
    field.until(RolloutState.PAUSED)
    assert field.rollout.wave == 0
    assert "evidence is missing" in field.rollout.reason


def test_devices_that_wake_up_while_soaking_are_waited_for(new_field) -> None:
    field = new_field(20, waves=(0.5, 1.0))
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
def test_failures_above_the_limit_pause_and_are_not_asked_again(new_field, outcome: Outcome) -> None:
    field = new_field(20)
    field.decide()
    bad = field.wave(0)[0]
    field.answer(outcome, only=bad)
    decision = field.decide()
    assert field.rollout.state is RolloutState.PAUSED
    assert bad in field.rollout.reason
    assert decision.assignments == ()
    assert field.decide(5000).assignments == ()


def test_few_failures_among_many_devices_do_not_pause(new_field) -> None:
    field = new_field(400, waves=(0.25, 1.0))
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


def test_failed_device_is_asked_again_later_and_later_and_then_no_more(new_field) -> None:
    field = new_field(2, wait_max_s=100_000.0)
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


def test_silent_device_is_asked_again_at_even_intervals(new_field) -> None:
    field = new_field(2, wait_max_s=4000.0)
    field.decide()
    field.answer(only="d0")
    asked = [(one.device, one.retry) for _ in range(38) for one in field.decide(100).assignments]
    assert asked == [("d1", 1), ("d1", 2), ("d1", 3)]


def test_device_that_tries_the_release_is_not_asked_again(new_field) -> None:
    field = new_field(2, wait_max_s=4000.0)
    field.decide()
    for device in field.devices:
        field.change(device, current=NEW)  # in trial: it runs it and has not decided
    assert [field.decide(100).assignments for _ in range(38)] == [()] * 38


def test_device_that_says_it_is_done_and_runs_something_else_has_failed(new_field) -> None:
    field = new_field(20)
    field.decide()
    field.change(field.wave(0)[0], outcome=Outcome.COMMITTED, current=OLD)
    field.decide()
    assert field.rollout.state is RolloutState.PAUSED


def test_device_that_failed_is_asked_again_though_it_says_it_runs_the_release(new_field) -> None:
    field = new_field(2)
    field.decide()
    field.answer(only="d0")
    field.change("d1", outcome=Outcome.FAILED, current=NEW)
    assert [(one.device, one.retry) for one in field.decide(400).assignments] == [("d1", 1)]


def test_device_that_somebody_else_took_over_does_not_count(new_field) -> None:
    field = new_field(20)
    field.decide()
    first, second = field.wave(0)
    field.change(first, outcome=Outcome.SUPERSEDED)
    field.answer(only=second)
    field.decide()
    assert field.rollout.phase is WavePhase.SOAKING


# Late joiners


def test_device_that_joins_a_wave_that_has_begun_is_asked_at_once_and_others_wait(field_in_gate) -> None:
    field = field_in_gate(40)
    for i in range(100, 200):
        field.join(f"d{i}")
    early = {one.device for one in field.decide().assignments}
    assert early == {device for device in field.wave(0) if int(device[1:]) >= 100}
    assert early


def test_canary_that_is_pushed_out_of_the_first_wave_stays_asked(new_field) -> None:
    field = new_field(3, waves=(0.001, 1.0))
    field.decide()
    before = set(field.wave(0))
    for i in range(10, 60):
        field.join(f"d{i}")
    pushed = before - set(field.wave(0))
    assert pushed
    assert pushed.isdisjoint(one.device for one in field.decide().assignments)
