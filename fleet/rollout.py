"""What a rollout is: the plan, where it stands, the facts it is judged by, and what may be decided.

Types only. How a rollout moves is `advance`'s business, what evidence stops it, `gate`'s; which device is in
which wave, `cohorts`'. All are pure. Stored and loaded by `store`.
"""

from __future__ import annotations

import enum

import msgspec

from edgeml.ids import DeploymentId, DeviceId, ModelName, ReleaseId, model_of
from edgeml.telemetry import Counters
from edgeml.twin import FullDownload, Outcome


class RolloutState(enum.Enum):
    """Where a rollout stands."""

    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"


FINISHED = frozenset({RolloutState.COMPLETED, RolloutState.ROLLED_BACK, RolloutState.ABORTED})


class WavePhase(enum.Enum):
    """What the current wave of a running rollout is doing."""

    ISSUING = "issuing"
    """Assigning the release to the wave's devices."""
    WAITING = "waiting"
    """For enough of them to decide."""
    SOAKING = "soaking"
    """Letting the field speak."""
    GATE = "gate"
    """Evidence is looked at; it is looked at in every phase, but only here may it let the rollout advance."""


class Metric(enum.Enum):
    """What a gate compares between the devices that have the release and those that do not yet."""

    WRONG = "wrong"
    """Labelled answers that were wrong."""
    LOW_CONFIDENCE = "low_confidence"
    ERRORS = "errors"
    SLOW = "slow"


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the operator asked for."""

    release: ReleaseId
    waves: tuple[float, ...] = (0.05, 0.25, 1.0)
    """Cumulative fractions of the fleet; the last is 1."""
    soak_s: float = 3600.0
    """How long a wave must have been running on enough devices before the next one starts."""
    wait_max_s: float = 7 * 86400.0
    """How long to wait for devices that have not decided; offline ones neither pass nor fail."""
    decided_min_fraction: float = 0.9
    """Fraction of the wave's reachable devices that must have decided before it may advance."""
    failed_max_fraction: float = 0.1
    """Fraction of decided devices that may have failed, refused or rolled back by themselves."""
    trials_min: int = 30
    """Inferences of the release in this wave without which there is no evidence, hence no advance."""
    evidence_stop: float = 100.0
    """E-value at which a metric stops the rollout (one in so many harmless rollouts is stopped by it, at most)."""
    retries_max: int = 3
    """How often a failed or silent device is asked again."""
    incumbent_trials_min: int = 1
    """Inferences of the incumbent, since the rollout began, without which there is nothing to compare with, hence no
    advance. Not asked for in the last wave, nor where no reachable device runs an incumbent. 0 does without."""
    full_download: FullDownload = FullDownload.ALWAYS
    """Whether devices may fetch the release in full where no delta fits what they have. The way back always may."""
    trial_s: float = 0.0
    """Seconds of real traffic on trial, before a device keeps the release."""
    shadow_s: float = 0.0
    """Seconds in which a device lets the release answer unseen, before the trial."""
    shadow_share: float = 0.1
    """Share of the requests that it answers there."""
    shadow_disagreement_max: float = 1.0
    """Share of its answers there that may be other ones; 1 only reports."""
    priority: int = 0
    """Of several models that a device is to fetch the one with the highest goes first."""

    @property
    def model(self) -> ModelName:
        """The model that is rolled out."""
        return model_of(self.release)


class Rollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One campaign: the plan and where it stands. Every change is stored before it has an effect."""

    id: str
    plan: Plan
    state: RolloutState = RolloutState.RUNNING
    wave: int = 0
    phase: WavePhase = WavePhase.ISSUING
    phase_since_ms: int
    created_at_ms: int
    wave_since_ms: int = 0
    """When the current wave began, or was resumed. Set by `advance`."""
    issued_at_ms: int = 0
    """When devices were last asked. Set by `advance`, which asks nobody twice in the same instant."""
    trials_before: int = 0
    """Inferences of the release counted before the current wave began. Set by `advance`."""
    failures_accepted: int = 0
    """Failures that the operator knew of when resuming; only later ones pause the rollout again. Set by `advance`."""
    reason: str = ""
    """Why it is paused, rolled back or aborted; of a running one, what it waits for."""
    requested: RolloutState | None = None
    """What the operator asked for and the controller has not carried out yet: PAUSED, RUNNING (resume) or ABORTED."""


class DeviceFacts(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What the controller knows of one device, as far as a rollout cares."""

    device: DeviceId
    online: bool
    suitable: bool
    """Whether the release has a variant for this device's profile."""
    deployment: DeploymentId | None = None
    """The deployment the device is asked to carry out now, if it is one of this rollout."""
    assigned_at_ms: int | None = None
    outcome: Outcome | None = None
    """How that deployment ended; None while it has not."""
    current: ReleaseId | None = None
    """The release of the rollout's model that it says it runs."""
    incumbent: ReleaseId | None = None
    """The release it ran before this rollout touched it: what a rollback goes back to."""
    retries: int = 0
    reverting: bool = False
    """Whether `deployment` is the rollback of this rollout."""
    quarantined: bool = False
    """Whether two devices use its identity: it is asked nothing, and what it says decides nothing."""


class Trial(msgspec.Struct, frozen=True):
    """What one device counted in one slice of time, in one arm.

    Slices are equal spans of time, numbered alike for all devices (`started_at_ms // slice_ms`).
    """

    device: DeviceId
    slice: int
    candidate: bool
    """True: the rollout's release answered; False: the release it is to replace."""
    counters: Counters


class Facts(msgspec.Struct, frozen=True):
    """All that a decision may look at."""

    devices: tuple[DeviceFacts, ...]
    """The fleet."""
    trials: tuple[Trial, ...]
    """Everything since the rollout began, in any order."""
    removed: tuple[DeviceId, ...] = ()
    """Devices that left the fleet while the rollout was under way."""


class MetricEvidence(msgspec.Struct, frozen=True):
    """What the field says about one metric."""

    metric: Metric
    log_e: float
    """Against "no worse than the incumbent", with the most incriminating device left out."""
    candidate_rate: float
    incumbent_rate: float
    candidate_trials: int
    incumbent_trials: int


class Assignment(msgspec.Struct, frozen=True):
    """What a device is to be asked."""

    device: DeviceId
    release: ReleaseId
    revert: bool
    retry: int = 0


class Decision(msgspec.Struct, frozen=True):
    """What to do, with the evidence for it."""

    rollout: Rollout
    """The rollout as it stands after the decision."""
    assignments: tuple[Assignment, ...] = ()
    event: str = ""
    """One line for the rollout's history; empty if nothing is worth telling."""
    evidence: tuple[MetricEvidence, ...] = ()
