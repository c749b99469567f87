"""The updater of one model: decides what to make of what the fleet wants of it and of what happened.

Pure of sockets, processes and clocks: it takes wishes, results and the time, writes the journal, and says which action
to perform next. The same object runs in the real agent, in simulated devices and in tests. Performing an action is
`executor`'s business; the table of transitions, `machine`'s; which model goes first, `device`'s.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass, replace
from typing import Final, Protocol

import msgspec

from edgeml.ids import DeviceId, Digest, ModelName
from edgeml.trustfacts import SignedFacts
from edgeml.twin import Desired, DeviceState, Outcome, Reported, Slots

from .journal import REFUSED_MAX, Entry
from .machine import Action, Event, accepts, step

BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 300.0
RESTORES_MAX: Final = 3
PASSING_ATTEMPTS_MAX: Final = 100
"""While a server is away or overloaded, whatever the policy says: with the longest pauses between them, some eight hours."""
PROGRESS_BYTES_MIN: Final = 16 << 10
"""A fetch that brought so much before it was cut was not in vain."""
PROGRESS_TIMES_MAX: Final = 2
"""Of a bundle's length: when attempts have brought more than that together, each counts."""
REASON_MAX: Final = 300
_SUPERSEDED: Final = "the fleet wants something else"


_LOADED: Final = frozenset(
    {DeviceState.SHADOWING, DeviceState.COMPARING, DeviceState.ACTIVATING, DeviceState.TRIAL}
)
"""States in which the newcomer is in a worker: giving it up takes a rollback."""


class JournalPort(Protocol):
    """Where entries are made durable."""

    def load(self, model: ModelName) -> Entry:
        """Return the last entry of a model, or a fresh one."""
        ...

    def write(self, model: ModelName, entry: Entry) -> None:
        """Make an entry durable."""
        ...

    def forget(self, model: ModelName) -> None:
        """Remove a model's entry."""
        ...


class SlotsPort(Protocol):
    """Where the installed slots are looked up."""

    def slots(self, model: ModelName) -> Slots:
        """What is installed of a model."""
        ...


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, by both clocks."""

    wall_ms: int
    monotonic_s: float


class Lane(enum.Enum):
    """Actions of different lanes may be performed side by side."""

    NETWORK = "network"
    """Waits for servers; several at once, of different models."""
    LOCAL = "local"
    """Works on slots and workers; one at a time."""


@dataclass(frozen=True, slots=True)
class Perform:
    """An action to perform for a model, not before a monotonic time."""

    model: ModelName
    action: Action
    entry: Entry
    not_before_s: float

    @property
    def lane(self) -> Lane:
        """Where it is performed."""
        return Lane.NETWORK if self.action is Action.FETCH else Lane.LOCAL


@dataclass(frozen=True, slots=True)
class Result:
    """What came of an action."""

    event: Event
    reason: str = ""
    facts: SignedFacts | None = None
    fetched_bytes: int = 0
    length_bytes: int = 0
    """Of the bundle, if this was a fetch that was cut short; else 0."""
    wait_s: float = 0.0
    """How long to wait, if it was postponed, or the server asked to be left alone."""
    passing: bool = False
    """The trouble is the network's or the server's, and may pass: it is not the content's fault."""
    poisoned: bool = False
    """The content itself is bad: never try this digest again."""


