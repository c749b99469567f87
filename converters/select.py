"""Chooses one candidate for each profile, and says why each other one was not.

Decides the floor, what fits, and which of several good candidates is taken: the smaller, and of two int8 ones the
one that suits the profile's instruction set. Pure: figures in, verdicts out. A latency enters only where the instruction
set says nothing, and then the reason says that it was measured on this host.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeml.errors import BudgetError, IncompatibleError, SelectionError
from edgeml.profile import Architecture, DeviceRuntime, HardwareProfile

from .candidate import Candidate, Failed, Measured, Recipe

VNNI: Final = frozenset({"avx512_vnni", "avx_vnni"})
"""Extensions that multiply uint8 by int8 without saturating."""
NOISE_FRACTION: Final = 0.15
"""Latencies of one host that differ by less are taken as equal."""
NOISE_MS: Final = 0.05
"""So are those that differ by less than this: a call's own overhead, and what a busy host adds to it."""
_ROUNDING: Final = 1e-9
_ARM: Final = frozenset({Architecture.AARCH64, Architecture.ARMV7})


@dataclass(frozen=True, slots=True)
class Floor:
    """The least that a candidate must score: `baseline` of the model it came from, less `max_drop` (fractions of 1)."""

    metric: str
    baseline: float
    max_drop: float

    def drop(self, value: float) -> float:
        """How much lower than the baseline; never negative."""
        return max(0.0, self.baseline - value)

    def holds(self, value: float) -> bool:
        """Whether a candidate scores enough."""
        return self.drop(value) <= self.max_drop + _ROUNDING


