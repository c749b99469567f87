"""Performs the machine's actions and turns what comes of them into events.

Decides which error means "again" and which means "never": transport and disk trouble is tried again, wrong content is
refused for good. Runs wherever the shell lets it (a thread on a real device, directly in a simulated one). The work
itself is behind the `Installer` port.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Protocol

from edgeml.errors import (
    ArtifactError,
    BudgetError,
    ConfigError,
    DigestMismatchError,
    DowngradeError,
    EdgemlError,
    IncompatibleError,
    PermanentTransferError,
    PostponedError,
    TransferError,
    TrustError,
)
from edgeml.ids import Digest, ModelName, model_of
from edgeml.trustfacts import SignedTarget
from edgeml.twin import Desired, Slot, Slots

from .journal import Entry
from .machine import Action, Event
from .updater import Perform, Result

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A bundle that is on this device, with what is signed about it."""

    target: SignedTarget
    received_bytes: int


@dataclass(frozen=True, slots=True)
class Setback:
    """A fetch that failed, and what it brought all the same."""

    error: EdgemlError
    received_bytes: int = 0
    length_bytes: int = 0
    """Of the bundle; 0 if it got no further than its metadata."""
    retry_after_s: float = 0.0
    """What the server asked for."""


class Installer(Protocol):
    """The work behind the actions. Every method may be called twice for the same thing.

    Fetches may be called from several threads, for different models; everything else from one at a time.
    """

    def slots(self, model: ModelName) -> Slots:
        """What is installed of a model."""
        ...

    def fetch(self, desired: Desired, source: str) -> Delivery | Setback:
        """Get the bundle and what is signed about it. Raises EdgemlError if it failed before anything was asked for."""
        ...

    def verify(self, digest: Digest) -> None:
        """Check the bundle on this device's disk against its digest. Raises EdgemlError."""
        ...

    def permit(self) -> None:
        """Say that a staged release may be tried now. Raises PostponedError if not."""
        ...

    def activate(self, slot: Slot) -> None:
        """Load the variant, prove it on its golden vectors, and let it serve on trial. Raises EdgemlError."""
        ...

    def shadow(self, slot: Slot, share: float) -> None:
        """Load the variant, prove it, and let it answer a share of the requests unseen. Raises EdgemlError."""
        ...

    def compare(self, slot: Slot, disagreement_max: float) -> str:
        """Say how its answers differed.

        Raises:
            BudgetError: They differed more than allowed.
            StateError: There is nothing to compare yet.
            EdgemlError: It is gone.
        """
        ...

    def observe(self, slot: Slot) -> None:
        """Judge the trial. Raises EdgemlError if the variant is not fit to be kept."""
        ...

    def commit(self, slot: Slot) -> None:
        """Make the variant the current slot. Raises EdgemlError."""
        ...

    def restore(self, model: ModelName, condemned: Digest | None) -> Slot | None:
        """Serve the model's best slot that is not condemned; None if none of it was ever installed.

        Raises EdgemlError if slots are installed and none can be served.
        """
        ...