class Updater:
    """One model's update machine at work on one device. Not thread-safe.

    Args:
        device: the device's name; it only spreads attempts over time.
        model: whose versions it installs.
        journal: where it stood, and will stand.
        slots: what is installed.
    """

    def __init__(self, device: DeviceId, model: ModelName, journal: JournalPort, slots: SlotsPort) -> None:
        self.model = model
        self._device = device
        self._journal = journal
        self._slots = slots
        self._entry = journal.load(model)
        self._pending: Perform | None = None
        self._changed = True

    @property
    def entry(self) -> Entry:
        """Where the machine stands."""
        return self._entry

    def start(self, now: Moment) -> None:
        """Continue where the journal says the last life ended."""
        entry = self._entry
        event = Event.RESTARTED
        if entry.state in {DeviceState.ACTIVATING, DeviceState.TRIAL}:
            allowed = entry.desired.policy.trial_restarts_max if entry.desired else 0
            entry = msgspec.structs.replace(entry, restarts=entry.restarts + 1)
            if entry.restarts > allowed:
                event = Event.EXHAUSTED
                entry = msgspec.structs.replace(
                    entry, reason=f"the agent restarted {entry.restarts} times during the trial"
                )
        self._apply(event, entry, now)

    def on_desired(self, desired: Desired, now: Moment) -> None:
        """Look at what the fleet wants. Old generations and repetitions change nothing."""
        if desired.generation <= self._entry.generation:
            return
        self._consider(desired, "", msgspec.structs.replace(self._entry, generation=desired.generation), now)

    def on_offline(self, desired: Desired, source: str, now: Moment) -> None:
        """Look at a deployment found on local storage; its generation means nothing."""
        if self._entry.state in {DeviceState.IDLE, DeviceState.STRANDED}:
            self._consider(desired, source, self._entry, now)

    def crashed(self, reason: str, now: Moment) -> None:
        """Hear that the serving worker died too often."""
        if accepts(self._entry.state, Event.CRASHED):
            self._apply(Event.CRASHED, msgspec.structs.replace(self._entry, reason=_short(reason)), now)

    @property
    def pending(self) -> Perform | None:
        """The action that `next` will return, though perhaps not yet."""
        return self._pending

    def next(self, now: Moment) -> Perform | None:
        """Return the action that is due, once; `done` must follow."""
        pending = self._pending
        if pending is None or now.monotonic_s < pending.not_before_s:
            return None
        self._pending = None
        return pending

    def done(self, performed: Perform, result: Result, now: Moment) -> None:
        """Hear what came of an action. A result that no longer matters is dropped."""
        if performed.entry.state is not self._entry.state or performed.entry.desired != self._entry.desired:
            return
        entry = msgspec.structs.replace(
            self._entry,
            reason=_short(result.reason) or self._entry.reason,
            facts=result.facts or self._entry.facts,
            fetched_bytes=self._entry.fetched_bytes + result.fetched_bytes,
        )
        event = result.event
        if event is Event.POSTPONED:
            self._postpone(performed.action, entry, now, result.wait_s)
            return
        progressed = event is Event.FAILED and _progressed(entry, result)
        if event is Event.FAILED:
            entry = msgspec.structs.replace(entry, attempt=1 if progressed else entry.attempt + 1)
            most = RESTORES_MAX if entry.state is DeviceState.ROLLING_BACK else _attempts_max(entry)
            if result.passing:
                most = max(most, PASSING_ATTEMPTS_MAX)
            if not progressed and entry.attempt >= most and accepts(entry.state, Event.EXHAUSTED):
                event = Event.EXHAUSTED
        if result.poisoned and entry.desired is not None:
            entry = msgspec.structs.replace(
                entry, refused=(*entry.refused, entry.desired.digest)[-REFUSED_MAX:]
            )
        if event is Event.COMMITTED and entry.facts is not None and not entry.held:
            ratchet = max(entry.facts.release_counter, entry.release_counter)
            entry = msgspec.structs.replace(entry, release_counter=ratchet)
        self._apply(event, entry, now, result.wait_s)

    def reported(self, now: Moment) -> Reported:
        """Say what is true."""
        entry = self._entry
        return Reported(
            generation=entry.generation,
            deployment=entry.desired.deployment if entry.desired else None,
            state=entry.state,
            slots=self._slots.slots(self.model),
            outcome=entry.outcome,
            reason=entry.reason,
            attempt=entry.attempt,
            fetched_bytes=entry.fetched_bytes,
            at_ms=now.wall_ms,
        )

    def take_report(self, now: Moment) -> Reported | None:
        """Return the report once after every change."""
        if not self._changed:
            return None
        self._changed = False
        return self.reported(now)

    def _consider(self, desired: Desired, source: str, entry: Entry, now: Moment) -> None:
        if entry.state not in {DeviceState.IDLE, DeviceState.STRANDED}:
            entry = msgspec.structs.replace(entry, waiting=desired)
            if accepts(entry.state, Event.SUPERSEDED):
                self._apply(Event.SUPERSEDED, msgspec.structs.replace(entry, reason=_SUPERSEDED), now)
            else:
                self._journal.write(self.model, entry)
                self._entry = entry
            return
        entry = msgspec.structs.replace(
            entry, desired=desired, source=source, held=False, facts=None, waiting=None,
            condemned=None, attempt=0, restarts=0, outcome=None, reason="", fetched_bytes=0,
        )  # fmt: skip
        slots = self._slots.slots(self.model)
        if desired.expires_at_ms is not None and desired.expires_at_ms < now.wall_ms:
            event, entry = Event.REFUSED, msgspec.structs.replace(entry, reason="the deployment has expired")
        elif (
            slots.current is not None
            and slots.current.digest == desired.digest
            and entry.state is DeviceState.IDLE
        ):
            event = Event.SATISFIED
        elif slots.previous is not None and slots.previous.digest == desired.digest:
            event, entry = Event.HELD, msgspec.structs.replace(entry, held=True)
        elif desired.digest in entry.refused:
            event, entry = (
                Event.REFUSED,
                msgspec.structs.replace(entry, reason="this content was refused before"),
            )
        else:
            event = Event.ASSIGNED
        self._apply(event, entry, now)

    def _postpone(self, action: Action, entry: Entry, now: Moment, wait_s: float) -> None:
        """Do the same again later. It is said once, not each time it is looked at."""
        if entry == self._entry:
            self._pending = Perform(self.model, action, entry, now.monotonic_s + wait_s)
            return
        self._apply(Event.POSTPONED, entry, now)
        pending = self._pending
        if pending is not None and pending.action is action:
            self._pending = replace(pending, not_before_s=now.monotonic_s + wait_s)

    def _apply(self, event: Event, entry: Entry, now: Moment, wait_s: float = 0.0) -> None:
        """Write the journal, then let the action be performed."""
        before = entry.state
        state, action = step(before, event)
        entry = msgspec.structs.replace(entry, state=state)
        # FETCHED: what is fetched again and again and is wrong on the disk every time must come to an end.
        if state is not before and event not in {Event.RESTARTED, Event.FAILED, Event.FETCHED}:
            entry = msgspec.structs.replace(entry, attempt=0)
        outcome = _outcome(before, event, entry)
        if outcome is not None:
            entry = msgspec.structs.replace(entry, outcome=outcome)
        if state is DeviceState.ROLLING_BACK and before is not state:
            entry = msgspec.structs.replace(entry, condemned=self._condemned(before, entry))
        self._journal.write(self.model, entry)
        self._entry = entry
        self._changed = True
        if action is Action.REST:
            self._pending = None
            if entry.waiting is not None:
                self._consider(entry.waiting, "", msgspec.structs.replace(entry, waiting=None), now)
            return
        if entry.waiting is not None and accepts(state, Event.SUPERSEDED):
            self._apply(Event.SUPERSEDED, msgspec.structs.replace(entry, reason=_SUPERSEDED), now)
            return
        delay_s = self._delay_s(action, entry, wait_s)
        self._pending = Perform(self.model, action, entry, now.monotonic_s + delay_s)

    def _condemned(self, before: DeviceState, entry: Entry) -> Digest | None:
        if before is DeviceState.STRANDED:
            return None
        if before is DeviceState.IDLE:
            current = self._slots.slots(self.model).current
            return current.digest if current else None
        return entry.desired.digest if entry.desired else None

    def _delay_s(self, action: Action, entry: Entry, wait_s: float) -> float:
        if action is Action.OBSERVE:
            return entry.desired.policy.soak_s if entry.desired else 0.0
        if action is Action.COMPARE:
            return entry.desired.policy.shadow_s if entry.desired else 0.0
        if not entry.attempt or action is Action.VERIFY:
            return 0.0
        ceiling: float = min(BACKOFF_FIRST_S * 2 ** min(entry.attempt - 1, 16), BACKOFF_MAX_S)
        # Full jitter, from a hash: devices spread out, and a test sees the same times twice.
        seed = hashlib.sha256(
            f"{self._device} {self.model} {entry.generation} {entry.attempt}".encode()
        ).digest()
        # Asked to wait, all wait as long as asked, and then do not come back all at once.
        return max(ceiling * (0.5 + seed[0] / 512), wait_s * (1 + seed[1] / 512))


