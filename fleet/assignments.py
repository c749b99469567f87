"""Writes down what a decision asks of devices.

Decides the generation, which counts for each device and model by itself, and what the device ran before. Whom to ask is
decided in `advance`, what exactly a device is asked in `deployments`; telling the broker is `service`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from edgeml.ids import DeviceId

from . import devices as device_store
from . import rollout_store
from .deployments import desired_for
from .devices import DesiredRow, TwinKey
from .facts import VariantFor
from .rollout import Decision
from .rollout_store import AssignmentRow


@dataclass(frozen=True, slots=True)
class Unsuited:
    """A device for whose profile there is no variant."""

    device: DeviceId
    detail: str


def store(
    connection: sa.Connection, decision: Decision, variant_for: VariantFor, now_ms: int
) -> tuple[list[DesiredRow], list[Unsuited]]:
    """Store a decision's assignments; return what is to be said, and who cannot be asked."""
    rollout, model = decision.rollout, decision.rollout.plan.model
    fleet = device_store.load_many(connection, [one.device for one in decision.assignments])
    before = rollout_store.load_assignments(connection, rollout.id)
    wanted = device_store.load_desired(connection)
    asked: list[DesiredRow] = []
    unsuited: list[Unsuited] = []
    for assignment in decision.assignments:
        device = fleet.get(assignment.device)
        if device is None or device.quarantined:
            continue  # removed, or in quarantine, since the facts were gathered
        twin, known = device.model(model), wanted.get(TwinKey(device.device, model))
        # A device may be ahead of the database: it was restored from a backup, or the device enrolled again.
        generation = max(known.generation if known else 0, twin.generation) + 1
        desired = desired_for(assignment, rollout, device, generation, variant_for)
        if desired is None:
            detail = f"{assignment.release} has no variant for {device.profile}"
            unsuited.append(Unsuited(device.device, detail))
            continue
        earlier = before.get(device.device)
        row = AssignmentRow(
            device=device.device,
            deployment=desired.deployment,
            rollout=rollout.id,
            generation=generation,
            release=desired.release,
            digest=desired.digest,
            revert=assignment.revert,
            retry=assignment.retry,
            incumbent=earlier.incumbent if earlier else twin.release,
            assigned_at_ms=now_ms,
        )
        rollout_store.save_assignment(connection, row)
        asked.append(device_store.save_desired(connection, device.device, desired))
    return asked, unsuited
