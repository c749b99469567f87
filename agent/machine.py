"""The update machine of a model on a device, as one table.

Everything that decides which state follows which is here: `TRANSITIONS[(state, event)]` is the next state and the one
action to perform in it. The journal is written before the action is performed, every action may be performed twice,
and every state knows what to do after a restart. Performing is the executor's business; choosing the event, the
updater's. The diagram in docs/device-machine.md is generated from this table and a test compares them.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import Final

from edgeml.errors import StateError
from edgeml.twin import DeviceState as S


class Event(enum.Enum):
    """What happened."""

    ASSIGNED = "assigned"
    """The fleet wants a variant that is not on this device."""
    HELD = "held"
    """The fleet wants the device's own previous slot."""
    SATISFIED = "satisfied"
    """The fleet wants what already runs."""
    REFUSED = "refused"
    """Content or conditions are wrong; trying again cannot help."""
    FETCHED = "fetched"
    VERIFIED = "verified"
    READY = "ready"
    SHADOW = "shadow"
    """It is to answer beside the variant that serves before it may serve itself."""
    SHADOWED = "shadowed"
    AGREED = "agreed"
    ACTIVATED = "activated"
    HEALTHY = "healthy"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    REPORTED = "reported"
    FAILED = "failed"
    """It did not work this time."""
    POSTPONED = "postponed"
    """It may not be done yet: that is no failed attempt."""
    EXHAUSTED = "exhausted"
    """It did not work as often as may be tried."""
    CRASHED = "crashed"
    """The model's worker died too often."""
    SUPERSEDED = "superseded"
    """The fleet wants something else by now."""
    RESTARTED = "restarted"
    """The agent starts and finds this state in its journal."""


class Action(enum.Enum):
    """What to do on entering a state. Each may be done twice."""

    FETCH = "fetch"
    VERIFY = "verify"
    WAIT = "wait"
    SHADOW = "shadow"
    COMPARE = "compare"
    ACTIVATE = "activate"
    OBSERVE = "observe"
    COMMIT = "commit"
    RESTORE = "restore"
    REPORT = "report"
    REST = "rest"


E, A = Event, Action

