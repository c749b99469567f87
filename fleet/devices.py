"""What the fleet knows of each device and of each of its models, in the database.

Decides how devices, their logins, their last words and what is wanted of them are stored and loaded. What a message
means is decided in `twins`; who may be a device, in `enroll`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from edgeml.ids import DeploymentId, DeviceId, ModelName, ReleaseId, model_of
from edgeml.twin import Birth, Desired, Reported, Slot, encode

from .schema import desired as desired_table
from .schema import devices as table
from .schema import quarantines as quarantine_table
from .schema import twins as twin_table
from .store import upsert, upsert_all


class TwinKey(NamedTuple):
    """One model on one device."""

    device: DeviceId
    model: ModelName


class Twin(msgspec.Struct, frozen=True):
    """What a device said of one of its models."""

    model: ModelName
    reported: Reported | None = None
    session: str | None = None
    """The session in which it said so."""

    @property
    def generation(self) -> int:
        """Highest generation that was answered to; 0 if none."""
        return self.reported.generation if self.reported else 0

    @property
    def release(self) -> ReleaseId | None:
        """The release that runs."""
        current = self.reported.slots.current if self.reported else None
        return current.release if current else None

    def slot_with(self, release: ReleaseId) -> Slot | None:
        """Find the slot that is said to hold this release."""
        slots = self.reported.slots if self.reported else None
        installed = (slots.current, slots.previous, slots.factory) if slots else ()
        return next((slot for slot in installed if slot and slot.release == release), None)


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One enrolled device."""

    device: DeviceId
    tenant: str
    profile: str
    online: bool
    session: str | None
    first_seen_ms: int | None
    last_seen_ms: int | None
    birth: Birth | None
    models: tuple[Twin, ...] = ()
    """What it said of each model, by name."""
    quarantined: bool = False
    """Whether two devices use this identity, and an operator has not readmitted it yet."""

    def model(self, name: ModelName) -> Twin:
        """What it said of one model; an empty twin if nothing."""
        return next((twin for twin in self.models if twin.model == name), Twin(name))

    def slot_with(self, release: ReleaseId) -> Slot | None:
        """Find the slot in which the device says it has this release."""
        return self.model(model_of(release)).slot_with(release)

    def with_twin(self, twin: Twin) -> Device:
        """Replace, or add, what it said of one model."""
        others = [one for one in self.models if one.model != twin.model]
        models = tuple(sorted((*others, twin), key=lambda one: one.model))
        return msgspec.structs.replace(self, models=models)


class DesiredRow(msgspec.Struct, frozen=True):
    """What is wanted of one model on a device, and whether the broker was told."""

    device: DeviceId
    model: ModelName
    generation: int
    deployment: DeploymentId
    release: ReleaseId
    payload: bytes
    published: bool

    @property
    def key(self) -> TwinKey:
        """What it is about."""
        return TwinKey(self.device, self.model)


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
    connection.execute(table.insert().values(**msgspec.structs.asdict(enrolment), online=False))


def remove(connection: sa.Connection, device: DeviceId) -> bool:
    """Forget a device and what was wanted of it; its telemetry stays. Returns whether it was there."""
    return connection.execute(table.delete().where(table.c.device == device)).rowcount > 0


def load(connection: sa.Connection, device: DeviceId) -> Device | None:
    """Load one device."""
    return load_many(connection, [device]).get(device)


def load_many(connection: sa.Connection, names: Iterable[DeviceId]) -> dict[DeviceId, Device]:
    """Load those of these devices that are enrolled."""
    wanted = list(names)
    rows = connection.execute(_every_device().where(table.c.device.in_(wanted)))
    twins = _twins(connection, sa.select(twin_table).where(twin_table.c.device.in_(wanted)))
    return {DeviceId(row.device): _device(row, twins) for row in rows}


def load_all(connection: sa.Connection) -> tuple[Device, ...]:
    """Load every device, by name."""
    twins = _twins(connection, sa.select(twin_table))
    rows = connection.execute(_every_device().order_by(table.c.device))
    return tuple(_device(row, twins) for row in rows)


def logins(connection: sa.Connection) -> dict[DeviceId, tuple[str, str]]:
    """Hashes of every device's token: SHA-256 in hex, and in the broker's own format."""
    rows = connection.execute(
        sa.select(table.c.device, table.c.token_sha256, table.c.broker_hash).order_by(table.c.device)
    )
    return {DeviceId(row.device): (row.token_sha256, row.broker_hash) for row in rows}


def token_sha256(connection: sa.Connection, device: str) -> str | None:
    """SHA-256 in hex of a device's token."""
    return connection.scalar(sa.select(table.c.token_sha256).where(table.c.device == device))


