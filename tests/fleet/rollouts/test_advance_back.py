"""How a rollout goes back, and what the operator may ask for."""

from __future__ import annotations

import math

import msgspec
import pytest

from edgeml.ids import ReleaseId
from edgeml.twin import Outcome
from fleet.rollout import (
    FINISHED,
    Decision,
    RolloutState,
    WavePhase,
)

OLD, NEW = ReleaseId("m@1"), ReleaseId("m@2")
START_MS = 1_790_000_000_000
replace = msgspec.structs.replace


def test_release_that_is_worse_is_taken_back_with_the_reason(bad_field) -> None:
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
def test_evidence_stops_in_every_phase_also_when_paused(bad_field, phase: WavePhase) -> None:
    for state in (RolloutState.RUNNING, RolloutState.PAUSED):
        field = bad_field()
        for slice_ in range(12):
            field.serve(slice_, 20, wrong=(1, 10))
        field.rollout = replace(field.rollout, phase=phase, state=state)
        field.decide()
        assert field.rollout.state is RolloutState.ROLLING_BACK


def test_every_touched_device_goes_back_whatever_it_said_last(bad_field) -> None:
    field = bad_field(waves=(0.2, 1.0))
    wave = field.wave(0)
    assert len(wave) >= 7
    said = [Outcome.REJECTED, Outcome.FAILED, Outcome.ROLLED_BACK, Outcome.SUPERSEDED, None]
    for device, outcome in zip(wave, said, strict=False):
        field.change(device, outcome=outcome, current=OLD)
    field.change(wave[5], online=False)
    decision = field.request(RolloutState.ABORTED)
    assert {one.device for one in decision.assignments} == set(wave)


def test_rollback_ends_when_every_device_is_back(rolling_back) -> None:
    field = rolling_back()
    wave = field.wave(0)
    field.decide()
    assert field.rollout.state is RolloutState.ROLLING_BACK
    field.answer(Outcome.REVERTED)
    field.decide()
    assert field.rollout.state is RolloutState.ROLLED_BACK
    assert f"{len(wave)} of {len(wave)} devices are back" in field.events[-1]


def test_rollback_does_not_wait_for_offline_devices_and_counts_them(rolling_back) -> None:
    field = rolling_back()
    field.change(field.wave(0)[0], online=False)
    field.answer(Outcome.REVERTED)
    field.decide()
    assert field.rollout.state is RolloutState.ROLLED_BACK
    assert "1 offline ones go back when they return" in field.events[-1]


def test_rollback_asks_silent_and_failed_devices_again_and_ends_at_its_deadline_naming_them(
    rolling_back,
) -> None:
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


def test_device_that_is_still_on_its_incumbent_is_back_only_when_it_has_answered(new_field) -> None:
    field = new_field(20)
    field.decide()
    field.request(RolloutState.ABORTED)
    field.decide()
    assert field.rollout.state is RolloutState.ROLLING_BACK
    field.answer(Outcome.ALREADY_INSTALLED)
    field.decide()
    assert field.rollout.state is RolloutState.ABORTED


def test_device_whose_way_back_failed_is_not_back_whatever_it_says_it_runs(new_field) -> None:
    field = new_field(2, retries_max=0)
    field.decide()
    field.answer()
    field.rollout = replace(field.rollout, requested=RolloutState.ABORTED)
    field.decide()
    field.answer(only="d0")
    field.change("d1", outcome=Outcome.FAILED, current=OLD)
    field.decide()
    assert field.rollout.state is RolloutState.ABORTED
    assert field.events[-1] == "aborted: 1 of 2 devices are back on their incumbent; not back: d1"


def test_devices_that_had_nothing_before_are_told_apart(new_field) -> None:
    field = new_field(10, first_ever=True)
    field.decide()
    field.answer()
    assert field.request(RolloutState.ABORTED).assignments == ()
    field.decide()
    assert field.rollout.state is RolloutState.ABORTED
    assert "2 had nothing to go back to" in field.events[-1]


def test_device_that_had_the_release_before_keeps_it(new_field) -> None:
    field = new_field(0)
    for i in range(4):
        field.join(f"d{i}", NEW)
    field.decide()
    assert field.request(RolloutState.ABORTED).assignments == ()


# The operator


def test_pause_holds_everything_and_resume_goes_on_in_the_same_wave(new_field) -> None:
    field = new_field(20)
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


def test_pause_before_anybody_was_asked_asks_after_the_resume(new_field) -> None:
    field = new_field(20)
    assert field.request(RolloutState.PAUSED).assignments == ()
    assert field.request(RolloutState.RUNNING).assignments == ()
    assert len(field.decide().assignments) == 2


def test_resume_accepts_the_failures_there_are_and_no_later_ones(new_field) -> None:
    field = new_field(20)
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


def test_abort_takes_touched_devices_back_and_ends_aborted(new_field) -> None:
    field = new_field(20)
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
    new_field, state: RolloutState, requested: RolloutState
) -> None:
    field = new_field(5)
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
def test_finished_rollout_never_moves_again(bad_field, state: RolloutState) -> None:
    field = bad_field()
    for slice_ in range(12):
        field.serve(slice_, 20, wrong=(1, 10))
    field.rollout = replace(field.rollout, state=state)
    before = field.rollout
    assert field.decide(1e6) == Decision(before)


def test_clock_that_goes_back_only_holds(field_in_gate) -> None:
    field = field_in_gate()
    decision = field.decide(-1e9)
    assert (field.rollout.state, decision.assignments) == (RolloutState.RUNNING, ())
