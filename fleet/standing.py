"""What each device means to a rollout that goes forward.

Decides it from the facts: who has the release, who is asked, who failed, who is in reach, who is in the wave. What the
rollout does about it is decided in `advance`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from edgeml.ids import DeviceId
from edgeml.twin import GOOD, Outcome

from .cohorts import members
from .gate import weigh
from .rollout import DeviceFacts, Facts, Metric, MetricEvidence, Plan, Rollout, RolloutState


class Standing(enum.Enum):
    """What one device means to a rollout that goes forward."""

    UNSUITABLE = "unsuitable"
    UNTOUCHED = "untouched"
    ASKED = "asked"
    GOOD = "good"
    FAILED = "failed"
    LEFT = "left"
    """Somebody else asked something of it meanwhile."""
    QUARANTINED = "quarantined"
    """Two devices use its identity: the rollout does without it, whatever it was asked."""


_DECIDED: Final = {Standing.GOOD, Standing.FAILED}


@dataclass(frozen=True, slots=True)
class View:
    """The facts, as seen by one rollout."""

    rollout: Rollout
    now_ms: int
    devices: tuple[DeviceFacts, ...]
    waves: dict[DeviceId, int]
    """Wave of each device that is suitable or was asked."""
    standings: dict[DeviceId, Standing]
    evidence: tuple[MetricEvidence, ...]
    """Empty without trials, and while the rollout goes back."""
    removed: int = 0
    """Devices that left the fleet meanwhile."""

    def standing(self, device: DeviceFacts) -> Standing:
        """Say what a device means."""
        return self.standings[device.device]

    def reached(self) -> list[DeviceFacts]:
        """Devices of this wave and of earlier ones."""
        return [
            one
            for one in self.devices
            if self.waves.get(one.device, len(self.rollout.plan.waves)) <= self.rollout.wave
        ]

    def wave(self) -> list[DeviceFacts]:
        """Devices of this wave."""
        return [one for one in self.devices if self.waves.get(one.device) == self.rollout.wave]

    def touched(self) -> list[DeviceFacts]:
        """Devices that were asked, whatever became of it, and that may be asked more."""
        return [one for one in self.devices if one.deployment is not None and not one.quarantined]

    def counted(self, devices: Iterable[DeviceFacts]) -> tuple[int, int]:
        """How many have decided, and how many of them can: offline ones without a decision do not count."""
        standings = [(self.standing(one), one.online) for one in devices]
        decided = sum(standing in _DECIDED for standing, _ in standings)
        pending = sum(
            online and standing in {Standing.UNTOUCHED, Standing.ASKED} for standing, online in standings
        )
        return decided, decided + pending

    def failures(self) -> int:
        """How many devices failed for good."""
        return sum(self.standing(one) is Standing.FAILED for one in self.devices)

    def without(self) -> str:
        """Say whom the rollout does without, to be added to a line; empty if nobody."""
        kept_out = sum(one.quarantined for one in self.devices)
        said = f", {kept_out} in quarantine were left as they are" * bool(kept_out)
        return said + f", {self.removed} were removed meanwhile" * bool(self.removed)

    def trials(self) -> MetricEvidence | None:
        """Evidence of the metric whose trials are inferences."""
        return next((one for one in self.evidence if one.metric is Metric.SLOW), None)

    def since_s(self, at_ms: int) -> float:
        """Seconds since a time."""
        return (self.now_ms - at_ms) / 1000.0


def _standing(device: DeviceFacts, plan: Plan) -> Standing:
    if device.quarantined:
        return Standing.QUARANTINED
    if device.deployment is None:
        if device.current == plan.release:
            return Standing.GOOD
        return Standing.UNTOUCHED if device.suitable else Standing.UNSUITABLE
    match device.outcome:
        case None:
            return Standing.ASKED
        case Outcome.SUPERSEDED:
            return Standing.LEFT
        case Outcome.FAILED if device.retries < plan.retries_max:
            return Standing.ASKED
        case outcome if outcome in GOOD and device.current in {None, plan.release}:
            return Standing.GOOD
        case _:
            # Also a device that says it is done and runs something else.
            return Standing.FAILED


def view_of(rollout: Rollout, facts: Facts, now_ms: int) -> View:
    """Look at the facts as one rollout sees them, with the evidence weighed."""
    concerned = [
        one.device
        for one in facts.devices
        if (one.deployment is not None or one.suitable) and not one.quarantined
    ]
    waves = members(concerned, rollout.id, rollout.plan.waves)
    going_back = rollout.state is RolloutState.ROLLING_BACK
    evidence = () if going_back or not facts.trials else weigh(facts.trials)
    standings = {one.device: _standing(one, rollout.plan) for one in facts.devices}
    # Whoever failed and is gone hides no failure of another.
    failures = sum(standing is Standing.FAILED for standing in standings.values())
    if failures < rollout.failures_accepted:
        rollout = msgspec.structs.replace(rollout, failures_accepted=failures)
    return View(rollout, now_ms, facts.devices, waves, standings, evidence, len(facts.removed))
