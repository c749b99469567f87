"""Turns an assignment into what a device is asked.

Decides the deployment's name, the generation, and which signed variant is meant. A rollback names what the device
itself says it has in a slot, because only that needs no download and is always allowed.
"""

from __future__ import annotations

import hashlib
from typing import Final

from edgeml.ids import DeploymentId, DeviceId
from edgeml.twin import Desired, Policy

from .devices import Device
from .facts import VariantFor
from .rollout import Assignment, Rollout

ROLLOUT_CHARACTERS_MAX: Final = 30
_DEVICE_CHARACTERS_MAX: Final = 20


def desired_for(
    assignment: Assignment, rollout: Rollout, device: Device, generation: int, variant_for: VariantFor
) -> Desired | None:
    """Write down what is wanted of a device; None if no variant of the release suits it."""
    target, digest = None, None
    if assignment.revert and (slot := device.slot_with(assignment.release)) is not None:
        target, digest = slot.target, slot.digest
    elif (signed := variant_for(assignment.release, device.profile)) is not None:
        target, digest = signed.path, signed.digest
    if target is None or digest is None:
        return None
    # A bad release is worse than a large bill: the way back is never forbidden.
    policy = Policy(priority=rollout.plan.priority)
    if not assignment.revert:
        plan = rollout.plan
        policy = Policy(
            soak_s=plan.trial_s,
            full_download=plan.full_download,
            shadow_s=plan.shadow_s,
            shadow_share=plan.shadow_share,
            shadow_disagreement_max=plan.shadow_disagreement_max,
            priority=plan.priority,
        )
    return Desired(
        generation=generation, deployment=deployment_id(rollout.id, device.device, generation),
        release=assignment.release, target=target, digest=digest, policy=policy,
    )  # fmt: skip


def deployment_id(rollout_id: str, device: DeviceId, generation: int) -> DeploymentId:
    """Name a deployment: at most 63 characters, unlike that of any other device or generation.

    >>> deployment_id("digits-1.1.0-7f3a", DeviceId("cam-1"), 4)
    'digits-1.1.0-7f3a:cam-1:4'
    """
    short = str(device)
    if len(short) > _DEVICE_CHARACTERS_MAX:
        short = f"{device[: _DEVICE_CHARACTERS_MAX - 7]}-{hashlib.sha256(device.encode()).hexdigest()[:6]}"
    return DeploymentId(f"{rollout_id[:ROLLOUT_CHARACTERS_MAX]}:{short}:{generation}")
