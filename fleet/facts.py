"""Gathers the facts by which a rollout is decided.

Decides which device counts as what: suitable, reachable, asked, decided; which release is its incumbent, namely what it
runs of the rollout's model, whatever else it runs; and which stored windows are trials of which arm. What follows from the facts is decided in `advance`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from edgeml.ids import DeviceId, ReleaseId
from edgeml.trustfacts import SignedTarget

from .devices import Device
from .removals import Removal
from .rollout import DeviceFacts, Facts, Rollout, Trial
from .rollout_store import AssignmentRow
from .telemetry_store import SliceCounts

VariantFor = Callable[[ReleaseId, str], SignedTarget | None]
"""The repository's answer to which variant of a release suits a profile."""


def gather(
    rollout: Rollout,
    devices: Iterable[Device],
    assignments: Mapping[DeviceId, AssignmentRow],
    counts: Iterable[SliceCounts],
    variant_for: VariantFor,
    *,
    removed: Mapping[DeviceId, Removal],
) -> Facts:
    """Put together what may be looked at to decide about one rollout."""
    release = rollout.plan.release
    suitable: dict[str, bool] = {}
    facts = []
    for device in devices:
        if device.profile not in suitable:
            suitable[device.profile] = variant_for(release, device.profile) is not None
        current = device.model(rollout.plan.model).release
        facts.append(_device_facts(device, current, assignments.get(device.device), suitable[device.profile]))
    # What a device has shown stays true when it is removed, in both arms alike.
    incumbents = {one.device: one.incumbent for one in removed.values()}
    incumbents |= {one.device: one.incumbent for one in facts}
    return Facts(tuple(facts), tuple(_trials(release, counts, incumbents)), tuple(removed))


def _device_facts(
    device: Device, current: ReleaseId | None, assignment: AssignmentRow | None, suitable: bool
) -> DeviceFacts:
    if assignment is None:
        return DeviceFacts(
            device=device.device,
            online=device.online,
            suitable=suitable,
            current=current,
            incumbent=current,
            quarantined=device.quarantined,
        )
    return DeviceFacts(
        device=device.device,
        online=device.online,
        suitable=suitable,
        deployment=assignment.deployment,
        assigned_at_ms=assignment.assigned_at_ms,
        outcome=assignment.outcome,
        current=current,
        incumbent=assignment.incumbent,
        retries=assignment.retry,
        reverting=assignment.revert,
        quarantined=device.quarantined,
    )


def _trials(
    release: ReleaseId, counts: Iterable[SliceCounts], incumbents: Mapping[DeviceId, ReleaseId | None]
) -> Iterable[Trial]:
    for one in counts:
        if one.release == release:
            yield Trial(one.device, one.slice, candidate=True, counters=one.counters)
        elif one.device in incumbents and one.release == incumbents[one.device]:
            yield Trial(one.device, one.slice, candidate=False, counters=one.counters)