def save(
    connection: sa.Connection, before: Mapping[DeviceId, Device], after: Mapping[DeviceId, Device]
) -> None:
    """Store what has changed since `before`, which has the same devices."""
    changed = [device for name, device in after.items() if device is not before[name]]
    rows = [
        {
            "_device": device.device,
            "online": device.online,
            "session": device.session,
            "first_seen_ms": device.first_seen_ms,
            "last_seen_ms": device.last_seen_ms,
            "birth": encode(device.birth).decode() if device.birth else None,
        }
        for device in changed
    ]
    if rows:
        columns: dict[str, Any] = {name: sa.bindparam(name) for name in rows[0] if name != "_device"}
        connection.execute(
            table.update().where(table.c.device == sa.bindparam("_device")).values(columns), rows
        )
    # Telemetry changes a device every second, and its twins hardly ever.
    twins = [
        {
            "device": device.device,
            "model": twin.model,
            "reported": encode(twin.reported).decode(),
            "generation": twin.generation,
            "session": twin.session,
            "release": twin.release,
        }
        for device in changed
        for twin in device.models
        if twin.reported is not None and twin is not before[device.device].model(twin.model)
    ]
    upsert_all(connection, twin_table, twins)


def save_desired(connection: sa.Connection, device: DeviceId, desired: Desired) -> DesiredRow:
    """Store what is wanted of a model on a device; it waits there until it is published."""
    row = DesiredRow(
        device, model_of(desired.release), desired.generation, desired.deployment, desired.release,
        encode(desired), published=False,
    )  # fmt: skip
    upsert(connection, desired_table, msgspec.structs.asdict(row))
    return row


def is_wanted(connection: sa.Connection, key: TwinKey) -> bool:
    """Tell whether the fleet ever wanted anything of this model there."""
    wanted = sa.select(desired_table.c.generation).where(
        desired_table.c.device == key.device, desired_table.c.model == key.model
    )
    return connection.scalar(wanted) is not None


def load_desired(connection: sa.Connection) -> dict[TwinKey, DesiredRow]:
    """Load what is wanted of every model on every device."""
    return _desired(connection.execute(sa.select(desired_table)))


def load_lagging(connection: sa.Connection) -> dict[TwinKey, DesiredRow]:
    """Load what online devices have not answered to, but for those in quarantine."""
    statement = (
        sa.select(desired_table)
        .join(table, table.c.device == desired_table.c.device)
        .outerjoin(
            twin_table,
            sa.and_(
                twin_table.c.device == desired_table.c.device, twin_table.c.model == desired_table.c.model
            ),
        )
        .outerjoin(quarantine_table, quarantine_table.c.device == table.c.device)
        .where(
            table.c.online.is_(True),
            quarantine_table.c.device.is_(None),
            sa.func.coalesce(twin_table.c.generation, 0) < desired_table.c.generation,
        )
    )
    return _desired(connection.execute(statement))


def mark_published(connection: sa.Connection, rows: Iterable[DesiredRow]) -> None:
    """Remember that the broker was told; a newer generation stored meanwhile stays unpublished."""
    for row in rows:
        connection.execute(
            desired_table.update()
            .where(
                desired_table.c.device == row.device,
                desired_table.c.model == row.model,
                desired_table.c.generation == row.generation,
            )
            .values(published=True)
        )


def _every_device() -> sa.Select[Any]:
    kept_out = quarantine_table.c.device.is_not(None).label("quarantined")
    return sa.select(table, kept_out).outerjoin(quarantine_table, quarantine_table.c.device == table.c.device)


def _desired(rows: Iterable[Any]) -> dict[TwinKey, DesiredRow]:
    loaded = [
        DesiredRow(
            row.device, row.model, row.generation, row.deployment, row.release,
            bytes(row.payload), bool(row.published),
        )
        for row in rows
    ]  # fmt: skip
    return {row.key: row for row in loaded}


def _twins(connection: sa.Connection, wanted: sa.Select[Any]) -> dict[DeviceId, tuple[Twin, ...]]:
    """Load twins by device: one query, however many devices."""
    found: dict[DeviceId, list[Twin]] = {}
    for row in connection.execute(wanted.order_by(twin_table.c.device, twin_table.c.model)):
        reported = msgspec.json.decode(row.reported, type=Reported)
        found.setdefault(DeviceId(row.device), []).append(Twin(ModelName(row.model), reported, row.session))
    return {device: tuple(twins) for device, twins in found.items()}


def _device(row: Any, twins: Mapping[DeviceId, tuple[Twin, ...]]) -> Device:
    return Device(
        device=DeviceId(row.device),
        tenant=row.tenant,
        profile=row.profile,
        online=bool(row.online),
        session=row.session,
        first_seen_ms=row.first_seen_ms,
        last_seen_ms=row.last_seen_ms,
        birth=msgspec.json.decode(row.birth, type=Birth) if row.birth else None,
        models=twins.get(DeviceId(row.device), ()),
        quarantined=bool(row.quarantined),
    )
