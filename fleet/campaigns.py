"""What an operator may ask of rollouts.

Decides when a rollout may be started, held, resumed or ended, and writes the wish down. Carrying it out is the
controller's business (`advance`).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Final, Protocol

import msgspec

from edgeml.errors import ConfigError
from edgeml.ids import parse_release
from edgeml.trustfacts import SignedTarget

from . import rollout_store
from .deployments import ROLLOUT_CHARACTERS_MAX
from .rollout import FINISHED, Plan, Rollout, RolloutState
from .store import Store

_MAY_BE_ASKED: Final = {
    RolloutState.PAUSED: frozenset({RolloutState.RUNNING}),
    RolloutState.RUNNING: frozenset({RolloutState.PAUSED}),
    RolloutState.ABORTED: frozenset(set(RolloutState) - FINISHED),
}


class Published(Protocol):
    """What is signed and published."""

    def releases(self) -> Iterable[SignedTarget]:
        """Every published variant."""
        ...


def start(store: Store, published: Published, plan: Plan, now_ms: int) -> Rollout:
    """Write down a new rollout.

    Raises:
        ConfigError: The release is not published, or another rollout of the same model is under way: the two would undo
            each other. Rollouts of different models do not touch each other.
    """
    model, version = parse_release(plan.release)
    known = sorted({one.facts.release for one in published.releases()})
    if plan.release not in known:
        raise ConfigError(
            f"{plan.release} is not published",
            hint=f"published: {', '.join(known)}"
            if known
            else "publish it first: edgeml fleet publish BUNDLE...",
        )
    tail = f"-{secrets.token_hex(2)}"
    name = f"{model}-{version}"[: ROLLOUT_CHARACTERS_MAX - len(tail)] + tail
    rollout = Rollout(id=name, plan=plan, phase_since_ms=now_ms, created_at_ms=now_ms)
    with store.write() as connection:
        unfinished = rollout_store.load_unfinished(connection)
        other = next((one for one in unfinished if one.plan.model == model), None)
        if other is not None:
            raise ConfigError(
                f"rollout {other.id} of {other.plan.release} is {other.state.value}",
                hint=f"wait for it, or end it: edgeml fleet rollout abort {other.id}",
            )
        rollout_store.save(connection, rollout)
    return rollout


def request(store: Store, rollout_id: str, state: RolloutState) -> None:
    """Write down that a rollout is to be paused, resumed or aborted.

    Raises:
        ConfigError: There is no such rollout, or that makes no sense in the state it is in.
    """
    found = find(store, rollout_id)
    with store.write() as connection:
        rollout = rollout_store.lock(connection, found.id)
        assert rollout is not None  # rollouts are never deleted
        if rollout.state not in _MAY_BE_ASKED[state]:
            raise ConfigError(
                f"rollout {rollout.id} is {rollout.state.value}",
                hint="edgeml fleet rollout list shows them all",
            )
        rollout_store.save(connection, msgspec.structs.replace(rollout, requested=state))


def find(store: Store, rollout_id: str | None) -> Rollout:
    """Find a rollout by its name; without one, the newest.

    Raises:
        ConfigError: There is none.
    """
    with store.read() as connection:
        everything = rollout_store.load_all(connection)
    if not everything:
        raise ConfigError("there are no rollouts", hint="start one: edgeml fleet rollout start MODEL@VERSION")
    if rollout_id is None:
        return everything[0]
    found = next((one for one in everything if one.id == rollout_id), None)
    if found is None:
        names = ", ".join(one.id for one in everything[:10])
        raise ConfigError(f"there is no rollout {rollout_id}", hint=f"the newest are {names}")
    return found