class Executor:
    """Performs actions."""

    def __init__(self, installer: Installer, profile: str) -> None:
        self._installer = installer
        self._profile = profile

    def perform(self, perform: Perform) -> Result:
        """Do it; never raises an EdgemlError."""
        entry = perform.entry
        try:
            match perform.action:
                case Action.FETCH:
                    return self._fetch(entry)
                case Action.VERIFY:
                    self._installer.verify(_wanted(entry).digest)
                    return Result(Event.VERIFIED)
                case Action.WAIT:
                    self._installer.permit()
                    return Result(self._after_staging(perform.model, entry))
                case Action.SHADOW:
                    self._installer.shadow(self._slot(entry), _wanted(entry).policy.shadow_share)
                    return Result(Event.SHADOWED)
                case Action.COMPARE:
                    found = self._installer.compare(
                        self._slot(entry), _wanted(entry).policy.shadow_disagreement_max
                    )
                    return Result(Event.AGREED, found)
                case Action.ACTIVATE:
                    self._installer.activate(self._slot(entry))
                    return Result(Event.ACTIVATED)
                case Action.OBSERVE:
                    self._installer.observe(self._slot(entry))
                    return Result(Event.HEALTHY)
                case Action.COMMIT:
                    self._installer.commit(self._slot(entry))
                    return Result(Event.COMMITTED)
                case Action.RESTORE:
                    self._installer.restore(perform.model, entry.condemned)
                    return Result(Event.ROLLED_BACK)
                case Action.REPORT | Action.REST:
                    return Result(Event.REPORTED)
        except EdgemlError as error:
            logger.warning("%s failed: %s", perform.action.value, error.message)
            return _result_of(perform.action, error)

    def _fetch(self, entry: Entry) -> Result:
        desired = _wanted(entry)
        delivery = self._installer.fetch(desired, entry.source)
        if isinstance(delivery, Setback):
            return self._set_back(delivery)
        facts = delivery.target.facts
        if delivery.target.digest != desired.digest or facts.release != desired.release:
            raise IncompatibleError(f"{desired.target} is signed as something else than the fleet asks for")
        if self._profile not in facts.profiles:
            raise IncompatibleError(
                f"{desired.target} is for {', '.join(facts.profiles)}, this device is {self._profile}"
            )
        committed = entry.release_counter
        if facts.release_counter < committed:
            raise DowngradeError(
                f"{facts.release} has release counter {facts.release_counter}, this device has committed {committed}",
                hint="publish the old content as a new version, or roll back while it is still the previous slot",
            )
        return Result(Event.FETCHED, facts=facts, fetched_bytes=delivery.received_bytes)

    def _after_staging(self, model: ModelName, entry: Entry) -> Event:
        """Into the shadow first, if that is wanted and something casts one."""
        in_shadow = _wanted(entry).policy.shadow_s > 0 and self._installer.slots(model).current is not None
        return Event.SHADOW if in_shadow else Event.READY

    def _set_back(self, setback: Setback) -> Result:
        if not isinstance(setback.error, PostponedError):
            logger.warning("fetch failed: %s", setback.error.message)
        # Only what was cut short may have been of use; wrong content is an attempt, however much of it came.
        was_cut = isinstance(setback.error, TransferError) and not isinstance(
            setback.error, PermanentTransferError
        )
        result = _result_of(Action.FETCH, setback.error)
        return dataclasses.replace(
            result,
            fetched_bytes=setback.received_bytes,
            length_bytes=setback.length_bytes if was_cut else 0,
            wait_s=max(result.wait_s, setback.retry_after_s),
            passing=was_cut,
        )

    def _slot(self, entry: Entry) -> Slot:
        desired = _wanted(entry)
        held = self._installer.slots(model_of(desired.release)).holding(desired.digest)
        if held is not None:
            return held
        if entry.facts is None:
            raise ArtifactError(f"nothing signed is known about {desired.target}")
        return Slot(desired.release, desired.digest, desired.target, entry.facts.release_counter)


def _wanted(entry: Entry) -> Desired:
    if entry.desired is None:
        raise ArtifactError("the journal names no deployment")
    return entry.desired


def _result_of(action: Action, error: EdgemlError) -> Result:
    """Tell again from never."""
    refused = isinstance(error, ArtifactError | ConfigError)
    match action:
        case Action.FETCH | Action.WAIT if isinstance(error, PostponedError):
            return Result(Event.POSTPONED, error.message, wait_s=error.wait_s)
        case Action.FETCH if isinstance(error, DigestMismatchError | TrustError) and not isinstance(
            error, DowngradeError
        ):
            # A proxy, a captive portal, a timestamp that is being renewed: what is signed may yet come.
            return Result(Event.FAILED, error.message)
        case Action.FETCH if refused:
            return Result(Event.REFUSED, error.message)
        case Action.ACTIVATE | Action.SHADOW | Action.COMPARE if refused:
            return Result(Event.REFUSED, error.message, poisoned=_is_content(error))
        case _:
            # VERIFY: what lies on the disk is wrong, so fetch it again. OBSERVE: back to the old slot.
            return Result(
                Event.FAILED, error.message, poisoned=action is Action.OBSERVE and _is_content(error)
            )


def _is_content(error: EdgemlError) -> bool:
    """Tell whether the content itself is bad, not merely unfit for this device today."""
    return isinstance(error, ArtifactError) and not isinstance(
        error, BudgetError | TrustError | IncompatibleError | DigestMismatchError
    )
