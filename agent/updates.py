"""Updates: lets what the device decides be performed, beside the main loop.

Decides only how much goes on at once: as many fetches as the settings allow, and one action of any other kind. Which
action that is, is `device`'s business; what comes of it, `executor`'s. The journal is written by the main loop alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from edgeml.ids import ModelName
from edgeml.twin import DeviceState

from .device import Device
from .executor import Executor
from .installer import DeviceInstaller
from .journal import Entry
from .updater import Lane, Moment, Perform, Result

logger = logging.getLogger(__name__)


class Updates:
    """Actions under way. For one thread.

    Args:
        device: decides.
        installer: works; fetches that are overtaken are cancelled there.
        profile: of this device.
        downloads_max: fetches at once.
        on_outcome: hears of a deployment that has ended, well or badly.
    """

    def __init__(
        self,
        device: Device,
        installer: DeviceInstaller,
        profile: str,
        downloads_max: int,
        on_outcome: Callable[[Entry], None],
    ) -> None:
        self._device = device
        self._installer = installer
        self._executor = Executor(installer, profile)
        self._on_outcome = on_outcome
        self._places = {Lane.LOCAL: 1, Lane.NETWORK: downloads_max}
        self._pools = {lane: ThreadPoolExecutor(places, lane.value) for lane, places in self._places.items()}
        self._under_way: dict[ModelName, tuple[Perform, Future[Result]]] = {}
        self._chores: dict[ModelName, Future[None]] = {}

    def in_hand(self, model: ModelName) -> bool:
        """Whether an action of this model is being performed, or a chore."""
        return model in self._under_way or model in self._chores

    def chore(self, model: ModelName, work: Callable[[], None]) -> None:
        """Do something to a model's worker that is no update, if the model is at rest; `work` raises nothing.

        Actions of the same model that become due meanwhile come after it.
        """
        if not self.in_hand(model) and self._device.entry(model).state is DeviceState.IDLE:
            self._chores[model] = self._pools[Lane.LOCAL].submit(work)

    def turn(self, now: Moment) -> int:
        """Take what is finished and begin what is due; return how many have finished.

        Raises:
            StorageError: The journal could not be written; the next turn tries again.
        """
        finished = 0
        for model, (performed, future) in list(self._under_way.items()):
            if not future.done():
                if self._device.is_overtaken(performed):
                    # Something else is wanted by now: a fetch under way need not be waited for.
                    self._installer.cancel(model)
                continue
            self._device.done(performed, future.result(), now)
            # Only now: if the journal could not be written, the same result is handed over again.
            del self._under_way[model]
            finished += 1
            self._tell(performed)
        for model, chore in list(self._chores.items()):
            if chore.done():
                chore.result()
                del self._chores[model]
                finished += 1
        for lane in Lane:
            self._begin(lane, now)
        return finished

    def close(self) -> None:
        """Cancel what is under way; it is done again after a restart."""
        for model in self._under_way:
            self._installer.cancel(model)
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, lane: Lane, now: Moment) -> None:
        under_way = sum(performed.lane is lane for performed, _ in self._under_way.values())
        for _ in range(self._places[lane] - under_way):
            perform = self._device.next(now, lane)
            if perform is None:
                return
            future = self._pools[lane].submit(self._executor.perform, perform)
            self._under_way[perform.model] = perform, future

    def _tell(self, performed: Perform) -> None:
        entry = self._device.entry(performed.model)
        if entry.outcome is None or entry.outcome is performed.entry.outcome:
            return
        deployment = entry.desired.deployment if entry.desired else ""
        logger.info(
            "deployment %s: %s", deployment, " ".join(filter(None, (entry.outcome.value, entry.reason)))
        )
        self._on_outcome(entry)
