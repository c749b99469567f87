"""What a device's words change.

Decides which words are believed: an old last will does not end a new life, an old report does not undo a newer one,
and a device that claims success while it runs other bytes is not believed. Pure: what was known and what was heard in,
what is known now out. Reading messages is `ingest`'s business, storing `devices`'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from edgeml.ids import DeploymentId, Digest, ModelName
from edgeml.twin import GOOD, MODELS_MAX, Birth, Outcome, Presence, Reported

from .devices import Device, Twin

NOT_BELIEVED: Final = "it says the deployment succeeded, but it runs other content"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a deployment ended."""

    outcome: Outcome
    reason: str
    fetched_bytes: int = 0


def on_presence(device: Device, presence: Presence, now_ms: int, link_since_ms: int) -> Device:
    """Take in `state`.

    A broker sends the last will of a dead connection when it notices, perhaps after the device is back under a new
    session: such a will is not believed. But if nothing was heard of the device since the controller's own link came
    up, the retained message is the newest there is, whatever its session. It may still be such a late will, so it does
    not say which life is the device's: if rows come after all, they are of the one that was known.
    """
    if presence.online:
        return _seen(device, now_ms, presence.session)
    unheard = device.last_seen_ms is None or device.last_seen_ms < link_since_ms
    if presence.session == device.session or unheard:
        return msgspec.structs.replace(device, online=False)
    return device


def on_birth(device: Device, birth: Birth, now_ms: int) -> Device:
    """Take in `birth`."""
    return msgspec.structs.replace(_seen(device, now_ms, birth.session), birth=birth)


def has_room(device: Device, model: ModelName) -> bool:
    """Tell whether the device may speak of this model: it must not fill the database with models that nobody wants."""
    return len(device.models) < MODELS_MAX or any(twin.model == model for twin in device.models)


def on_report(device: Device, model: ModelName, reported: Reported) -> Device:
    """Take in `reported` of one model; returns `device` itself if the report is an old one.

    What it said of other models stays. Generations only fall when the device has lost its memory, and then it has a new session too. Reports do not make
    a device online: a retained one may be older than its last will.
    """
    twin = device.model(model)
    known = twin.reported
    if known is not None and device.session == twin.session:
        falls = reported.generation < known.generation
        forgets = (
            reported.deployment == known.deployment and known.outcome is not None and reported.outcome is None
        )
        if falls or forgets:
            return device
    return device.with_twin(Twin(model, reported, device.session))


def on_rows(device: Device, now_ms: int) -> Device:
    """Take in that telemetry came: it is never retained, so the device was there."""
    return _seen(device, now_ms, device.session)


def verdict(deployment: DeploymentId, digest: Digest, reported: Reported) -> Verdict | None:
    """Tell how a deployment of the bundle with this digest ended, if the report says so."""
    if reported.deployment != deployment or reported.outcome is None:
        return None
    current = reported.slots.current
    if reported.outcome in GOOD and (current is None or current.digest != digest):
        return Verdict(Outcome.FAILED, NOT_BELIEVED, reported.fetched_bytes)
    return Verdict(reported.outcome, reported.reason, reported.fetched_bytes)


def _seen(device: Device, now_ms: int, session: str | None) -> Device:
    first_ms = now_ms if device.first_seen_ms is None else device.first_seen_ms
    return msgspec.structs.replace(
        device, online=True, session=session, first_seen_ms=first_ms, last_seen_ms=now_ms
    )