def _outcome(before: DeviceState, event: Event, entry: Entry) -> Outcome | None:
    """Tell how the deployment ended, if this event ends it."""
    match event:
        case Event.SATISFIED:
            return Outcome.ALREADY_INSTALLED
        case Event.COMMITTED:
            return Outcome.REVERTED if entry.held else Outcome.COMMITTED
        case Event.ROLLED_BACK:
            return Outcome.ROLLED_BACK
        case Event.REFUSED if before not in _LOADED:
            return Outcome.REJECTED
        case Event.EXHAUSTED if before is DeviceState.ROLLING_BACK:
            return Outcome.STRANDED
        case Event.EXHAUSTED if before in {DeviceState.FETCHING, DeviceState.VERIFYING}:
            return Outcome.FAILED
        case Event.SUPERSEDED if before not in _LOADED:
            return Outcome.SUPERSEDED
        case _:
            return None


def _progressed(entry: Entry, result: Result) -> bool:
    """Tell whether a fetch that failed has brought its end nearer; not for ever, for what came is not verified."""
    return (
        entry.state is DeviceState.FETCHING
        and result.fetched_bytes >= PROGRESS_BYTES_MIN
        and entry.fetched_bytes <= PROGRESS_TIMES_MAX * result.length_bytes
    )


def _attempts_max(entry: Entry) -> int:
    return entry.desired.policy.attempts_max if entry.desired else 1


def _short(reason: str) -> str:
    return " ".join(reason.split())[:REASON_MAX]
