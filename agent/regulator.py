"""The regulator: reads the device once a second, asks the governor, and carries out what it decides.

Decides only how a measure is carried out: requests feel it at the turnstile, a worker that has to go is killed in its
seat, and that a model which should use a smaller variant is named for whoever loads it. It needs no disk and waits for
nobody, for it runs in the agent's main loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from edgeml.ids import ModelName
from edgeml.telemetry import Event

from .announcer import Announcer, describe, explain
from .cgroup import Gone
from .diagnosis import WELL, Ailment, Cause, Facts, Level, Limits, Usage
from .governor import Decision, Kind, Measure, State, Treatment, decide
from .ledger import Ledger
from .sensors import Sensors
from .serving import Serving
from .standing import ModelStanding
from .turnstile import Turnstile
from .usage import UsageMeter

logger = logging.getLogger(__name__)

EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Ports:
    """What the regulator asks of the rest of the agent. All are called from the main loop."""

    seats: Callable[[], Mapping[ModelName, Serving]]
    shared_bytes: Callable[[], int]
    priority: Callable[[ModelName], int]
    has_smaller: Callable[[ModelName], bool]
    back_bytes: Callable[[ModelName], int]
    """What a model's worker would take more with its larger variant; 0 if it has that one."""
    say: Callable[[Event], object]
    """Tells the fleet."""
    swept: Callable[[], tuple[Gone, ...]] = tuple
    """Clears control groups away."""


class Regulator:
    """Keeps one device within its limits. For one thread; what only reads may be called from any."""

    def __init__(
        self, limits: Limits, sensors: Sensors, ledger: Ledger, turnstile: Turnstile, ports: Ports
    ) -> None:
        self._limits = limits
        self._sensors = sensors
        self._ledger = ledger
        self._turnstile = turnstile
        self._ports = ports
        self._meter = UsageMeter(sensors)
        self._announcer = Announcer()
        self._state = State()
        self._facts = Facts({})
        self._due_s = float("-inf")

    @property
    def ailment(self) -> Ailment:
        """The worst there is."""
        return self._state.ailment

    @property
    def facts(self) -> Facts:
        """What was last read."""
        return self._facts

    @property
    def counts(self) -> Mapping[tuple[ModelName, Kind, Cause], int]:
        """How often what was decided for which model, and why."""
        return self._announcer.counts

    @property
    def wants_smaller(self) -> frozenset[ModelName]:
        """Models that should use a smaller variant now."""
        return frozenset(
            model
            for model, treatment in self._state.treatments.items()
            if treatment.measure >= Measure.FALL_BACK and self._facts.models[model].smaller
        )

    @property
    def may_try(self) -> bool:
        """Whether a new variant may be tried: not while models turn requests away."""
        return self._state.ailment.level < Level.SHED

    def turn(self, now_s: float, now_ms: int) -> bool:
        """Look and act if it is time; tell whether anything was decided."""
        if now_s < self._due_s:
            return False
        self._due_s = now_s + EVERY_S
        seats = {model: seat for model, seat in self._ports.seats().items() if seat.active is not None}
        facts = self._read(seats, now_s)
        self._state, decisions = decide(self._state, facts, self._limits, now_s)
        # Last, so that whoever reads both finds every treated model.
        self._facts = facts
        for decision in decisions:
            self._carry_out(decision, seats[decision.model])
        for model in self._state.taken:
            # A seat that was given a new worker meanwhile is empty again.
            seats[model].evict(explain(self._state.ailment))
        killed = [_killed(gone) for gone in self._ports.swept() if gone.oom_kills]
        for decision in (*decisions, *killed):
            self._announce(decision, seats, now_s, now_ms)
        return bool(decisions or killed)

    def models(self) -> tuple[ModelStanding, ...]:
        """Say what is done to each model, and what it uses."""
        facts, treatments = self._facts, self._state.treatments
        return tuple(
            ModelStanding(
                model,
                treatments.get(model, Treatment()).measure.name.lower(),
                treatments.get(model, Treatment()).duty,
                usage.memory_bytes,
                usage.granted_bytes,
                round(usage.cpu_cores, 3),
            )
            for model, usage in sorted(facts.models.items())
        )

    def _read(self, seats: Mapping[ModelName, Serving], now_s: float) -> Facts:
        shared = self._ports.shared_bytes()
        workers = {model: seat.active for model, seat in seats.items()}
        pids = {model: worker.pid for model, worker in workers.items() if worker is not None and worker.alive}
        readings = self._meter.read(pids, shared, now_s)
        usages = {}
        for model in seats:
            reading = readings.get(model)
            usages[model] = Usage(
                memory_bytes=0 if reading is None else reading.memory_bytes,
                granted_bytes=self._ledger.granted_bytes(model),
                cpu_cores=0.0 if reading is None else reading.cpu_cores,
                idle_s=self._turnstile.idle_s(model, now_s),
                priority=self._ports.priority(model),
                smaller=self._ports.has_smaller(model),
                back_bytes=self._ports.back_bytes(model),
            )
        return Facts(
            models=usages,
            shared_bytes=shared if usages else 0,
            available_bytes=self._sensors.memory_available_bytes(),
            pressure_percent=self._sensors.memory_pressure_percent(),
            temperature_c=self._sensors.cpu_temperature_c()
            if self._limits.temperature_c is not None
            else None,
        )

    def _carry_out(self, decision: Decision, seat: Serving) -> None:
        self._turnstile.treat(decision.model, decision.treatment)
        match decision.kind:
            case Kind.RESTART:
                worker = seat.active
                if worker is not None:
                    usage = self._facts.models[decision.model]
                    worker.kill(
                        f"took {usage.memory_bytes} bytes, was granted {usage.granted_bytes}, and was killed: "
                        f"{explain(decision.ailment)}"
                    )
            case Kind.EVICT:
                seat.evict(explain(decision.ailment))
            case Kind.RESUME:
                # A decision of this kind never leaves a model evicted.
                seat.let_back()
            case _:
                pass

    def _announce(
        self, decision: Decision, seats: Mapping[ModelName, Serving], now_s: float, now_ms: int
    ) -> None:
        logger.warning("%s", describe(decision))
        seat = seats.get(decision.model)
        worker = None if seat is None else seat.active
        release = None if worker is None else worker.manifest.release
        event = self._announcer.hear(decision, release, now_s, now_ms)
        if event is not None:
            self._ports.say(event)


def _killed(gone: Gone) -> Decision:
    """Make what the kernel did a decision like the governor's own."""
    ailment = Ailment(WELL.level, Cause.MEMORY, gone.peak_bytes or 0, gone.peak_bytes or 0)
    return Decision(Kind.RESTART, gone.model, Treatment(), ailment)
