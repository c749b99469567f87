"""Which requests are sampled, and when one is taken: hard ones by low confidence, others by lot.

Decides by slots instead of a threshold. In each slot the least sure request is remembered (or, in the lane that goes by
lot, one that is as likely as any other of the slot: a reservoir of one), and the slot ends as soon as the budget pays
for it. So the rate follows the budget and the size of rows by itself, what is taken is always the hardest of its time,
and there is nothing to tune when a model becomes more or less sure of itself.

The budget is exact over any 24 hours, restarts included: a bucket that starts empty, holds an eighth of a day's bytes
and fills with the other seven eighths a day. Pure: time and chance come from the caller.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from edgeml.telemetry import Why

DAY_S: Final = 86_400.0
BURST_FRACTION: Final = 0.125
UNCERTAIN_SHARE: Final = 0.75
"""Of the budget, if both lanes are wanted: a set of only hard examples would teach a model that all are hard."""
T = TypeVar("T")


class Select(enum.Enum):
    """Which lanes are wanted."""

    UNCERTAIN = "uncertain"
    RANDOM = "random"
    BOTH = "both"


class Verdict(enum.Enum):
    """What becomes of a request that its lane would take."""

    TAKEN = "taken"
    WAIT = "wait"
    """The budget does not pay for it yet."""
    TOO_LONG = "too_long"
    """It is longer than a row may be, or than the budget can ever pay at once."""


class Budget:
    """Bytes that may be spent: at most `bytes_per_day` in any 24 hours."""

    def __init__(self, bytes_per_day: float, now_s: float) -> None:
        self.most_bytes = bytes_per_day * BURST_FRACTION
        """What it can pay at once."""
        self._rate = (bytes_per_day - self.most_bytes) / DAY_S
        self._bytes = 0.0
        self._filled_at_s = now_s

    def pay(self, length_bytes: int, now_s: float) -> bool:
        """Spend if there is enough; tell whether there was."""
        self._bytes = min(self.most_bytes, self._bytes + self._rate * max(0.0, now_s - self._filled_at_s))
        self._filled_at_s = now_s
        if length_bytes > self._bytes:
            return False
        self._bytes -= length_bytes
        return True


@dataclass(frozen=True, slots=True)
class LaneRules:
    """What a lane may spend and how often; `confidence_max` is where an answer is too sure to be a hard one."""

    why: Why
    bytes_per_day: float
    interval_s: float
    row_bytes_max: int
    confidence_max: float = 1.0


class Lane(Generic[T]):
    """One way of choosing. Its first slot begins at `now_s`."""

    def __init__(self, rules: LaneRules, source: random.Random, now_s: float) -> None:
        self._rules = rules
        self._source = source
        self._budget = Budget(rules.bytes_per_day, now_s)
        self._began_s = now_s
        self._seen = 0
        self._lowest = 0.0
        self._candidate: T | None = None

    @property
    def why(self) -> Why:
        """What it samples for."""
        return self._rules.why

    def wants(self, confidence: float | None) -> bool:
        """Tell whether this request is to be the slot's candidate; if so, `put` it. Called once for every request."""
        if self._rules.why is Why.RANDOM:
            self._seen += 1
            return self._source.random() * self._seen < 1.0
        if confidence is None or confidence >= self._rules.confidence_max:
            return False
        if self._candidate is not None and confidence >= self._lowest:
            return False
        self._lowest = confidence
        return True

    def put(self, candidate: T) -> None:
        """Make it the slot's candidate."""
        self._candidate = candidate

    def candidate(self, now_s: float) -> T | None:
        """Return the slot's candidate once the slot may end."""
        return self._candidate if now_s - self._began_s >= self._rules.interval_s else None

    def settle(self, length_bytes: int, now_s: float) -> Verdict:
        """Say what becomes of the candidate, which as a row is so long; unless it waits, a new slot begins."""
        if length_bytes > min(self._rules.row_bytes_max, self._budget.most_bytes):
            verdict = Verdict.TOO_LONG
        elif self._budget.pay(length_bytes, now_s):
            verdict = Verdict.TAKEN
        else:
            return Verdict.WAIT
        self._candidate = None
        self._seen = 0
        self._began_s = now_s
        return verdict


@dataclass(frozen=True, slots=True)
class Limits:
    """What sampling may cost: bytes of rows as they are kept, in any 24 hours, and rows an hour."""

    bytes_per_day: int
    rows_per_hour: float
    row_bytes_max: int
    confidence_max: float


def lanes(select: Select, limits: Limits, source: random.Random, now_s: float) -> tuple[Lane[T], ...]:
    """Make the lanes that are wanted; together they keep the limits."""
    shares = {
        Select.UNCERTAIN: {Why.UNCERTAIN: 1.0},
        Select.RANDOM: {Why.RANDOM: 1.0},
        Select.BOTH: {Why.UNCERTAIN: UNCERTAIN_SHARE, Why.RANDOM: 1.0 - UNCERTAIN_SHARE},
    }[select]
    return tuple(
        Lane(
            LaneRules(
                why,
                limits.bytes_per_day * share,
                3600.0 / (limits.rows_per_hour * share),
                limits.row_bytes_max,
                limits.confidence_max,
            ),
            source,
            now_s,
        )
        for why, share in shares.items()
    )
