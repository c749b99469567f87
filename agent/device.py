"""The device: its models, each with an updater of its own.

Decides which model a wish is for, how many models there may be, and whose action goes first: within a lane the one of
the highest priority, then the one that has been due for longest. A model is never given a second action while it has
one in hand. What an updater makes of a wish is `updater`'s business. Pure, as that is.
"""

from __future__ import annotations

from typing import Final, Protocol

from edgeml import twin
from edgeml.errors import ConfigError, ManifestError
from edgeml.ids import DeviceId, Digest, ModelName, model_of
from edgeml.twin import MODELS_MAX, Desired, DeviceState, Outcome, Reported, Slots

from .journal import Entry
from .updater import JournalPort, Lane, Moment, Perform, Result, SlotsPort, Updater

_IN_HAND: Final = frozenset(
    {
        DeviceState.FETCHING,
        DeviceState.VERIFYING,
        DeviceState.STAGED,
        DeviceState.SHADOWING,
        DeviceState.COMPARING,
        DeviceState.ACTIVATING,
        DeviceState.TRIAL,
        DeviceState.COMMITTING,
    }
)


class JournalOfModels(JournalPort, Protocol):
    """A journal that knows whose entries it has."""

    @property
    def models(self) -> tuple[ModelName, ...]:
        """The models it has entries of."""
        ...


class SlotsOfModels(SlotsPort, Protocol):
    """A table that knows whose slots it has."""

    @property
    def models(self) -> tuple[ModelName, ...]:
        """The models that have slots."""
        ...


