"""The table itself: properties that every row and state must have."""

import pytest

from agent.machine import TRANSITIONS, Action, Event, diagram, step
from edgeml.errors import StateError
from edgeml.twin import DeviceState


def reachable(start):
    seen = {start}
    while True:
        more = seen | {after for (state, _), (after, _) in TRANSITIONS.items() if state in seen}
        if more == seen:
            return seen
        seen = more


@pytest.mark.parametrize("state", DeviceState)
def test_every_state_survives_a_restart(state):
    assert (state, Event.RESTARTED) in TRANSITIONS


def test_every_state_is_reachable_from_idle():
    assert reachable(DeviceState.IDLE) == set(DeviceState)


@pytest.mark.parametrize("state", DeviceState)
def test_idle_is_reachable_from_every_state(state):
    assert DeviceState.IDLE in reachable(state)


def test_nothing_is_activated_that_was_not_verified_right_before():
    """The only ways into ACTIVATING are from STAGED, which is entered only from VERIFYING, be it through the shadow in
    the same life, and a restart on trial.
    """
    into = {
        (state, event)
        for (state, event), (after, _) in TRANSITIONS.items()
        if after is DeviceState.ACTIVATING
    }
    assert into == {
        (DeviceState.STAGED, Event.READY),
        (DeviceState.COMPARING, Event.AGREED),
        (DeviceState.ACTIVATING, Event.RESTARTED),
        (DeviceState.TRIAL, Event.RESTARTED),
    }
    for state, before in (
        (DeviceState.COMPARING, {DeviceState.SHADOWING, DeviceState.COMPARING}),
        (DeviceState.SHADOWING, {DeviceState.STAGED}),
    ):
        assert {s for (s, _), (after, _) in TRANSITIONS.items() if after is state} == before
        assert TRANSITIONS[(state, Event.RESTARTED)][0] is DeviceState.VERIFYING
    into_staged = {key for key, (after, _) in TRANSITIONS.items() if after is DeviceState.STAGED}
    assert into_staged == {
        (DeviceState.VERIFYING, Event.VERIFIED),
        # It waits for its hour in the same life; the worker checks the bytes once more when it loads them.
        (DeviceState.STAGED, Event.POSTPONED),
    }


def test_only_a_healthy_trial_is_committed():
    into = {key for key, (after, _) in TRANSITIONS.items() if after is DeviceState.COMMITTING}
    assert into == {(DeviceState.TRIAL, Event.HEALTHY), (DeviceState.COMMITTING, Event.RESTARTED)}


@pytest.mark.parametrize(
    "state",
    [
        DeviceState.FETCHING,
        DeviceState.VERIFYING,
        DeviceState.ACTIVATING,
        DeviceState.TRIAL,
        DeviceState.ROLLING_BACK,
    ],
)
def test_states_that_try_again_know_when_to_give_up(state):
    assert (state, Event.EXHAUSTED) in TRANSITIONS


def test_an_event_without_meaning_is_a_state_error_that_names_both():
    with pytest.raises(StateError, match="healthy in state idle"):
        step(DeviceState.IDLE, Event.HEALTHY)


def test_every_action_is_used_and_the_diagram_has_every_row():
    assert {action for _, action in TRANSITIONS.values()} == set(Action)
    assert len(diagram().splitlines()) == len(TRANSITIONS) + 2
