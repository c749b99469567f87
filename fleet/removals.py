"""Devices that were removed while a rollout was under way.

Decides what a rollout keeps of them: that they were there, how far they had come, and what they ran before, so that its
counts add up and what they had shown stays evidence. A removed device's own rows in the database go with it. That a
rollout does not wait for who is not there follows from the facts (`standing`); who may be removed is decided in `enroll`.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from edgeml.ids import DeviceId, ReleaseId
from edgeml.twin import Outcome

from . import devices, rollout_store
from .schema import devices as device_table
from .schema import removals as table
from .store import upsert


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollout keeps of a device that was removed."""

    device: DeviceId
    at_ms: int
    asked: bool
    """Whether the rollout had asked something of it."""
    outcome: Outcome | None
    """How that had ended; None: it had not."""
    incumbent: ReleaseId | None
    """What it ran of the rollout's model before the rollout touched it."""


def record(connection: sa.Connection, name: DeviceId, now_ms: int) -> None:
    """Write down, in every rollout that is under way, that a device is about to be removed."""
    device = devices.load(connection, name)
    if device is None:
        return
    for rollout in rollout_store.load_unfinished(connection):
        asked = rollout_store.load_assignments(connection, rollout.id).get(name)
        outcome = asked.outcome if asked else None
        row = {
            "rollout": rollout.id,
            "device": name,
            "at_ms": now_ms,
            "asked": asked is not None,
            "outcome": outcome.value if outcome else None,
            "incumbent": asked.incumbent if asked else device.model(rollout.plan.model).release,
        }
        upsert(connection, table, row)
        how_far = (
            "before it was asked"
            if asked is None
            else "before it had decided"
            if outcome is None
            else f"after it had ended as {outcome.value.replace('_', ' ')}"
        )
        rollout_store.save_line(
            connection, rollout.id, f"goes on without {name}, which was removed {how_far}", now_ms
        )


def load(connection: sa.Connection, rollout_id: str) -> dict[DeviceId, Removal]:
    """Load the devices that were removed while a rollout was under way and have not been added again."""
    statement = (
        sa.select(table)
        .where(table.c.rollout == rollout_id)
        .where(table.c.device.not_in(sa.select(device_table.c.device)))
        .order_by(table.c.device)
    )
    return {
        DeviceId(row.device): Removal(
            device=DeviceId(row.device),
            at_ms=row.at_ms,
            asked=bool(row.asked),
            outcome=Outcome(row.outcome) if row.outcome else None,
            incumbent=row.incumbent,
        )
        for row in connection.execute(statement)
    }
