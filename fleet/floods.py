"""What was turned away of each device, in the database: where an operator sees who floods.

Decides how it is stored and added up. What is too much is decided in `quota`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import sqlalchemy as sa

from edgeml.ids import DeviceId

from .doorkeeper import TurnedAway
from .schema import devices
from .schema import floods as table
from .store import upsert_all


class Flood(msgspec.Struct, frozen=True):
    """What a device has sent beyond its quota, since it was enrolled."""

    messages: int
    payload_bytes: int
    last_at_ms: int
    """When it was last written down; some seconds after it happened."""


def add(connection: sa.Connection, turned_away: Mapping[str, TurnedAway], now_ms: int) -> None:
    """Add what was turned away; of who is not enrolled (any more) nothing is kept."""
    if not turned_away:
        return
    enrolled = set(
        connection.scalars(sa.select(devices.c.device).where(devices.c.device.in_(list(turned_away))))
    )
    known = load(connection)
    rows = []
    for name in sorted(enrolled):
        before = known.get(DeviceId(name), Flood(0, 0, 0))
        more = turned_away[name]
        rows.append(
            {
                "device": name,
                "messages": before.messages + more.messages,
                "payload_bytes": before.payload_bytes + more.payload_bytes,
                "last_at_ms": now_ms,
            }
        )
    upsert_all(connection, table, rows)


def load(connection: sa.Connection) -> dict[DeviceId, Flood]:
    """Load every device of which something was turned away."""
    return {
        DeviceId(row.device): Flood(row.messages, row.payload_bytes, row.last_at_ms)
        for row in connection.execute(sa.select(table))
    }
