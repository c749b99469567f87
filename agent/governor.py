"""The governor: what is done about models when the device is hot, short of memory, or over its budget.

Decides what the level of the worst cause means for each model (a measure), whom it hits first (the least valuable),
and when a model that was taken away comes back. Pure: how bad it is says `diagnosis`; reading sensors and carrying
measures out is `regulator`'s business.

Memory over the budget is no level: one worker goes at once, one that took more than it was granted before any other,
and the others serve on. The most valuable model is spared the longest: it is taken away only when the budget itself is
exceeded, or in heat in which the processor would stop by itself.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from edgeml.ids import ModelName

from .diagnosis import (
    DWELL_S,
    RESERVE_BYTES,
    WELL,
    Ailment,
    Cause,
    Facts,
    Held,
    Level,
    Limits,
    cores,
    hold,
    used_bytes,
)

TAKE_PAUSE_S: Final = 5.0
"""Between two workers that are taken away: what the first one gave back has to show."""
CUT_PAUSE_S: Final = 10.0
"""Between two cuts of processor time: what the first one did has to show."""
DUTY_MIN: Final = 0.125
BACK_RESERVES: Final = 2
"""... and so many times the reserve stay available."""
BACK_FRACTION: Final = 0.9
"""A model that was taken away comes back if the budget is then used up to this part at most."""


class Measure(enum.IntEnum):
    """What is done to a model; a higher one includes what is below it."""

    NONE = 0
    THROTTLE = 1
    FALL_BACK = 2
    SHED = 3
    EVICT = 4


class Kind(enum.Enum):
    """What a decision says."""

    THROTTLE = "throttle"
    FALL_BACK = "fall_back"
    SHED = "shed"
    RESTART = "restart"
    """Kill a worker that took more than it was granted; its successor begins anew."""
    EVICT = "evict"
    """Kill the worker and start no other until RESUME."""
    RESUME = "resume"
    """Less is done to the model than before; `measure` says what is left."""


@dataclass(frozen=True, slots=True)
class Treatment:
    """What is done to one model. `duty` is the part of the time it may work."""

    measure: Measure = Measure.NONE
    duty: float = 1.0


@dataclass(frozen=True, slots=True)
class Decision:
    """A change that has to be carried out."""

    kind: Kind
    model: ModelName
    treatment: Treatment
    ailment: Ailment


@dataclass(frozen=True, slots=True)
class State:
    """What the governor remembers."""

    held: Mapping[Cause, Held] = field(default_factory=lambda: MappingProxyType({}))
    treatments: Mapping[ModelName, Treatment] = field(default_factory=lambda: MappingProxyType({}))
    cpu_duty: float = 1.0
    cut_s: float = float("-inf")
    """When processor time was last cut."""
    taken: frozenset[ModelName] = frozenset()
    """Models whose workers were taken away."""
    moved_s: float = float("-inf")
    """When a worker was last taken away, killed, or let back."""

    @property
    def ailment(self) -> Ailment:
        """The worst there is."""
        ailments = (one.ailment for one in self.held.values())
        return max(ailments, key=lambda one: one.level, default=WELL)


_HEAT_DUTY: Final = (1.0, 0.5, 0.25, DUTY_MIN, DUTY_MIN, DUTY_MIN)
"""What a model may work at each level of heat."""


def decide(state: State, facts: Facts, limits: Limits, now_s: float) -> tuple[State, tuple[Decision, ...]]:
    """Return what the governor remembers from now on, and what has changed for each model."""
    held = hold(state.held, facts, limits, now_s)
    state = replace(state, held=held, taken=state.taken & facts.models.keys())
    state = _cut(state, facts, limits, now_s)
    budget = limits.memory_bytes
    over = budget is not None and used_bytes(facts) > budget
    least = _excess_bytes(state, facts, limits)
    greedy = None if least is None else _greedy(state, facts, least)
    state, killed = _moved(state, facts, limits, greedy, now_s)
    ailment = state.ailment
    if budget is not None and over:
        ailment = Ailment(ailment.level, Cause.MEMORY, used_bytes(facts), budget)
    before, after = state.treatments, _treatments(state, facts)
    decisions = [
        Decision(_kind(before.get(model, _UNTREATED), treatment), model, treatment, ailment)
        for model, treatment in after.items()
        if treatment != before.get(model, _UNTREATED)
    ]
    if killed is not None:
        decisions.append(Decision(Kind.RESTART, killed, after[killed], ailment))
    return replace(state, treatments=MappingProxyType(after)), tuple(decisions)


def _moved(
    state: State, facts: Facts, limits: Limits, greedy: ModelName | None, now_s: float
) -> tuple[State, ModelName | None]:
    """Take one worker away, or let one back, if it is time; or name the greedy one, to be killed."""
    pause_s = now_s - state.moved_s
    if greedy is not None:
        return (replace(state, moved_s=now_s), greedy) if pause_s >= TAKE_PAUSE_S else (state, None)
    victim = _victim(state, facts, limits)
    if victim is not None:
        if pause_s >= TAKE_PAUSE_S:
            state = replace(state, taken=state.taken | {victim}, moved_s=now_s)
        return state, None
    back = _returning(state, facts, limits) if pause_s >= DWELL_S else None
    if back is not None:
        state = replace(state, taken=state.taken - {back}, moved_s=now_s)
    return state, None


_UNTREATED: Final = Treatment()


def _cut(state: State, facts: Facts, limits: Limits, now_s: float) -> State:
    """Say how much of the time models may work so that together they stay within the budget of cores."""
    held = state.held.get(Cause.CPU)
    if limits.cpu_cores is None or held is None or held.ailment.level is Level.CALM:
        return replace(state, cpu_duty=1.0)
    used_cores = cores(facts)
    if used_cores <= limits.cpu_cores or now_s - state.cut_s < CUT_PAUSE_S:
        return state
    # In eighths, so that a reading that trembles is no new decision each time.
    duty = math.floor(state.cpu_duty * limits.cpu_cores / used_cores * 8) / 8
    return replace(state, cpu_duty=max(duty, DUTY_MIN), cut_s=now_s)


def _by_value(state: State, facts: Facts) -> list[ModelName]:
    """List the models that have a worker, the least valuable first.

    Of models with the same priority those already treated worse come first, so that it does not change hands.
    """

    def rank(model: ModelName) -> tuple[int, int, float, int, ModelName]:
        usage = facts.models[model]
        treated = state.treatments.get(model, _UNTREATED).measure
        return usage.priority, -treated, -usage.idle_s, -usage.memory_bytes, model

    return sorted(facts.models.keys() - state.taken, key=rank)


def _excess_bytes(state: State, facts: Facts, limits: Limits) -> int | None:
    """Say how far above its grant a worker has to be to be killed for it; None if memory is not short.

    Over the budget any excess counts; on a device that is short of memory, one that would end that.
    """
    if limits.memory_bytes is not None and used_bytes(facts) > limits.memory_bytes:
        return 0
    short = any(
        state.held[cause].ailment.level >= Level.EVICT
        for cause in (Cause.DEVICE_MEMORY, Cause.PRESSURE)
        if cause in state.held
    )
    return RESERVE_BYTES if short else None


def _greedy(state: State, facts: Facts, least_bytes: int) -> ModelName | None:
    """Find the worker that is furthest above what it was granted, and by more than `least_bytes`."""
    excess = {
        model: usage.memory_bytes - usage.granted_bytes
        for model, usage in facts.models.items()
        if model not in state.taken and usage.memory_bytes - usage.granted_bytes > least_bytes
    }
    return max(sorted(excess), key=lambda model: excess[model], default=None)


def _victim(state: State, facts: Facts, limits: Limits) -> ModelName | None:
    """Find the worker to take away, if one has to go."""
    order = _by_value(state, facts)
    if limits.memory_bytes is not None and used_bytes(facts) > limits.memory_bytes:
        # A model without a worker has nothing to give back.
        return next((model for model in order if facts.models[model].memory_bytes), None)
    level = state.ailment.level
    if level < Level.EVICT:
        return None
    return next(iter(order if level is Level.LAST else order[:-1]), None)


def _returning(state: State, facts: Facts, limits: Limits) -> ModelName | None:
    """Find the most valuable model that was taken away and has room again."""
    if state.ailment.level >= Level.EVICT:
        return None
    fitting = []
    for model in state.taken:
        granted = facts.models[model].granted_bytes
        budget = limits.memory_bytes
        fits = budget is None or used_bytes(facts) + granted <= budget * BACK_FRACTION
        free = facts.available_bytes
        if fits and (free is None or free - granted >= RESERVE_BYTES * BACK_RESERVES):
            fitting.append(model)
    return max(sorted(fitting), key=lambda model: facts.models[model].priority, default=None)


def _treatments(state: State, facts: Facts) -> dict[ModelName, Treatment]:
    level = state.ailment.level
    heat = state.held.get(Cause.TEMPERATURE)
    duty = min(state.cpu_duty, 1.0 if heat is None else _HEAT_DUTY[heat.ailment.level])
    order = _by_value(state, facts)
    found = dict.fromkeys(state.taken, Treatment(Measure.EVICT, 0.0))
    for model in order:
        spared = model == order[-1] and level <= Level.SHED
        if level >= Level.SHED and not spared:
            found[model] = Treatment(Measure.SHED, 0.0)
        elif level >= Level.FALL_BACK and facts.models[model].smaller:
            found[model] = Treatment(Measure.FALL_BACK, duty)
        else:
            found[model] = Treatment(Measure.THROTTLE if duty < 1 else Measure.NONE, duty)
    return found


def _kind(before: Treatment, after: Treatment) -> Kind:
    if (after.measure, -after.duty) < (before.measure, -before.duty):
        return Kind.RESUME
    return _KINDS[after.measure]


_KINDS: Final = {
    Measure.NONE: Kind.RESUME,
    Measure.THROTTLE: Kind.THROTTLE,
    Measure.FALL_BACK: Kind.FALL_BACK,
    Measure.SHED: Kind.SHED,
    Measure.EVICT: Kind.EVICT,
}
