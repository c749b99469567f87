"""Identities that are in quarantine: two devices use them, and nobody knows which one is meant.

Decides what a quarantine is and how it is stored. While it lasts, rollouts do without the device (`standing`), its rows
are not taken in and not acknowledged, and what it says of a deployment decides nothing (`hearing`). Only an operator ends
it. Who is put into quarantine is decided in `clones`.
"""

from __future__ import annotations

from typing import Final

import msgspec
import sqlalchemy as sa

from edgeml.errors import ConfigError
from edgeml.ids import DeviceId

from . import rollout_store
from .schema import devices
from .schema import quarantines as table
from .store import Store, upsert

TWO_DEVICES: Final = "two devices use this identity: they throw each other off the broker again and again"


class Quarantine(msgspec.Struct, frozen=True):
    """Why a device is kept out, and since when."""

    since_ms: int
    reason: str


def impose(connection: sa.Connection, device: DeviceId, quarantine: Quarantine) -> None:
    """Put a device into quarantine, and say so in the history of every rollout that is under way."""
    upsert(connection, table, {"device": device, **msgspec.structs.asdict(quarantine)})
    for rollout in rollout_store.load_unfinished(connection):
        line = f"goes on without {device}, which is in quarantine: {quarantine.reason}"
        rollout_store.save_line(connection, rollout.id, line, quarantine.since_ms)


def load(connection: sa.Connection) -> dict[DeviceId, Quarantine]:
    """Load every quarantine."""
    return {
        DeviceId(row.device): Quarantine(row.since_ms, row.reason)
        for row in connection.execute(sa.select(table))
    }


def lift(store: Store, name: str, now_ms: int) -> Quarantine:
    """End a quarantine: rollouts under way ask the device again, and its rows are taken in.

    Raises:
        ConfigError: There is no such device, or it is in no quarantine.
    """
    with store.write() as connection:
        row = connection.execute(sa.select(table).where(table.c.device == name)).one_or_none()
        if row is None:
            known = connection.scalar(sa.select(devices.c.device).where(devices.c.device == name))
            why = "is in no quarantine" if known else "does not exist"
            raise ConfigError(
                f"device {name} {why}", hint="`edgeml fleet device list` shows who is in quarantine"
            )
        connection.execute(table.delete().where(table.c.device == name))
        for rollout in rollout_store.load_unfinished(connection):
            rollout_store.save_line(connection, rollout.id, f"{name} is out of quarantine", now_ms)
    return Quarantine(row.since_ms, row.reason)
