"""The installer of a real device: files, a fetching child, workers.

Decides how each action is really done; what follows from success or failure is `executor`'s and `machine`'s business.
Every method may be called twice for the same thing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from edgeml import atomic
from edgeml.clock import Clock
from edgeml.errors import (
    BackendError,
    BudgetError,
    DigestMismatchError,
    EdgemlError,
    IncompatibleError,
    StateError,
)
from edgeml.ids import Digest, ModelName, ReleaseId, digest_of_file, model_of
from edgeml.manifest import GOLDEN
from edgeml.telemetry import Counters
from edgeml.twin import Desired, Slot, Slots

from .admission import Placement
from .config import AgentConfig
from .executor import Delivery, Setback
from .fetching import Fetching
from .health import TrialLimits, judge, judge_traffic
from .ledger import Ledger
from .roster import Roster
from .shadow import Compared, Shadow
from .slots import SlotTable, demote, promote
from .supervisor import Supervisor, Worker, WorkerLimits
from .timetable import Timetable
from .traffic import Traffic
from .windows import Total

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tools:
    """What the installer works with."""

    supervisor: Supervisor
    roster: Roster
    table: SlotTable
    clock: Clock
    on_retired: Callable[[Worker], None]
    """Called with a worker that no longer serves, before it is stopped."""
    on_loaded: Callable[[Worker], None]
    """Called with a worker before it serves."""
    on_shadow: Callable[[ModelName, Shadow | None], None]
    """Called with a model's newcomer that is to answer unseen, and with None when it is to do so no more."""
    totals: Callable[[], Mapping[ReleaseId, Total]]
    """What each release did since the agent started."""
    wanted: Callable[[], frozenset[Digest]]
    """Bundles that must stay in the store although no slot names them; called from any thread."""
    ledger: Ledger
    timetable: Timetable
    traffic: Traffic
    on_fetched: Callable[[EdgemlError | None], None] = lambda _error: None
    """Called when a fetch from the fleet has ended, with what went wrong; from any thread."""


