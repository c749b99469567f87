"""What an operator wants to see: devices, rollouts, drift, at one moment.

Decides which facts are shown together and how a device's part in a rollout is called. Read from the database only, so
it is the same with and without a running controller. How it is printed is the command line's business, and `api`'s.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import msgspec
import sqlalchemy as sa

from edgeml.ids import DeviceId, ModelName, ReleaseId, model_of
from edgeml.telemetry import Loss
from edgeml.twin import GOOD, DeviceState, Outcome

from . import devices, floods, quarantines, removals, rollout_store, schema, telemetry_store
from .devices import DesiredRow, Device, Twin
from .floods import Flood
from .quarantines import Quarantine
from .rollout import MetricEvidence, Rollout
from .rollout_store import AssignmentRow, RolloutEvent
from .store import Store

if TYPE_CHECKING:
    from .drift_report import DriftRow


LATELY_MS: Final = 30 * 86_400_000
"""Windows older than this say nothing about what a device sees."""


class Part(enum.Enum):
    """Where a device stands in a rollout."""

    NOT_ASKED = "not asked"
    ASKED = "asked"
    DONE = "done"
    REVERTED = "reverted"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    """Two devices use its identity, and it had not finished."""
    REMOVED = "removed"
    """It left the fleet while the rollout was under way."""


class ControllerView(msgspec.Struct, frozen=True):
    """The controller, as it last wrote."""

    id: str
    started_at_ms: int
    seen_at_ms: int
    connected: bool
    refused: dict[str, int]


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """One model on a device: what runs, and what is wanted."""

    model: ModelName
    release: ReleaseId | None
    state: DeviceState | None
    desired_release: ReleaseId | None
    desired_generation: int
    reported_generation: int
    outcome: Outcome | None
    reason: str


class DeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """One device."""

    device: DeviceId
    profile: str
    online: bool
    last_seen_ms: int | None
    models: tuple[ModelView, ...]
    """What it spoke of or what is wanted of it, by name."""
    rows: Loss
    over_quota: Flood | None = None
    """What was turned away of it; None: nothing, ever."""
    quarantine: Quarantine | None = None
    """Since when rollouts do without it, and why."""
    frozen_since_ms: int | None = None
    """When it first saw that the fleet's signed metadata have expired; it installs nothing new. None: they are fresh."""


class FleetView(msgspec.Struct, frozen=True):
    """The fleet."""

    at_ms: int
    controller: ControllerView | None
    devices: tuple[DeviceView, ...]
    releases: dict[ReleaseId, int]
    """Devices by the release they run, of all models: a device counts once for each model it runs."""
    unfinished_rollouts: tuple[str, ...]
    signed_until_ms: int | None = None
    """When the first of the fleet's signatures expires; None where nobody looked at its repository."""


class RolloutDeviceView(msgspec.Struct, frozen=True, kw_only=True):
    """One device's part in a rollout."""

    device: DeviceId
    online: bool
    part: Part
    release: ReleaseId | None
    """What it runs of the rollout's model."""
    outcome: Outcome | None = None
    reason: str = ""
    retry: int = 0


class RolloutView(msgspec.Struct, frozen=True):
    """One rollout."""

    rollout: Rollout
    parts: dict[str, int]
    devices: tuple[RolloutDeviceView, ...]
    events: tuple[RolloutEvent, ...]
    evidence: tuple[MetricEvidence, ...]
    """What the field said when it was last looked at."""


def status(store: Store, now_ms: int) -> FleetView:
    """Look at the fleet."""
    with store.read() as connection:
        fleet = devices.load_all(connection)
        wanted: dict[DeviceId, dict[ModelName, DesiredRow]] = {}
        for row_wanted in devices.load_desired(connection).values():
            wanted.setdefault(row_wanted.device, {})[row_wanted.model] = row_wanted
        losses = telemetry_store.losses(connection)
        flooded, kept_out = floods.load(connection), quarantines.load(connection)
        unfinished = rollout_store.load_unfinished(connection)
        row = connection.execute(
            sa.select(schema.controllers).order_by(schema.controllers.c.seen_at_ms.desc())
        ).first()
    controller = None
    if row is not None:
        refused = msgspec.json.decode(row.refused, type=dict[str, int])
        controller = ControllerView(row.id, row.started_at_ms, row.seen_at_ms, bool(row.connected), refused)
    views = tuple(
        msgspec.structs.replace(
            _device_view(device, wanted.get(device.device, {}), losses.get(device.device, Loss())),
            over_quota=flooded.get(device.device),
            quarantine=kept_out.get(device.device),
        )
        for device in fleet
    )
    running = (model.release for view in views for model in view.models)
    releases = Counter(release for release in running if release is not None)
    return FleetView(now_ms, controller, views, dict(releases), tuple(one.id for one in unfinished))