# `current` stays the old slot until COMMITTING, so a power cut anywhere before it leaves the old model in place.
TRANSITIONS: Final = MappingProxyType(
    {
        (S.IDLE, E.ASSIGNED): (S.FETCHING, A.FETCH),
        (S.IDLE, E.HELD): (S.VERIFYING, A.VERIFY),
        (S.IDLE, E.SATISFIED): (S.REPORTING, A.REPORT),
        (S.IDLE, E.REFUSED): (S.REPORTING, A.REPORT),
        (S.IDLE, E.CRASHED): (S.ROLLING_BACK, A.RESTORE),
        (S.IDLE, E.RESTARTED): (S.IDLE, A.REST),
        (S.FETCHING, E.FETCHED): (S.VERIFYING, A.VERIFY),
        (S.FETCHING, E.FAILED): (S.FETCHING, A.FETCH),
        (S.FETCHING, E.POSTPONED): (S.FETCHING, A.FETCH),
        (S.FETCHING, E.EXHAUSTED): (S.REPORTING, A.REPORT),
        (S.FETCHING, E.REFUSED): (S.REPORTING, A.REPORT),
        (S.FETCHING, E.SUPERSEDED): (S.REPORTING, A.REPORT),
        (S.FETCHING, E.RESTARTED): (S.FETCHING, A.FETCH),
        (S.VERIFYING, E.VERIFIED): (S.STAGED, A.WAIT),
        # What is on disk is not what was fetched: fetch again, as often as attempts allow.
        (S.VERIFYING, E.FAILED): (S.FETCHING, A.FETCH),
        (S.VERIFYING, E.EXHAUSTED): (S.REPORTING, A.REPORT),
        (S.VERIFYING, E.REFUSED): (S.REPORTING, A.REPORT),
        (S.VERIFYING, E.SUPERSEDED): (S.REPORTING, A.REPORT),
        (S.VERIFYING, E.RESTARTED): (S.VERIFYING, A.VERIFY),
        (S.STAGED, E.POSTPONED): (S.STAGED, A.WAIT),
        (S.STAGED, E.READY): (S.ACTIVATING, A.ACTIVATE),
        (S.STAGED, E.SHADOW): (S.SHADOWING, A.SHADOW),
        (S.STAGED, E.SUPERSEDED): (S.REPORTING, A.REPORT),
        # Nobody knows what happened to the disk while the power was off: hash it again.
        (S.STAGED, E.RESTARTED): (S.VERIFYING, A.VERIFY),
        (S.SHADOWING, E.SHADOWED): (S.COMPARING, A.COMPARE),
        (S.SHADOWING, E.FAILED): (S.ROLLING_BACK, A.RESTORE),
        (S.SHADOWING, E.REFUSED): (S.ROLLING_BACK, A.RESTORE),
        (S.SHADOWING, E.EXHAUSTED): (S.ROLLING_BACK, A.RESTORE),
        (S.SHADOWING, E.SUPERSEDED): (S.ROLLING_BACK, A.RESTORE),
        (S.SHADOWING, E.RESTARTED): (S.VERIFYING, A.VERIFY),
        (S.COMPARING, E.AGREED): (S.ACTIVATING, A.ACTIVATE),
        # Nobody asked anything, so there is nothing to compare: wait again, as often as attempts allow.
        (S.COMPARING, E.FAILED): (S.COMPARING, A.COMPARE),
        (S.COMPARING, E.EXHAUSTED): (S.ROLLING_BACK, A.RESTORE),
        (S.COMPARING, E.REFUSED): (S.ROLLING_BACK, A.RESTORE),
        (S.COMPARING, E.SUPERSEDED): (S.ROLLING_BACK, A.RESTORE),
        (S.COMPARING, E.RESTARTED): (S.VERIFYING, A.VERIFY),
        (S.ACTIVATING, E.ACTIVATED): (S.TRIAL, A.OBSERVE),
        (S.ACTIVATING, E.FAILED): (S.ROLLING_BACK, A.RESTORE),
        (S.ACTIVATING, E.REFUSED): (S.ROLLING_BACK, A.RESTORE),
        (S.ACTIVATING, E.EXHAUSTED): (S.ROLLING_BACK, A.RESTORE),
        (S.ACTIVATING, E.RESTARTED): (S.ACTIVATING, A.ACTIVATE),
        (S.TRIAL, E.HEALTHY): (S.COMMITTING, A.COMMIT),
        (S.TRIAL, E.FAILED): (S.ROLLING_BACK, A.RESTORE),
        (S.TRIAL, E.CRASHED): (S.ROLLING_BACK, A.RESTORE),
        (S.TRIAL, E.SUPERSEDED): (S.ROLLING_BACK, A.RESTORE),
        (S.TRIAL, E.EXHAUSTED): (S.ROLLING_BACK, A.RESTORE),
        # The worker on trial is gone with the agent: load it again, as often as the policy allows.
        (S.TRIAL, E.RESTARTED): (S.ACTIVATING, A.ACTIVATE),
        (S.COMMITTING, E.COMMITTED): (S.REPORTING, A.REPORT),
        (S.COMMITTING, E.FAILED): (S.ROLLING_BACK, A.RESTORE),
        (S.COMMITTING, E.EXHAUSTED): (S.ROLLING_BACK, A.RESTORE),
        (S.COMMITTING, E.RESTARTED): (S.COMMITTING, A.COMMIT),
        (S.ROLLING_BACK, E.ROLLED_BACK): (S.REPORTING, A.REPORT),
        (S.ROLLING_BACK, E.FAILED): (S.ROLLING_BACK, A.RESTORE),
        (S.ROLLING_BACK, E.EXHAUSTED): (S.STRANDED, A.REPORT),
        (S.ROLLING_BACK, E.RESTARTED): (S.ROLLING_BACK, A.RESTORE),
        (S.REPORTING, E.REPORTED): (S.IDLE, A.REST),
        (S.REPORTING, E.RESTARTED): (S.REPORTING, A.REPORT),
        # Stranded: no slot can be served. Only a new deployment, or a restart with a repaired disk, helps.
        (S.STRANDED, E.REPORTED): (S.STRANDED, A.REST),
        (S.STRANDED, E.ASSIGNED): (S.FETCHING, A.FETCH),
        (S.STRANDED, E.HELD): (S.VERIFYING, A.VERIFY),
        (S.STRANDED, E.REFUSED): (S.STRANDED, A.REPORT),
        (S.STRANDED, E.RESTARTED): (S.ROLLING_BACK, A.RESTORE),
    }
)


def step(state: S, event: Event) -> tuple[S, Action]:
    """Return the next state and its action.

    Raises:
        StateError: The event has no meaning in this state.
    """
    try:
        return TRANSITIONS[(state, event)]
    except KeyError:
        raise StateError(
            f"the update machine has no transition for {event.value} in state {state.value}"
        ) from None


def accepts(state: S, event: Event) -> bool:
    """Tell whether an event has a meaning in a state."""
    return (state, event) in TRANSITIONS


def diagram() -> str:
    """Mermaid text of the table, for the documentation."""
    lines = ["stateDiagram-v2", "    [*] --> idle"]
    lines += [
        f"    {state.value} --> {after.value}: {event.value} / {action.value}"
        for (state, event), (after, action) in TRANSITIONS.items()
    ]
    return "\n".join(lines) + "\n"