class Device:
    """All models of one device. Not thread-safe, but what only reads may be called from other threads."""

    def __init__(self, name: DeviceId, journal: JournalOfModels, slots: SlotsOfModels) -> None:
        self._name = name
        self._journal = journal
        self._slots = slots
        self._updaters: dict[ModelName, Updater] = {}
        self._started: set[ModelName] = set()
        self._in_hand: set[ModelName] = set()
        self._turned_away: dict[ModelName, Reported] = {}
        self._news: set[ModelName] = set()
        """Those turned away of which nothing was said yet."""
        for model in sorted({*journal.models, *slots.models}):
            self._updaters[model] = Updater(name, model, journal, slots)

    @property
    def models(self) -> tuple[ModelName, ...]:
        """Every model that is installed, or was ever wanted."""
        return tuple(self._updaters)

    def entry(self, model: ModelName) -> Entry:
        """Where a model's machine stands."""
        updater = self._updaters.get(model)
        return Entry() if updater is None else updater.entry

    def start(self, now: Moment) -> None:
        """Let every machine go on where the journal says the last life ended.

        Raises:
            StorageError: The journal could not be written; call it again, and those go on that have not.
        """
        for model, updater in self._updaters.items():
            if model not in self._started:
                updater.start(now)
                self._started.add(model)

    def on_desired(self, model: ModelName, payload: bytes, now: Moment) -> None:
        """Look at a `desired` message about a model.

        Raises:
            ManifestError: It is no such message, or is about another model.
        """
        if not payload:
            return  # a cleared retained message: nothing is wanted any more than before
        desired = twin.decode(payload, Desired)
        self._check(model, desired)
        updater = self._updater(model, now)
        if updater is not None:
            updater.on_desired(desired, now)
            return
        self._turn_away(model, desired, now)

    def on_offline(self, desired: Desired, source: str, now: Moment) -> None:
        """Look at a deployment found on local storage; its generation means nothing.

        Raises:
            ManifestError: It names no release, or the device has too many models.
        """
        try:
            model = model_of(desired.release)
        except ConfigError as error:
            raise ManifestError(error.message) from error
        updater = self._updater(model, now)
        if updater is None:
            raise ManifestError(f"this device has {len(self._updaters)} models, and may have no more")
        updater.on_offline(desired, source, now)

    def crashed(self, model: ModelName, reason: str, now: Moment) -> None:
        """Hear that a model's serving worker died too often."""
        updater = self._updater(model, now)
        if updater is not None:
            updater.crashed(reason, now)

    def next(self, now: Moment, lane: Lane) -> Perform | None:
        """Return the action of a lane that is due and goes first, once; `done` must follow."""
        due = [
            updater
            for model, updater in self._updaters.items()
            if model not in self._in_hand and _is_due(updater.pending, lane, now)
        ]
        if not due:
            return None
        first = min(due, key=_rank)
        perform = first.next(now)
        if perform is not None:
            self._in_hand.add(first.model)
        return perform

    def is_overtaken(self, performed: Perform) -> bool:
        """Tell whether something else is wanted by now than what is being performed."""
        return self._updaters[performed.model].pending is not None

    def done(self, performed: Perform, result: Result, now: Moment) -> None:
        """Hear what came of an action. A result that no longer matters is dropped.

        Raises:
            StorageError: The journal could not be written; hand over the same again.
        """
        self._updaters[performed.model].done(performed, result, now)
        self._in_hand.discard(performed.model)

    def reported(self, now: Moment) -> dict[ModelName, Reported]:
        """Say what is true of each model."""
        return self._turned_away | {model: updater.reported(now) for model, updater in self._updaters.items()}

    def take_reports(self, now: Moment) -> dict[ModelName, Reported]:
        """Return what is true of the models about which something has changed, once."""
        changed = {model: self._turned_away[model] for model in self._news}
        self._news = set()
        for model, updater in self._updaters.items():
            report = updater.take_report(now)
            if report is not None:
                changed[model] = report
        return changed

    def wanted(self) -> frozenset[Digest]:
        """Name the bundles that are in hand, whether a slot names them yet or not."""
        entries = [updater.entry for updater in list(self._updaters.values())]
        return frozenset(
            entry.desired.digest for entry in entries if entry.desired is not None and entry.state in _IN_HAND
        )

    def _updater(self, model: ModelName, now: Moment) -> Updater | None:
        """Find a model's updater, or make one; None if there are too many."""
        updater = self._updaters.get(model)
        if updater is None and self._has_room():
            updater = Updater(self._name, model, self._journal, self._slots)
            updater.start(now)
            self._updaters[model] = updater
            self._turned_away.pop(model, None)
            self._news.discard(model)
        return updater

    def _has_room(self) -> bool:
        """Tell whether there may be one more, after forgetting one of which nothing is installed or in hand."""
        if len(self._updaters) < MODELS_MAX:
            return True
        for model, updater in self._updaters.items():
            idle = updater.pending is None and model not in self._in_hand
            if idle and self._slots.slots(model) == Slots() and updater.entry.release_counter == 0:
                self._journal.forget(model)
                del self._updaters[model]
                return True
        return False

    def _turn_away(self, model: ModelName, desired: Desired, now: Moment) -> None:
        if len(self._turned_away) >= MODELS_MAX and model not in self._turned_away:
            # Whoever asks for so many is told of the first ones.
            return
        self._turned_away[model] = Reported(
            generation=desired.generation,
            deployment=desired.deployment,
            outcome=Outcome.REJECTED,
            reason=f"this device has {len(self._updaters)} models, and may have no more",
            at_ms=now.wall_ms,
        )
        self._news.add(model)

    def _check(self, model: ModelName, desired: Desired) -> None:
        try:
            wanted = model_of(desired.release)
        except ConfigError as error:
            raise ManifestError(error.message) from error
        if wanted != model:
            raise ManifestError(f"{desired.release} is wanted on the topic of {model}")


def _is_due(pending: Perform | None, lane: Lane, now: Moment) -> bool:
    return pending is not None and pending.lane is lane and pending.not_before_s <= now.monotonic_s


def _rank(updater: Updater) -> tuple[int, float, ModelName]:
    pending = updater.pending
    assert pending is not None
    desired = pending.entry.desired
    return -(desired.policy.priority if desired else 0), pending.not_before_s, updater.model
