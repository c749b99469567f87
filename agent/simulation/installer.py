"""The installer of one simulated device.

Real files, real signatures, real fetches; one shared copy of each bundle and each loaded model.
"""

from __future__ import annotations

import logging
import time

from edgeml import bundle
from edgeml.errors import EdgemlError, StateError
from edgeml.ids import Digest, ModelName, model_of
from edgeml.trustfacts import SignedTarget
from edgeml.twin import Desired, Slot, Slots

from ..config import AgentConfig
from ..executor import Delivery
from ..fetch import Job, deliver
from ..route import way_to_fleet
from ..slots import SlotTable, demote, promote
from .world import Shared

logger = logging.getLogger(__name__)


class SharedInstaller:
    """The installer of one simulated device: real files and checks, one shared copy of each bundle."""

    def __init__(self, config: AgentConfig, table: SlotTable, shared: Shared) -> None:
        self._config = config
        self._table = table
        self._shared = shared
        self.serving: dict[ModelName, Slot] = {}
        """What serves, by model."""

    def slots(self, model: ModelName) -> Slots:
        """What is installed of a model."""
        return self._table.slots(model)

    def fetch(self, desired: Desired, source: str) -> Delivery:
        """Fetch through the shared store; the first device really fetches, the others find it there."""
        job = Job(
            target=desired.target, trust_directory=str(self._shared.directory / "trust"),
            store_directory=str(self._shared.directory / "store"), repository=source or way_to_fleet(self._config),
            now_ms=time.time_ns() // 1_000_000, storage_bytes=self._config.budget.storage_bytes,
            full_download=desired.policy.full_download,
        )  # fmt: skip
        answer = deliver(job)
        assert answer.digest is not None
        assert answer.facts is not None
        target = SignedTarget(answer.path, answer.digest, answer.length_bytes, answer.facts)
        return Delivery(target, answer.received_bytes)

    def verify(self, digest: Digest) -> None:
        """Check the shared copy."""
        bundle.read_verified(self._shared.directory / "store" / f"{digest}.edgeml", digest).close()

    def permit(self) -> None:
        """Every hour is good for a simulated device."""

    def activate(self, slot: Slot) -> None:
        """Load the shared model and serve it."""
        self._shared.load(slot.digest)
        self.serving[model_of(slot.release)] = slot

    def shadow(self, slot: Slot, share: float) -> None:  # noqa: ARG002 - nobody asks here
        """Load the shared model; nobody compares its answers here."""
        self._shared.load(slot.digest)

    def compare(self, slot: Slot, disagreement_max: float) -> str:  # noqa: ARG002 - as above
        """Say that nothing was compared."""
        return f"a simulated device compares no answers of {slot.release}"

    def observe(self, slot: Slot) -> None:
        """Judge the trial: the shared model answered its golden vectors when it was loaded."""
        if self.serving.get(model_of(slot.release)) != slot:
            raise StateError(f"{slot.release} is not the one on trial")

    def commit(self, slot: Slot) -> None:
        """Make it current."""
        model = model_of(slot.release)
        self._table.write(model, promote(self._table.slots(model), slot))

    def restore(self, model: ModelName, condemned: Digest | None) -> Slot | None:
        """Serve the model's best slot that is not condemned."""
        slots = self._table.slots(model)
        was_installed = slots.current is not None
        while (slot := slots.current) is not None:
            if slot.digest != condemned:
                try:
                    self._shared.load(slot.digest)
                except EdgemlError as error:
                    logger.warning(
                        "%s: slot %s cannot be served: %s", self._config.device, slot.release, error.message
                    )
                else:
                    self._table.write(model, slots)
                    self.serving[model] = slot
                    return slot
            slots = demote(slots)
        self.serving.pop(model, None)
        if was_installed:
            raise StateError("no slot can be served")
        return None