def rollouts(store: Store) -> tuple[Rollout, ...]:
    """List every rollout, newest first."""
    with store.read() as connection:
        return rollout_store.load_all(connection)


def rollout(store: Store, rollout_id: str) -> RolloutView | None:
    """Look at one rollout."""
    with store.read() as connection:
        found = rollout_store.load(connection, rollout_id)
        if found is None:
            return None
        assignments = rollout_store.load_assignments(connection, rollout_id)
        events = rollout_store.load_events(connection, rollout_id)
        evidence = rollout_store.load_evidence(connection, rollout_id)
        removed = removals.load(connection, rollout_id)
        fleet = devices.load_all(connection)
    model = found.plan.model
    views = tuple(
        _part_view(device, device.model(model).release, assignments.get(device.device)) for device in fleet
    )
    views += tuple(
        RolloutDeviceView(
            device=one.device, online=False, part=Part.REMOVED, release=None, outcome=one.outcome
        )
        for one in removed.values()
    )
    counted = Counter(view.part for view in views)
    return RolloutView(found, {part.value: counted[part] for part in Part}, views, events, evidence)


def drift(store: Store, now_ms: int) -> tuple[DriftRow, ...]:
    """Judge what every model on every device saw lately, the worst first."""
    from edgeml.drift import LOOK_BACKS

    from .drift_report import report

    with store.read() as connection:
        monitors = telemetry_store.load_monitors(connection)
        newest = telemetry_store.newest_releases(connection, now_ms - LATELY_MS)
        windows = {
            device.device: {
                model_of(release): telemetry_store.recent_windows(
                    connection, device.device, release, now_ms - LATELY_MS, LOOK_BACKS[-1]
                )
                for release in newest.get(device.device, ())
            }
            for device in devices.load_all(connection)
        }
    return report(monitors, windows)


def fetched_bytes(store: Store) -> int:
    """Bytes that all decided deployments took over the network."""
    with store.read() as connection:
        return rollout_store.fetched_bytes(connection)


def inferences(store: Store) -> int:
    """Inferences that the fleet has counted."""
    with store.read() as connection:
        return telemetry_store.inferences(connection)


def _device_view(device: Device, wanted: Mapping[ModelName, DesiredRow], loss: Loss) -> DeviceView:
    names = sorted({twin.model for twin in device.models} | set(wanted))
    return DeviceView(
        device=device.device,
        profile=device.profile,
        online=device.online,
        last_seen_ms=device.last_seen_ms,
        models=tuple(_model_view(device.model(name), wanted.get(name)) for name in names),
        rows=loss,
        frozen_since_ms=device.birth.frozen_since_ms if device.birth else None,
    )


def _model_view(twin: Twin, wanted: DesiredRow | None) -> ModelView:
    reported = twin.reported
    return ModelView(
        model=twin.model,
        release=twin.release,
        state=reported.state if reported else None,
        desired_release=wanted.release if wanted else None,
        desired_generation=wanted.generation if wanted else 0,
        reported_generation=twin.generation,
        outcome=reported.outcome if reported else None,
        reason=reported.reason if reported else "",
    )


def _part_view(
    device: Device, release: ReleaseId | None, assignment: AssignmentRow | None
) -> RolloutDeviceView:
    if assignment is None:
        part = Part.QUARANTINED if device.quarantined else Part.NOT_ASKED
        return RolloutDeviceView(device=device.device, online=device.online, part=part, release=release)
    if assignment.outcome is None:
        part = Part.QUARANTINED if device.quarantined else Part.ASKED
    elif assignment.outcome not in GOOD:
        part = Part.FAILED
    else:
        part = Part.REVERTED if assignment.revert else Part.DONE
    return RolloutDeviceView(
        device=device.device,
        online=device.online,
        part=part,
        release=release,
        outcome=assignment.outcome,
        reason=assignment.reason,
        retry=assignment.retry,
    )
