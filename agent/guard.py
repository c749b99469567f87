"""The guard: looks at what a request brings before anything is done with it.

Decides which expectations of the bundle a request breaks, and whether it is served, clipped or refused. Counts, and never
more than once a kind and request: a flood of bad inputs is a number. A request that breaks nothing costs one pass for the
lowest and one for the highest element. Needs numpy: it lives in the worker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeml.errors import ConfigError
from edgeml.expectation import Expected, InputExpectation, Policy
from edgeml.telemetry import InputQuality
from edgeml.tensors import TensorSpec

Array = npt.NDArray[np.generic]
_HINT: Final = "the model's bundle refuses such inputs"


@dataclass(frozen=True, slots=True)
class _Broken:
    """What one input breaks. `reason` says which value broke which bound."""

    missing: bool
    non_finite: bool
    out_of_range: bool
    reason: str


class Guard:
    """Checks the inputs of one variant. Not thread-safe: it lives in the worker's only thread."""

    def __init__(self, expected: Expected | None, inputs: Sequence[TensorSpec]) -> None:
        """Prepare it.

        Args:
            expected: of the bundle; None: everything is served, and nothing costs anything.
            inputs: as callers give them, in their order.
        """
        checks = [(at, _bind(expected, spec)) for at, spec in enumerate(inputs)]
        self._checks = [(at, one) for at, one in checks if one is not None]
        self._counted = InputQuality()

    def admit(self, given: list[Array]) -> list[Array]:
        """Return what is to be served: the arrays themselves, or clipped ones.

        Raises:
            ConfigError: The bundle refuses them; the message says which value of which input broke which bound.
        """
        for at, check in self._checks:
            if not check.is_sound(given[at]):
                return self._judge(given)
        return given

    def take(self) -> InputQuality:
        """Return what was counted since the last call."""
        counted, self._counted = self._counted, InputQuality()
        return counted

    def _judge(self, given: list[Array]) -> list[Array]:
        found = [(at, check, check.broken(given[at])) for at, check in self._checks]
        bad = [(at, check, broken) for at, check, broken in found if broken is not None]
        refusal = next(
            (
                broken.reason
                for _, check, broken in bad
                if check.policy is Policy.REFUSE or (check.policy is Policy.CLIP and broken.missing)
            ),
            None,
        )
        clipped = list(given)
        clips = [(at, check) for at, check, _ in bad if check.policy is Policy.CLIP]
        if refusal is None:
            for at, check in clips:
                clipped[at] = check.clip(given[at])
        self._counted = self._counted.plus(
            InputQuality(
                missing=any(broken.missing for _, _, broken in bad),
                non_finite=any(broken.non_finite for _, _, broken in bad),
                out_of_range=any(broken.out_of_range for _, _, broken in bad),
                refused=refusal is not None,
                clipped=refusal is None and bool(clips),
            )
        )
        if refusal is not None:
            raise ConfigError(refusal, hint=_HINT)
        return clipped


class _Check:
    """The expectation of one input, as numbers of its type."""

    def __init__(self, expectation: InputExpectation, kind: np.dtype[Any]) -> None:
        self.policy = expectation.policy
        self._name = expectation.input
        self._missing_max = expectation.missing_max
        self._is_real = kind.kind == "f"
        stated = [expectation.low, expectation.high]
        limits: Any = np.iinfo(kind) if not self._is_real else np.finfo(kind)
        if self._is_real:
            # A bound is of the input's own type: 0.1 in float32 is not above a bound of 0.1.
            with np.errstate(over="ignore"):
                stated = [None if bound is None else float(kind.type(bound)) for bound in stated]
        ends = (limits.min.item(), limits.max.item()) if self._is_real else (limits.min, limits.max)
        low, high = stated
        self.low: float = ends[0] if low is None else max(low, ends[0])
        self.high: float = ends[1] if high is None else min(high, ends[1])
        self.is_needed = self._is_real or (self.low, self.high) != ends

    def is_sound(self, array: Array) -> bool:
        """Whether nothing is broken, for certain; NaN compares as unsound."""
        if not array.size:
            return True
        return bool(
            self.low <= np.minimum.reduce(array, axis=None)
            and np.maximum.reduce(array, axis=None) <= self.high
        )

    def broken(self, array: Array) -> _Broken | None:
        """Say what is broken; None if nothing is."""
        if self.is_sound(array):
            return None
        nothing = np.broadcast_to(np.False_, array.shape)
        missing = np.isnan(array) if self._is_real else nothing
        infinite = np.isinf(array) if self._is_real else nothing
        outside = (np.less(array, self.low) | np.greater(array, self.high)) & ~infinite
        count = int(missing.sum())
        is_missing = count > self._missing_max * array.size
        reasons = []
        if is_missing:
            reasons.append(
                f"{count} of {array.size} values are missing, at most {self._missing_max:.3g} of all may be"
            )
        if outside.any() or infinite.any():
            # The first one by its place in the flat array: a list of all would be larger than the request.
            first = int((outside if outside.any() else infinite).argmax())
            at = tuple(map(int, np.unravel_index(first, array.shape)))
            value = float(array[at])
            bound = f"at least {self.low:.9g}" if value < self.low else f"at most {self.high:.9g}"
            reasons.append(f"value {list(at)} is {value:.9g}, {bound} is expected")
        if not reasons:
            return None
        return _Broken(
            is_missing, bool(infinite.any()), bool(outside.any()), f"{self._name}: {'; '.join(reasons)}"
        )

    def clip(self, array: Array) -> Array:
        """Bring values into the range, in the type that they have; NaN stays."""
        low, high = self.low, self.high
        if not self._is_real:
            low, high = math.ceil(low), math.floor(high)
        clipped: Array = np.clip(array, low, high).astype(array.dtype, copy=False)
        return clipped


def _bind(expected: Expected | None, spec: TensorSpec) -> _Check | None:
    expectation = None if expected is None else expected.of(spec.name)
    kind = np.dtype(spec.dtype.value)
    if expectation is None or kind.kind == "b":
        return None
    check = _Check(expectation, kind)
    return check if check.is_needed else None
