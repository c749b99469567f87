"""The budget of a device, kept: composes what admits, confines, watches and counts.

Decides only what is built of what and in which order: workers are confined from their first moment, so the supervisor
is made here; whether the kernel or the agent alone keeps the budget is found out before that. Every rule is elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from edgeml.clock import Clock
from edgeml.ids import ModelName
from edgeml.telemetry import Event
from edgeml.twin import Slot

from . import standing
from .announcer import explain
from .cgroup import Gone, Groups, Undelegated, find
from .config import AgentConfig
from .confinement import Confinement
from .diagnosis import Cause, Limits, used_bytes
from .ledger import Ledger
from .metrics import BudgetFacts
from .peaks import Peaks
from .regulator import Ports, Regulator
from .roster import Roster
from .sensors import Sensors
from .slots import SlotTable
from .standing import Standing
from .substitution import Substitution
from .supervisor import Supervisor
from .timetable import Timetable
from .traffic import Traffic
from .turnstile import Turnstile
from .updater import Moment

logger = logging.getLogger(__name__)

TELL_EVERY_S: Final = 60.0
"""The file for people is as old as this at most, unless something is decided."""
SUBSTITUTE_PAUSE_S: Final = 10.0
"""Between two attempts to serve another variant of a model; loading one takes its time, and may fail."""
SHARED_MOVED_BYTES: Final = 4 << 20


class Budget:
    """What a device may spend, and on whom. For the main loop, but for its parts that say otherwise."""

    def __init__(self, config: AgentConfig, clock: Clock) -> None:
        """Find out what the kernel can do, and make the supervisor.

        Raises:
            StorageError: The disk refused.
        """
        limits = config.budget
        self._storage = Path(config.storage)
        self._limits = Limits(limits.memory_bytes, limits.cpu_cores, limits.temperature_c)
        self._network_budget = limits.network_bytes_per_day
        self._sensors = Sensors()
        self._groups = _groups(self._limits)
        self._confinement = Confinement(limits.cpu_cores, self._groups)
        self.supervisor = Supervisor(confines=self._confinement)
        self.ledger = Ledger(
            limits.memory_bytes, Peaks(self._storage), self._sensors, self.supervisor.shared_bytes
        )
        self.turnstile = Turnstile()
        self.traffic = Traffic(self._storage, limits.network_bytes_per_day, clock)
        self.timetable = Timetable(config.update, clock)
        self._shared_bytes = 0
        self._most_bytes: dict[int, int | None] = {}
        self._substituted_s: dict[ModelName, float] = {}
        self._tell_s = float("-inf")
        self._held_back = 0
        self._told_models: frozenset[ModelName] = frozenset()

    def govern(
        self,
        roster: Roster,
        table: SlotTable,
        priority: Callable[[ModelName], int],
        say: Callable[[Event], object],
    ) -> None:
        """Begin to watch over what serves.

        Args:
            roster: the seats.
            table: what is installed.
            priority: of a model's deployment.
            say: tells the fleet.
        """
        self._roster = roster
        self._table = table
        self._substitution = Substitution(table, self.ledger)
        ports = Ports(
            seats=lambda: roster.seats,
            shared_bytes=self.supervisor.shared_bytes,
            priority=priority,
            has_smaller=lambda model: self._substitution.smaller(model) is not None,
            back_bytes=self._back_bytes,
            say=say,
            swept=self._sweep,
        )
        self._regulator = Regulator(self._limits, self._sensors, self.ledger, self.turnstile, ports)
        self.timetable.may_try = lambda: self._regulator.may_try

    def turn(self, now: Moment, held_back: int) -> None:
        """Look, act, and tell whoever looks into the file; `held_back` rows wait because of the network's budget."""
        news = bool(held_back) != bool(self._held_back)
        self._held_back = held_back
        decided = self._regulator.turn(now.monotonic_s, now.wall_ms)
        models = frozenset(self._regulator.facts.models)
        news = news or models != self._told_models
        self._told_models = models
        if self._groups is not None:
            self._resize(self._groups)
        if decided or news or now.monotonic_s >= self._tell_s:
            self._tell_s = now.monotonic_s + TELL_EVERY_S
            standing.write(self._storage, self._standing(now))

    def substitutes(self, now: Moment) -> Iterator[tuple[ModelName, Slot]]:
        """Yield models that should be served by another variant of their release, and by which."""
        small = self._regulator.wants_smaller
        for model, worker in self._roster.workers.items():
            current, smaller = self._table.slots(model).current, self._substitution.smaller(model)
            if current is None or smaller is None or not worker.alive:
                continue
            wanted = smaller if model in small else current
            if worker.digest == wanted.digest or worker.digest not in {current.digest, smaller.digest}:
                continue
            if now.monotonic_s - self._substituted_s.get(model, float("-inf")) >= SUBSTITUTE_PAUSE_S:
                self._substituted_s[model] = now.monotonic_s
                yield model, wanted

    def facts(self) -> BudgetFacts:
        """What the page of metrics says; from any thread."""
        regulator, facts = self._regulator, self._regulator.facts
        return BudgetFacts(
            level=regulator.ailment.level,
            decisions=regulator.counts,
            turned_away=self.turnstile.turned_away,
            granted={model: usage.granted_bytes for model, usage in facts.models.items()},
            used_bytes=used_bytes(facts),
            memory_bytes=self._limits.memory_bytes,
            refused=self.ledger.refused,
            temperature_c=facts.temperature_c,
            network_bytes=self.traffic.spent_bytes,
            network_budget_bytes=self._network_budget,
        )

    def _back_bytes(self, model: ModelName) -> int:
        worker = self._roster.workers.get(model)
        return 0 if worker is None else self._substitution.back_bytes(model, worker.digest)

    def _standing(self, now: Moment) -> Standing:
        ailment, facts = self._regulator.ailment, self._regulator.facts
        return Standing(
            level=ailment.level.name.lower(),
            reason=explain(ailment) if ailment.level and ailment.cause is not Cause.NONE else "",
            enforced="kernel" if self._confinement.enforced else "watched",
            used_bytes=used_bytes(facts),
            budget_bytes=self._limits.memory_bytes,
            temperature_c=facts.temperature_c,
            network_bytes=self.traffic.spent_bytes,
            network_budget_bytes=self._network_budget,
            held_back_rows=self._held_back,
            decisions=sum(self._regulator.counts.values()),
            at_ms=now.wall_ms,
            models=self._regulator.models(),
        )

    def _resize(self, groups: Groups) -> None:
        """Tell the kernel what has changed: what is shared, and what each worker may take of the rest."""
        shared = self.supervisor.shared_bytes()
        if abs(shared - self._shared_bytes) > SHARED_MOVED_BYTES:
            self._shared_bytes = shared
            _limit(groups, self._limits, shared)
        most: dict[int, int | None] = {}
        for model, worker in self._roster.workers.items():
            most[worker.pid] = self.ledger.most_bytes(model)
            if worker.alive and self._most_bytes.get(worker.pid, -1) != most[worker.pid]:
                self._confinement.resize(worker.pid, model, most[worker.pid])
        self._most_bytes = most

    def _sweep(self) -> tuple[Gone, ...]:
        return () if self._groups is None else self._groups.sweep()


def _groups(limits: Limits) -> Groups | None:
    """Take the agent's control group, if there is something to be kept and a group to keep it with."""
    if limits.memory_bytes is None and limits.cpu_cores is None:
        return None
    delegation = find()
    if isinstance(delegation, Undelegated):
        logger.info("workers are watched, not confined: %s", delegation.reason)
        return None
    try:
        groups = Groups(delegation)
        _limit(groups, limits, 0)
    except OSError as error:
        logger.warning("workers are watched, not confined: %s refuses: %s", delegation.base, error.strerror)
        return None
    return groups


def _limit(groups: Groups, limits: Limits, shared_bytes: int) -> None:
    # What is shared was taken by the forkserver, whose group is another one.
    memory = None if limits.memory_bytes is None else max(limits.memory_bytes - shared_bytes, 0)
    groups.limit(memory, limits.cpu_cores)
