"""The device twin: what the fleet wants, what the device says is true.

Decides the messages `desired`, `reported`, `state`, `birth` and `ack`, and their codec. Who sends which on what
topic is `edgeml.topics`' business; what a device does with `desired`, the agent's. Wire: docs/protocol.md.
"""

from __future__ import annotations

import enum
from typing import Final, TypeVar

import msgspec

from .errors import ManifestError
from .ids import DeploymentId, DeviceId, Digest, ReleaseId

PROTOCOL_VERSION: Final = 1
MESSAGE_BYTES_MAX: Final = 8 << 10
MODELS_MAX: Final = 16
"""Models that a device may have."""
T = TypeVar("T")


class DeviceState(enum.Enum):
    """Where the update machine of one of the device's models stands (`agent.machine` holds the transitions)."""

    IDLE = "idle"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    STAGED = "staged"
    SHADOWING = "shadowing"
    COMPARING = "comparing"
    ACTIVATING = "activating"
    TRIAL = "trial"
    COMMITTING = "committing"
    ROLLING_BACK = "rolling_back"
    REPORTING = "reporting"
    STRANDED = "stranded"


class Outcome(enum.Enum):
    """How a deployment ended on a device."""

    COMMITTED = "committed"
    ALREADY_INSTALLED = "already_installed"
    REVERTED = "reverted"
    """Went back to the previous slot because `desired` asked for it."""
    ROLLED_BACK = "rolled_back"
    """Tried, found wanting by the device itself, previous slot restored."""
    REJECTED = "rejected"
    """Refused before it was tried; the same content is never tried again."""
    FAILED = "failed"
    """Could not be fetched or stored in the attempts allowed."""
    SUPERSEDED = "superseded"
    STRANDED = "stranded"
    """No slot could be restored; the device serves nothing and says so."""


class FullDownload(enum.Enum):
    """Whether a device may fetch a bundle in full where no delta can be used."""

    ALWAYS = "always"
    NEVER = "never"
    """It refuses instead: for links that are paid by the byte."""


GOOD: Final = frozenset({Outcome.COMMITTED, Outcome.ALREADY_INSTALLED, Outcome.REVERTED})


class Message(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Base of the twin's messages. Unknown fields are ignored: newer peers may say more."""

    protocol: int = PROTOCOL_VERSION


class Policy(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a device is to carry out a deployment."""

    soak_s: float = 0.0
    """Seconds of real traffic in trial before the commit."""
    attempts_max: int = 5
    """Fetches that bring nothing, and activations, tried before giving up."""
    trial_restarts_max: int = 2
    """Restarts tolerated during the trial."""
    full_download: FullDownload = FullDownload.ALWAYS
    shadow_s: float = 0.0
    """Seconds in the shadow of the variant that serves, before the trial; 0 does without, and so does a first variant."""
    shadow_share: float = 0.1
    """Share of the requests that it is given there."""
    shadow_disagreement_max: float = 1.0
    """Share of its answers there that may differ; 1 only reports."""
    priority: int = 0
    """Of several models to be fetched the one with the highest goes first."""


class Desired(Message, frozen=True, kw_only=True):
    """What the fleet wants of one model on one device. Retained; the highest generation of that model counts."""

    generation: int
    deployment: DeploymentId
    release: ReleaseId
    target: str
    """Path of the variant in signed metadata."""
    digest: Digest
    """Names the bundle; it is trusted only after signed metadata says the same."""
    policy: Policy = Policy()
    expires_at_ms: int | None = None


class Slot(msgspec.Struct, frozen=True):
    """An installed variant."""

    release: ReleaseId
    digest: Digest
    target: str
    release_counter: int


class Slots(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is installed of one model. `current` runs; `previous` is what a rollback restores; `factory` is the last resort."""

    current: Slot | None = None
    previous: Slot | None = None
    factory: Slot | None = None

    def holding(self, digest: Digest) -> Slot | None:
        """Find the slot with this digest."""
        return next(
            (slot for slot in (self.current, self.previous, self.factory) if slot and slot.digest == digest),
            None,
        )


class Reported(Message, frozen=True, kw_only=True):
    """What the device says is true of one model; the topic names it. Retained."""

    generation: int
    deployment: DeploymentId | None = None
    state: DeviceState = DeviceState.IDLE
    slots: Slots = Slots()
    outcome: Outcome | None = None
    reason: str = ""
    attempt: int = 0
    fetched_bytes: int = 0
    """Bytes this deployment took over the network, repetitions included."""
    at_ms: int = 0


class Presence(Message, frozen=True, kw_only=True):
    """Topic `state`: retained, and the last will with `online` false. `session` tells an old will from a new life."""

    online: bool
    session: str
    at_ms: int = 0


class Birth(Message, frozen=True, kw_only=True):
    """The device's inventory, sent on every connection, and when it freezes or thaws."""

    device: DeviceId
    session: str
    profile: str
    agent_version: str
    runtimes: dict[str, str] = msgspec.field(default_factory=dict)
    memory_bytes: int = 0
    memory_free_bytes: int = 0
    storage_free_bytes: int = 0
    clock_trusted: bool = True
    frozen_since_ms: int | None = None
    """When it first saw that the fleet's signed metadata have expired: nothing new is installed. None: they are fresh."""
    at_ms: int = 0


class Ack(Message, frozen=True, kw_only=True):
    """The controller has stored every row of this boot and stream up to `seq`; or it never will store some."""

    boot: str
    stream: str
    seq: int
    refused: Digest | None = None
    """SHA-256 of a payload on this stream that is refused for good; `boot` and `seq` then say nothing."""


def encode(message: Message) -> bytes:
    """Bytes of any twin message; `decode(encode(m), type(m)) == m`."""
    return msgspec.json.encode(message, order="sorted")


def decode(data: bytes, kind: type[T]) -> T:
    """Read a twin message of a known kind.

    Raises:
        ManifestError: Too long, not JSON, or not of that kind.
    """
    if len(data) > MESSAGE_BYTES_MAX:
        raise ManifestError(f"a {kind.__name__} message of {len(data)} bytes, more than {MESSAGE_BYTES_MAX}")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"not a {kind.__name__} message: {error}") from error