class DeviceInstaller:
    """Installs variants on this device.

    Fetches may run in several threads, for different models; everything else is called from one thread at a time.
    """

    def __init__(self, config: AgentConfig, tools: Tools) -> None:
        self._config = config
        self._tools = tools
        self._table = tools.table
        self._ledger = tools.ledger
        self._needs: dict[Digest, int] = {}
        """Memory that each variant which is loaded needs."""
        self._shadows: dict[ModelName, Shadow] = {}
        self._before: dict[str, Counters] = {}
        """What the release on trial had counted before its trial, by model."""
        self._fetching = Fetching(config, tools.table.store, tools.clock, tools.timetable, tools.traffic)

    def slots(self, model: ModelName) -> Slots:
        """What is installed of a model."""
        return self._table.slots(model)

    def fetch(self, desired: Desired, source: str) -> Delivery | Setback:
        """Let a child check the signed metadata and fetch the bundle; a setback is what the child says went wrong.

        Raises:
            BackendError: The child says nothing sensible.
            ConfigError: There is no server, or no login.
        """
        found = self._fetching.fetch(desired, source)
        if not source:
            self._tools.on_fetched(found.error if isinstance(found, Setback) else None)
        return found

    def look(self) -> None:
        """Let a child check the newest signed metadata, and fetch nothing else.

        Raises:
            EdgemlError: They have expired, cannot be fetched, or are not trusted; or it is not the time.
        """
        self._fetching.look()

    def cancel(self, model: ModelName) -> None:
        """End a fetch of this model that is under way; it can be resumed."""
        self._fetching.cancel(model)

    def verify(self, digest: Digest) -> None:
        """Check the bundle on disk against its digest, and make it durable; the worker checks it again before it loads it.

        Raises:
            DigestMismatchError: It is another one, or gone.
            StorageError: The disk failed.
        """
        path = self._table.path(digest)
        try:
            # A child that was killed may have left a whole file that is still in memory only.
            atomic.sync_file(path)
            observed = digest_of_file(path)
        except FileNotFoundError as error:
            raise DigestMismatchError(f"{path.name} is not there") from error
        except OSError as error:
            raise atomic.storage_error(error, path) from error
        if observed != digest:
            raise DigestMismatchError(f"{path.name} has digest {observed[:12]}…")

    def permit(self) -> None:
        """Say that a staged release may be tried now.

        Raises:
            PostponedError: Not yet.
        """
        self._tools.timetable.check_apply()

    def activate(self, slot: Slot) -> None:
        """Load the variant in a worker, prove it, and let it serve on trial.

        Raises:
            ArtifactError: It cannot be loaded, or answers its golden vectors wrongly.
            BudgetError: It takes more memory or time than this device grants.
        """
        model = model_of(slot.release)
        shadow = self._shadows.get(model)
        if shadow is not None and shadow.worker.digest == slot.digest and shadow.worker.alive:
            # Proven when it went into the shadow. What it saw there was counted by the one that served.
            self._end_shadow(model)
            worker = shadow.worker
            worker.take()
        else:
            worker = self._load_proven(slot, {Placement.BESIDE, Placement.INSTEAD})
        self._before[model] = self._counted(slot.release)
        self._swap(model, worker)

    def shadow(self, slot: Slot, share: float) -> None:
        """Load the variant in a worker, prove it, and let it answer a share of the requests unseen.

        Raises:
            ArtifactError: It cannot be loaded, or answers its golden vectors wrongly.
            BudgetError: It takes more memory or time than this device grants.
        """
        model = model_of(slot.release)
        self._drop_shadow(model)
        shadow = self._shadows[model] = Shadow(self._load_proven(slot, {Placement.BESIDE}), share)
        self._grant(model)
        self._tools.on_shadow(model, shadow)

    def compare(self, slot: Slot, disagreement_max: float) -> str:
        """Say how its answers in the shadow differed from those given.

        Raises:
            BudgetError: They differed more than allowed.
            StateError: There is nothing to compare yet.
            BackendError: Its worker died.
        """
        shadow = self._shadows.get(model_of(slot.release))
        if shadow is None or shadow.worker.digest != slot.digest:
            raise StateError(f"{slot.release} is not in the shadow")
        if not shadow.worker.alive:
            raise BackendError(f"the worker of {slot.release} died in the shadow")
        counts = shadow.counts
        if counts == Compared(skipped=counts.skipped):
            raise StateError(f"{slot.release} was asked nothing in the shadow")
        logger.info("%s %s", slot.release, counts.describe())
        if counts.disagreement > disagreement_max:
            raise BudgetError(
                f"{counts.describe()}: more than the {disagreement_max:.0%} allowed",
                budget=disagreement_max,
                observed=counts.disagreement,
                unit="of answers",
            )
        return counts.describe()

    def observe(self, slot: Slot) -> None:
        """Judge the trial: still the one that serves, no crash since, and its users got what they asked for.

        Raises:
            BackendError: It crashed on trial, or answered too few requests, or too slowly.
            StateError: Another one serves.
        """
        seat = self._tools.roster.seat(model_of(slot.release))
        if seat.active is None or seat.active.digest != slot.digest:
            raise StateError(f"{slot.release} is not the one on trial")
        if seat.crashes:
            raise BackendError(f"the worker of {slot.release} crashed {seat.crashes} times on trial")
        before = self._before.get(seat.active.manifest.model, Counters())
        verdict = judge_traffic(self._counted(slot.release).minus(before))
        logger.info("%s: %s", slot.release, verdict.reason)
        if not verdict.healthy:
            raise BackendError(verdict.reason)

    def commit(self, slot: Slot) -> None:
        """Make the variant the current slot, then remove what no slot names."""
        model = model_of(slot.release)
        active = self._tools.roster.seat(model).active
        if active is None or active.digest != slot.digest:
            # The agent died between the trial and this: its next life serves what was current before.
            self.activate(slot)
        self._table.write(model, promote(self._table.slots(model), slot))
        self._table.sync()
        removed = self._table.clean(self._tools.wanted)
        if removed:
            logger.info("removed %d files that no slot names", removed)

    def restore(self, model: ModelName, condemned: Digest | None) -> Slot | None:
        """Serve the model's best slot that is not condemned.

        Raises:
            StateError: Slots are installed and none can be served.
        """
        self._drop_shadow(model)
        slots = self._table.slots(model)
        if slots.current is None:
            self._swap(model, None)
            return None
        reasons = []
        while slots.current is not None:
            if slots.current.digest != condemned:
                try:
                    self._serve(model, slots.current)
                except EdgemlError as error:
                    logger.warning("slot %s cannot be served: %s", slots.current.release, error.message)
                    reasons.append(f"{slots.current.release}: {error.message}")
                else:
                    if slots != self._table.slots(model):
                        self._table.write(model, slots)
                    self._table.clean(self._tools.wanted)
                    return slots.current
            slots = demote(slots)
        self._swap(model, None)
        raise StateError(
            f"no slot of {model} can be served ({'; '.join(reasons) or 'all are condemned'})",
            hint="flash or assign a release",
        )

    def substitute(self, model: ModelName, slot: Slot) -> None:
        """Let another installed variant serve; slots stay. One that cannot be loaded is logged: what served, serves."""
        try:
            self._serve(model, slot)
        except EdgemlError as error:
            logger.warning("%s cannot stand in: %s", slot.target, error.message)

    def _serve(self, model: ModelName, slot: Slot) -> None:
        active = self._tools.roster.seat(model).active
        if active is not None and active.digest == slot.digest and active.alive:
            return
        need = self._ledger.expect(self._table.path(slot.digest), slot.digest)
        self._swap(model, self._load(model, slot, need))

    def close(self) -> None:
        """End what only the installer knows of."""
        for model in list(self._shadows):
            self._drop_shadow(model)

    def _counted(self, release: ReleaseId) -> Counters:
        return self._tools.totals().get(release, Total()).counters

    def _drop_shadow(self, model: ModelName) -> None:
        shadow = self._end_shadow(model)
        if shadow is not None:
            shadow.worker.stop()

    def _end_shadow(self, model: ModelName) -> Shadow | None:
        shadow = self._shadows.pop(model, None)
        if shadow is not None:
            self._tools.on_shadow(model, None)
            shadow.close()
            self._grant(model)
        return shadow

    def _load_proven(self, slot: Slot, places: AbstractSet[Placement]) -> Worker:
        model, path = model_of(slot.release), self._table.path(slot.digest)
        admission = self._ledger.admit(model, path, slot.digest)
        if admission.placement not in places:
            raise BudgetError(
                f"{slot.release} fits only without the variant that serves, and cannot answer beside it",
                hint="roll it out without a shadow",
                budget=0, observed=admission.granted_bytes, unit="bytes",
            )  # fmt: skip
        if admission.placement is Placement.INSTEAD:
            logger.warning("%s is stopped first: both variants do not fit", model)
            self._swap(model, None)
        worker = self._load(model, slot, admission.granted_bytes)
        try:
            self._prove(model, worker)
        except EdgemlError:
            worker.stop()
            raise
        return worker

    def _load(self, model: ModelName, slot: Slot, need_bytes: int) -> Worker:
        self._needs[slot.digest] = need_bytes
        limits = WorkerLimits(
            threads=self._config.budget.threads,
            line=self._config.serve.line,
            memory_bytes=self._ledger.most_bytes(model),
            model=model,
        )
        worker = self._tools.supervisor.load(self._table.path(slot.digest), slot.digest, limits)
        logger.info("loaded %s in %.0f ms", slot.release, worker.load_ms)
        if worker.manifest.release != slot.release:
            worker.stop()
            raise IncompatibleError(f"the bundle of {slot.release} says that it is {worker.manifest.release}")
        self._tools.on_loaded(worker)
        return worker

    def _prove(self, model: ModelName, worker: Worker) -> None:
        if worker.manifest.file(GOLDEN) is None:
            logger.info("%s has no golden vectors; loading it is all that is proven", worker.manifest.release)
            return
        run = worker.golden()
        latency_ms = self._config.budget.latency_ms
        verdict = judge(run, TrialLimits(latency_budget_ms=latency_ms), 0)
        logger.info("%s on trial: %s", worker.manifest.release, verdict.reason)
        if run.passed:
            # Measured here it is believed before what the manifest says, also when it is refused.
            self._needs[worker.digest] = self._ledger.confirm(
                model, worker.digest, worker.pid, run.peak_memory_bytes
            )
        if verdict.healthy:
            return
        if run.passed:
            raise BudgetError(
                verdict.reason, budget=latency_ms or 0.0, observed=run.latency_p50_ms, unit="ms"
            )
        raise BackendError(verdict.reason)

    def _swap(self, model: ModelName, worker: Worker | None) -> None:
        old = self._tools.roster.seat(model).swap(worker)
        if old is not None:
            self._tools.on_retired(old)
            old.stop()
        self._grant(model)

    def _grant(self, model: ModelName) -> None:
        """Set aside what the model's workers need: the one that serves, and one in the shadow."""
        active, shadow = self._tools.roster.seat(model).active, self._shadows.get(model)
        workers = [*([active] if active else []), *([shadow.worker] if shadow else [])]
        if not workers:
            self._ledger.release(model)
            return
        self._ledger.grant(model, sum(self._needs.get(worker.digest, 0) for worker in workers))
