"""Writes down what devices said: a batch of messages, in one transaction.

Decides who is heard at all: a device that is enrolled; of one in quarantine neither rows nor outcomes are taken in. Which
words are believed is decided in `twins`, which messages make sense, in `ingest`, who is two devices, in `clones`;
acknowledging what was stored is `service`'s business.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec
import sqlalchemy as sa

from edgeml import twin
from edgeml.clock import Clock
from edgeml.ids import DeviceId, model_of

from . import devices as device_store
from . import quarantines, rollout_store, telemetry_store, twins
from .clones import Lives, hear
from .devices import Device, TwinKey
from .ingest import BirthHeard, Heard, PresenceHeard, ReportHeard, RowsHeard
from .quarantines import TWO_DEVICES, Quarantine
from .refusals import Refusals
from .telemetry_store import Stored

logger = logging.getLogger(__name__)


class Hearing:
    """Takes in what devices say."""

    def __init__(self, clock: Clock, refusals: Refusals) -> None:
        self._clock = clock
        self._refusals = refusals
        self._lives: dict[DeviceId, Lives] = {}
        """Of who was heard since the start; whoever is two is so again after a start, and is noticed then."""
        self._now_ms = 0
        self._link_since_ms = 0

    def store(self, connection: sa.Connection, heard: Iterable[Heard], link_since_ms: int) -> Stored:
        """Store what was heard, in this order; `link_since_ms` is when the controller's own link came up."""
        self._now_ms, self._link_since_ms = self._clock.now_ms(), link_since_ms
        everything = tuple(heard)
        known = device_store.load_many(connection, {one.device for one in everything})
        before = dict(known)
        rows: list[RowsHeard] = []
        for one in everything:
            device = known.get(one.device)
            if device is None:
                self._refuse("unknown device", one.device, "it is not enrolled (any more)")
                continue
            known[one.device] = device = self._apply(connection, device, one)
            if isinstance(one, RowsHeard) and not device.quarantined:
                rows.append(one)
        device_store.save(connection, before, known)
        return telemetry_store.store_rows(connection, rows, self._now_ms)

    def _apply(self, connection: sa.Connection, device: Device, heard: Heard) -> Device:
        match heard:
            case PresenceHeard(_, presence):
                return twins.on_presence(device, presence, self._now_ms, self._link_since_ms)
            case BirthHeard(_, birth):
                if birth.profile != device.profile:
                    self._refuse(
                        "other profile", device.device, f"enrolled as {device.profile}, says {birth.profile}"
                    )
                return self._watch(connection, twins.on_birth(device, birth, self._now_ms), birth.session)
            case ReportHeard(_, model, reported):
                key = TwinKey(device.device, model)
                if not twins.has_room(device, model) and not device_store.is_wanted(connection, key):
                    self._refuse("too many models", device.device, f"{model} is none that is wanted there")
                    return device
                after = twins.on_report(device, model, reported)
                if after is device:
                    self._refusals.counts["old report"] += 1
                elif not device.quarantined:
                    self._judge(connection, key, reported)
                return after
            case RowsHeard():
                if device.quarantined:
                    self._refuse("quarantined", device.device, "its rows wait until it is readmitted")
                return twins.on_rows(device, self._now_ms)

    def _watch(self, connection: sa.Connection, device: Device, session: str) -> Device:
        """Look whether two devices use this identity."""
        if device.quarantined:
            return device
        lives = hear(self._lives.get(device.device, Lives()), session, self._clock.monotonic_s())
        self._lives[device.device] = lives
        if not lives.are_of_two:
            return device
        # Once it is readmitted, it is looked at anew.
        del self._lives[device.device]
        quarantines.impose(connection, device.device, Quarantine(self._now_ms, TWO_DEVICES))
        logger.error(
            "%s: %s; it is in quarantine until `edgeml fleet device readmit %s`",
            device.device,
            TWO_DEVICES,
            device.device,
        )
        return msgspec.structs.replace(device, quarantined=True)

    def _judge(self, connection: sa.Connection, key: TwinKey, reported: twin.Reported) -> None:
        if reported.deployment is None or reported.outcome is None:
            return
        row = rollout_store.undecided(connection, key.device, reported.deployment)
        if row is None or model_of(row.release) != key.model:
            return
        verdict = twins.verdict(row.deployment, row.digest, reported)
        if verdict is None:
            return
        rollout_store.decide(connection, row, verdict, self._now_ms)
        logger.info("%s: %s %s %s", key.device, row.release, verdict.outcome.value, verdict.reason)

    def _refuse(self, why: str, who: str, detail: str) -> None:
        self._refusals.add(why, who, detail, self._clock.monotonic_s())