class Verdict(enum.Enum):
    """What became of a candidate."""

    CHOSEN = "chosen"
    REFUSED = "refused"
    """It misses a constraint."""
    PASSED_OVER = "passed over"
    """It is good; another is better."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One candidate's verdict for one profile, with the reason in words."""

    recipe: Recipe
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen for a profile; one judgement per candidate, in their order."""

    profile: str
    chosen: Recipe
    judgements: tuple[Judgement, ...]

    @property
    def reason(self) -> str:
        """Why the chosen one was chosen."""
        return next(one.reason for one in self.judgements if one.verdict is Verdict.CHOSEN)


def check_runtime(profile: HardwareProfile) -> None:
    """Refuse a profile whose runtimes no recipe is for; costs nothing, so it is asked first.

    Raises:
        IncompatibleError: The profile has no onnxruntime.
    """
    if DeviceRuntime.ONNXRUNTIME not in profile.runtimes:
        runtime = profile.runtimes[0].value if profile.runtimes else "bare hardware"
        raise IncompatibleError(
            f"no converter for {runtime} yet, which is what profile {profile.name} runs",
            hint="profiles with onnxruntime can be converted for; `edgeml profiles list` shows them",
        )


def select(candidates: Sequence[Candidate], profile: HardwareProfile, floor: Floor) -> Selection:
    """Choose for one profile.

    Raises:
        IncompatibleError: The profile has no runtime for any candidate.
        BudgetError: Candidates score enough, and none of those fits the profile.
        SelectionError: No candidate scores enough, or none runs.
    """
    check_runtime(profile)
    refusals = {one.recipe: _refusal(one, profile, floor) for one in candidates}
    good = [one for one in candidates if not refusals[one.recipe]]
    if not good:
        raise _nothing_left(candidates, profile, floor)
    chosen, reason = _best(good, profile)
    judgements = []
    for one in candidates:
        if refusals[one.recipe]:
            judgements.append(Judgement(one.recipe, Verdict.REFUSED, refusals[one.recipe]))
        elif one is chosen:
            judgements.append(Judgement(one.recipe, Verdict.CHOSEN, reason))
        else:
            judgements.append(Judgement(one.recipe, Verdict.PASSED_OVER, _passed_over(one, chosen, profile)))
    return Selection(profile.name, chosen.recipe, tuple(judgements))


def _refusal(one: Candidate, profile: HardwareProfile, floor: Floor) -> str:
    if isinstance(one.outcome, Failed):
        return one.outcome.reason
    if one.length_bytes > profile.model_storage.value:
        return f"does not fit: {size(one.length_bytes)} of {size(profile.model_storage.value)} storage for a model"
    if one.outcome.peak_memory_bytes > profile.model_memory.value:
        return (
            f"does not fit: took {size(one.outcome.peak_memory_bytes)} with its runtime, measured on this host, "
            f"of {size(profile.model_memory.value)} memory for a model"
        )
    if not floor.holds(one.outcome.value):
        return f"{floor.metric} drops {points(floor.drop(one.outcome.value))} points, more than {points(floor.max_drop)}"
    return ""


def _best(good: Sequence[Candidate], profile: HardwareProfile) -> tuple[Candidate, str]:
    plain = next((one for one in good if not one.recipe.is_int8), None)
    shrunk = [one for one in good if one.recipe.is_int8]
    if shrunk:
        best, why = _best_int8(shrunk, profile)
        if plain is None or best.length_bytes < plain.length_bytes:
            return best, f"within the floor, {_share(best, plain)}; {why}"
    assert plain is not None
    return plain, "within the floor; " + (
        "no int8 candidate is smaller" if shrunk else "no int8 candidate is left"
    )


def _best_int8(shrunk: Sequence[Candidate], profile: HardwareProfile) -> tuple[Candidate, str]:
    by_recipe = {one.recipe: one for one in shrunk}
    if len(by_recipe) == 1:
        return shrunk[0], "the only int8 candidate left"
    wanted = _by_instruction_set(profile)
    if wanted is not None:
        return by_recipe[
            wanted
        ], f"{_letters(wanted)} by the profile's instruction set ({_instructions(profile)})"
    unsigned, signed = by_recipe[Recipe.INT8_U8S8], by_recipe[Recipe.INT8_S8S8]
    fast, slow = sorted((unsigned, signed), key=_latency_ms)
    if _latency_ms(slow) - _latency_ms(fast) < max(NOISE_MS, NOISE_FRACTION * _latency_ms(slow)):
        return signed, "s8s8, onnxruntime's default: both are equally fast, measured on this host"
    caution = " (without VNNI u8s8 may saturate: verify it on such a machine)" if fast is unsigned else ""
    return fast, f"{_letters(fast.recipe)} is the faster, measured on this host{caution}"


def _by_instruction_set(profile: HardwareProfile) -> Recipe | None:
    if profile.architecture in _ARM:
        return Recipe.INT8_S8S8
    return Recipe.INT8_U8S8 if VNNI & set(profile.extensions) else None


def _instructions(profile: HardwareProfile) -> str:
    return ", ".join(sorted(VNNI & set(profile.extensions))) or profile.architecture.value


def _passed_over(one: Candidate, chosen: Candidate, profile: HardwareProfile) -> str:
    if one.recipe.is_int8 and chosen.recipe.is_int8:
        if _by_instruction_set(profile) is not None:
            return f"{_letters(chosen.recipe)} suits the profile's instruction set ({_instructions(profile)})"
        return f"{_letters(chosen.recipe)} is at least as fast, measured on this host"
    return (
        f"larger than {chosen.recipe.variant}"
        if one.length_bytes > chosen.length_bytes
        else f"not smaller than {chosen.recipe.variant}"
    )


def _nothing_left(
    candidates: Sequence[Candidate], profile: HardwareProfile, floor: Floor
) -> BudgetError | SelectionError:
    measured = [(one, one.outcome) for one in candidates if isinstance(one.outcome, Measured)]
    enough = [(one, outcome) for one, outcome in measured if floor.holds(outcome.value)]
    if enough:
        return _too_large(enough, profile)
    nearest = sorted(measured, key=lambda pair: floor.drop(pair[1].value))
    if not nearest:
        failures = [
            f"{one.recipe.variant}: {one.outcome.reason}"
            for one in candidates
            if isinstance(one.outcome, Failed)
        ]
        return SelectionError(
            f"no candidate runs: {'; '.join(failures) or 'there is none'}", hint="run `edgeml doctor`"
        )
    shown = ", ".join(
        f"{one.recipe.variant} drops {points(floor.drop(outcome.value))}" for one, outcome in nearest
    )
    return SelectionError(
        f"no candidate for {profile.name} keeps {floor.metric} within {points(floor.max_drop)} points of {floor.baseline:.2%}: {shown}",
        hint=f"allow --max-drop {floor.drop(nearest[0][1].value) * 100:.2g}% or more, or give calibration data nearer to the evaluation data",
    )


def _too_large(enough: Sequence[tuple[Candidate, Measured]], profile: HardwareProfile) -> BudgetError:
    storage, memory = profile.model_storage.value, profile.model_memory.value
    fitting = [(one, outcome) for one, outcome in enough if one.length_bytes <= storage]
    if not fitting:
        one = min((one for one, _ in enough), key=lambda each: each.length_bytes)
        return BudgetError(
            f"nothing fits {profile.name}: the smallest candidate, {one.recipe.variant}, has {size(one.length_bytes)} of {size(storage)} storage for a model",
            budget=storage, observed=one.length_bytes, unit="bytes", hint="train a smaller model, or choose another profile",
        )  # fmt: skip
    one, outcome = min(fitting, key=lambda pair: pair[1].peak_memory_bytes)
    return BudgetError(
        f"nothing fits {profile.name}: the least, {one.recipe.variant}, took {size(outcome.peak_memory_bytes)} with its runtime, measured on this host, of {size(memory)} memory for a model",
        budget=memory, observed=outcome.peak_memory_bytes, unit="bytes", hint="train a smaller model, or choose another profile",
    )  # fmt: skip


def size(count: float) -> str:
    """Write a number of bytes for people, with the budget and the observation in the same unit.

    >>> size(812), size(31853), size(2070000000)
    ('812 B', '31.9 kB', '2070.0 MB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def points(fraction: float) -> str:
    """Write a fraction as percentage points.

    >>> points(0.005), points(0.012)
    ('0.50', '1.20')
    """
    return f"{fraction * 100:.2f}"


def _share(one: Candidate, plain: Candidate | None) -> str:
    return (
        f"{one.length_bytes / plain.length_bytes:.0%} of the fp32 file"
        if plain is not None
        else f"{size(one.length_bytes)}"
    )


def _letters(recipe: Recipe) -> str:
    return recipe.value.rpartition("-")[2]


def _latency_ms(one: Candidate) -> float:
    assert isinstance(one.outcome, Measured)
    return one.outcome.latency_p50_ms
