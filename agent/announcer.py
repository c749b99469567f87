"""The announcer: how decisions of the governor are told to the fleet, and counted.

Decides the words, and how often the same is said again: a device that trembles at a threshold must not fill the fleet's
store. Counts are complete, whatever is said. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgeml.ids import ModelName, ReleaseId
from edgeml.telemetry import Event

from .diagnosis import Ailment, Cause
from .governor import Decision, Kind

REPEAT_S: Final = 300.0
"""The same is said of a model again after this."""
_EVENTS: Final = {
    Kind.THROTTLE: "throttled",
    Kind.FALL_BACK: "fell_back",
    Kind.SHED: "shed",
    Kind.RESTART: "worker_over_memory",
    Kind.EVICT: "evicted",
    Kind.RESUME: "resumed",
}
_MEBIBYTE: Final = 1 << 20


class Announcer:
    """What was decided since the agent started. For one thread, but `counts` may be read from any."""

    def __init__(self) -> None:
        self._counts: dict[tuple[ModelName, Kind, Cause], int] = {}
        self._said_s: dict[tuple[ModelName, Kind], float] = {}
        self._unsaid: dict[tuple[ModelName, Kind], int] = {}

    @property
    def counts(self) -> Mapping[tuple[ModelName, Kind, Cause], int]:
        """How often what was decided for which model, and why."""
        return dict(self._counts)

    def hear(self, decision: Decision, release: ReleaseId | None, now_s: float, now_ms: int) -> Event | None:
        """Count a decision, and return what the fleet is told of it; None if it heard the same lately."""
        counted = (decision.model, decision.kind, decision.ailment.cause)
        self._counts[counted] = self._counts.get(counted, 0) + 1
        said = (decision.model, decision.kind)
        if now_s - self._said_s.get(said, float("-inf")) < REPEAT_S:
            self._unsaid[said] = self._unsaid.get(said, 0) + 1
            return None
        self._said_s[said] = now_s
        unsaid = self._unsaid.pop(said, 0)
        more = f"; {unsaid} times more since it was last said" if unsaid else ""
        return Event(0, _EVENTS[decision.kind], now_ms, describe(decision) + more, release)


def describe(decision: Decision) -> str:
    """Say in one line what was decided and why."""
    done = decision.treatment
    share = f"works {done.duty * 100:.0f} % of the time"
    match decision.kind:
        case Kind.THROTTLE:
            what = share
        case Kind.FALL_BACK:
            what = "uses a smaller variant" + (f", {share}" if done.duty < 1 else "")
        case Kind.SHED:
            what = "turns requests away"
        case Kind.RESTART:
            what = "its worker was killed and starts anew"
        case Kind.EVICT:
            what = "its worker was taken away"
        case Kind.RESUME:
            what = "is better off again" if done.duty else "has a worker again, turns requests away"
            what += f", {share}" if 0 < done.duty < 1 else ""
    return f"{decision.model} {what}: {explain(decision.ailment)}"


def explain(ailment: Ailment) -> str:
    """Say what was read, and what would be right."""
    observed, limit = ailment.observed, ailment.limit
    match ailment.cause:
        case Cause.NONE:
            return "nothing is wrong"
        case Cause.TEMPERATURE:
            return f"{observed:.1f} °C, the limit is {limit:.1f} °C"
        case Cause.MEMORY:
            return f"workers use {observed / _MEBIBYTE:.1f} MiB of a budget of {limit / _MEBIBYTE:.1f} MiB"
        case Cause.DEVICE_MEMORY:
            return f"the device has {observed / _MEBIBYTE:.1f} MiB left, it should keep {limit / _MEBIBYTE:.1f} MiB"
        case Cause.PRESSURE:
            return f"processes waited for memory {observed:.1f} % of the time, the limit is {limit:.1f} %"
        case Cause.CPU:
            return f"workers use {observed:.2f} cores of a budget of {limit:.2f}"
