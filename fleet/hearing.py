"""Writes down what devices said: a batch of messages, in one transaction.

Decides who is heard at all: a device that is enrolled. Which words are believed is decided in `twins`, which messages
make sense, in `ingest`; acknowledging what was stored is `service`'s business.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import sqlalchemy as sa

from edgeml import twin
from edgeml.clock import Clock
from edgeml.ids import model_of

from . import devices as device_store
from . import rollout_store, telemetry_store, twins
from .devices import Device, TwinKey
from .ingest import BirthHeard, Heard, PresenceHeard, ReportHeard, RowsHeard
from .refusals import Refusals
from .telemetry_store import Stored

logger = logging.getLogger(__name__)


class Hearing:
    """Takes in what devices say."""

    def __init__(self, clock: Clock, refusals: Refusals) -> None:
        self._clock = clock
        self._refusals = refusals

    def store(self, connection: sa.Connection, heard: Iterable[Heard], link_since_ms: int) -> Stored:
        """Store what was heard, in this order; `link_since_ms` is when the controller's own link came up."""
        now_ms = self._clock.now_ms()
        everything = tuple(heard)
        known = device_store.load_many(connection, {one.device for one in everything})
        before = dict(known)
        rows: list[RowsHeard] = []
        for one in everything:
            device = known.get(one.device)
            if device is None:
                self._refuse("unknown device", one.device, "it is not enrolled (any more)")
                continue
            if isinstance(one, PresenceHeard):
                known[one.device] = twins.on_presence(device, one.presence, now_ms, link_since_ms)
                continue
            known[one.device] = self._apply(connection, device, one, now_ms)
            if isinstance(one, RowsHeard):
                rows.append(one)
        device_store.save(connection, before, known)
        return telemetry_store.store_rows(connection, rows, now_ms)

    def _apply(
        self,
        connection: sa.Connection,
        device: Device,
        heard: BirthHeard | ReportHeard | RowsHeard,
        now_ms: int,
    ) -> Device:
        match heard:
            case BirthHeard(_, birth):
                if birth.profile != device.profile:
                    self._refuse(
                        "other profile", device.device, f"enrolled as {device.profile}, says {birth.profile}"
                    )
                return twins.on_birth(device, birth, now_ms)
            case ReportHeard(_, model, reported):
                key = TwinKey(device.device, model)
                if not twins.has_room(device, model) and not device_store.is_wanted(connection, key):
                    self._refuse("too many models", device.device, f"{model} is none that is wanted there")
                    return device
                after = twins.on_report(device, model, reported)
                if after is device:
                    self._refusals.counts["old report"] += 1
                else:
                    self._judge(connection, key, reported, now_ms)
                return after
            case RowsHeard():
                return twins.on_rows(device, now_ms)

    def _judge(self, connection: sa.Connection, key: TwinKey, reported: twin.Reported, now_ms: int) -> None:
        if reported.deployment is None or reported.outcome is None:
            return
        row = rollout_store.undecided(connection, key.device, reported.deployment)
        if row is None or model_of(row.release) != key.model:
            return
        verdict = twins.verdict(row.deployment, row.digest, reported)
        if verdict is None:
            return
        rollout_store.decide(connection, row, verdict, now_ms)
        logger.info("%s: %s %s %s", key.device, row.release, verdict.outcome.value, verdict.reason)

    def _refuse(self, why: str, who: str, detail: str) -> None:
        self._refusals.add(why, who, detail, self._clock.monotonic_s())
