"""What a bundle expects of what users send: ranges, missing values, how many requests; and what follows if it is not so.

Decides the fields and their limits. Without a policy that says otherwise a violation is only counted: the model answers
as before. Finding violations is the device's business, deriving ranges from reference data `reference`'s. Format:
docs/bundle-format.md.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from typing import Annotated

import msgspec

from .errors import ManifestError


class Policy(enum.Enum):
    """What becomes of a request that breaks an expectation. It is counted anyway."""

    SERVE = "serve"
    REFUSE = "refuse"
    CLIP = "clip"
    """Values outside of the range become its ends. What is missing cannot be clipped: too much of it is refused."""


class InputExpectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the elements of one input are, as callers give it.

    Reals that are infinite break it always, NaN if there are more than `missing_max` of all elements of a request.
    """

    input: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    low: float | None = None
    high: float | None = None
    missing_max: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    policy: Policy = Policy.SERVE


class Volume(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How many requests there are, at the least and at the most. Windows of counts are judged by it."""

    per_hour_min: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    per_hour_max: Annotated[float, msgspec.Meta(ge=0)] | None = None

    def is_low(self, requests: int, duration_s: float) -> bool:
        """Whether these are too few for a span of time.

        >>> Volume(per_hour_min=60).is_low(0, 60.0), Volume(per_hour_min=60).is_low(1, 60.0)
        (True, False)
        """
        # Rounded down: of one request an hour, a minute need not see any.
        return requests < math.floor(self.per_hour_min * duration_s / 3600)

    def is_high(self, requests: int, duration_s: float) -> bool:
        """Whether these are too many for a span of time."""
        most = self.per_hour_max
        return most is not None and requests > math.ceil(most * duration_s / 3600)


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All expectations of a bundle."""

    inputs: Annotated[tuple[InputExpectation, ...], msgspec.Meta(max_length=64)] = ()
    volume: Volume | None = None

    def of(self, name: str) -> InputExpectation | None:
        """Find what is expected of an input."""
        return next((one for one in self.inputs if one.input == name), None)


def check(expected: Expected, names: Iterable[str]) -> None:
    """Refuse expectations that cannot be meant.

    Args:
        expected: what a bundle expects.
        names: the inputs that callers give.

    Raises:
        ManifestError: Of an input that there is not, twice of one, a range from above to below, numbers that are none.
    """
    stated = [one.input for one in expected.inputs]
    unknown = sorted(set(stated) - set(names))
    if unknown or len(set(stated)) != len(stated):
        raise ManifestError(
            f"something is expected of {(unknown or stated)[0]!r}, which is no input or named twice"
        )
    for one in expected.inputs:
        low, high = -math.inf if one.low is None else one.low, math.inf if one.high is None else one.high
        stray = any(bound is not None and not math.isfinite(bound) for bound in (one.low, one.high))
        if stray or low > high or math.isnan(one.missing_max):
            raise ManifestError(f"{one.input!r} is expected to be from {low:g} to {high:g}")
    volume = expected.volume
    if volume is not None:
        most = math.inf if volume.per_hour_max is None else volume.per_hour_max
        if not volume.per_hour_min <= most or not math.isfinite(volume.per_hour_min):
            raise ManifestError(f"{volume.per_hour_min:g} to {most:g} requests an hour are expected")
