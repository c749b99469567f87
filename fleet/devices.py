"""What the fleet knows of each device, in the database.

Decides how devices, their logins, their last words and what is wanted of them are stored and loaded. What a message
means is decided in `twins`; who may be a device, in `enroll`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa

from edgeml.ids import DeploymentId, DeviceId, ReleaseId
from edgeml.twin import Birth, Desired, Reported, Slot, encode

from .schema import desired as desired_table
from .schema import devices as table
from .store import upsert


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One enrolled device."""

    device: DeviceId
    tenant: str
    profile: str
    online: bool
    session: str | None
    first_seen_ms: int | None
    last_seen_ms: int | None
    release: ReleaseId | None
    birth: Birth | None
    reported: Reported | None
    reported_session: str | None

    @property
    def reported_generation(self) -> int:
        """Highest generation the device has answered to; 0 if none."""
        return self.reported.generation if self.reported else 0

    def slot_with(self, release: ReleaseId) -> Slot | None:
        """Find the slot in which the device says it has this release."""
        slots = self.reported.slots if self.reported else None
        installed = (slots.current, slots.previous, slots.factory) if slots else ()
        return next((slot for slot in installed if slot and slot.release == release), None)


class DesiredRow(msgspec.Struct, frozen=True):
    """What is wanted of a device, and whether the broker was told."""

    device: DeviceId
    generation: int
    deployment: DeploymentId
    release: ReleaseId
    payload: bytes
    published: bool


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """A new device. Holds hashes of its token, never the token."""

    device: DeviceId
    tenant: str
    profile: str
    token_sha256: str
    broker_hash: str
    enrolled_at_ms: int


def enrol(connection: sa.Connection, enrolment: Enrolment) -> None:
    """Store a device that is not stored yet."""
    connection.execute(
        table.insert().values(**msgspec.structs.asdict(enrolment), online=False, reported_generation=0)
    )


def remove(connection: sa.Connection, device: DeviceId) -> bool:
    """Forget a device and what was wanted of it; its telemetry stays. Returns whether it was there."""
    return connection.execute(table.delete().where(table.c.device == device)).rowcount > 0


def load(connection: sa.Connection, device: DeviceId) -> Device | None:
    """Load one device."""
    row = connection.execute(sa.select(table).where(table.c.device == device)).one_or_none()
    return _device(row) if row else None


def load_many(connection: sa.Connection, names: Iterable[DeviceId]) -> dict[DeviceId, Device]:
    """Load those of these devices that are enrolled."""
    rows = connection.execute(sa.select(table).where(table.c.device.in_(list(names))))
    return {DeviceId(row.device): _device(row) for row in rows}


def load_all(connection: sa.Connection) -> tuple[Device, ...]:
    """Load every device, by name."""
    return tuple(_device(row) for row in connection.execute(sa.select(table).order_by(table.c.device)))


def logins(connection: sa.Connection) -> dict[DeviceId, tuple[str, str]]:
    """Hashes of every device's token: SHA-256 in hex, and in the broker's own format."""
    rows = connection.execute(
        sa.select(table.c.device, table.c.token_sha256, table.c.broker_hash).order_by(table.c.device)
    )
    return {DeviceId(row.device): (row.token_sha256, row.broker_hash) for row in rows}


def token_sha256(connection: sa.Connection, device: str) -> str | None:
    """SHA-256 in hex of a device's token."""
    return connection.scalar(sa.select(table.c.token_sha256).where(table.c.device == device))


def save(connection: sa.Connection, heard_of: Iterable[Device]) -> None:
    """Store what was heard from enrolled devices."""
    rows = [
        {
            "_device": device.device,
            "online": device.online,
            "session": device.session,
            "first_seen_ms": device.first_seen_ms,
            "last_seen_ms": device.last_seen_ms,
            "release": device.release,
            "birth": encode(device.birth).decode() if device.birth else None,
            "reported": encode(device.reported).decode() if device.reported else None,
            "reported_generation": device.reported_generation,
            "reported_session": device.reported_session,
        }
        for device in heard_of
    ]
    if rows:
        columns: dict[str, Any] = {name: sa.bindparam(name) for name in rows[0] if name != "_device"}
        connection.execute(
            table.update().where(table.c.device == sa.bindparam("_device")).values(columns), rows
        )


def save_desired(connection: sa.Connection, device: DeviceId, desired: Desired) -> DesiredRow:
    """Store what is wanted of a device; it waits there until it is published."""
    row = DesiredRow(
        device, desired.generation, desired.deployment, desired.release, encode(desired), published=False
    )
    upsert(connection, desired_table, msgspec.structs.asdict(row))
    return row


def load_desired(connection: sa.Connection) -> dict[DeviceId, DesiredRow]:
    """Load what is wanted of every device."""
    return _desired(connection.execute(sa.select(desired_table)))


def load_lagging(connection: sa.Connection) -> dict[DeviceId, DesiredRow]:
    """Load what online devices have not answered to."""
    statement = (
        sa.select(desired_table)
        .join(table, table.c.device == desired_table.c.device)
        .where(table.c.online.is_(True), table.c.reported_generation < desired_table.c.generation)
    )
    return _desired(connection.execute(statement))


def mark_published(connection: sa.Connection, rows: Iterable[DesiredRow]) -> None:
    """Remember that the broker was told; a newer generation stored meanwhile stays unpublished."""
    for row in rows:
        connection.execute(
            desired_table.update()
            .where(desired_table.c.device == row.device, desired_table.c.generation == row.generation)
            .values(published=True)
        )


def _desired(rows: Iterable[Any]) -> dict[DeviceId, DesiredRow]:
    return {
        DeviceId(row.device): DesiredRow(
            row.device, row.generation, row.deployment, row.release, bytes(row.payload), bool(row.published)
        )
        for row in rows
    }


def _device(row: Any) -> Device:
    return Device(
        device=DeviceId(row.device),
        tenant=row.tenant,
        profile=row.profile,
        online=bool(row.online),
        session=row.session,
        first_seen_ms=row.first_seen_ms,
        last_seen_ms=row.last_seen_ms,
        release=row.release,
        birth=msgspec.json.decode(row.birth, type=Birth) if row.birth else None,
        reported=msgspec.json.decode(row.reported, type=Reported) if row.reported else None,
        reported_session=row.reported_session,
    )
