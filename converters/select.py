"""Chooses one candidate for each profile, and says why each other one was not.

Decides what a candidate must keep to, and which of several good ones is taken: the smallest or the fastest, as preferred;
of those that are as good, the one that suits the profile's instruction set. A candidate must score enough on every runtime
of the profile that it was run on, and must have run on one. Pure: figures in, verdicts out. How verdicts are told is
`verdict.py`'s business.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeml.errors import BudgetError, SelectionError
from edgeml.profile import Architecture, DeviceRuntime, HardwareProfile

from .amounts import drop_at_least
from .candidate import Basis, Failed, Figure, Measured, Placement
from .metrics import Direction
from .recipe import Activations, Recipe, StaticInteger
from .units import points, size

VNNI: Final = frozenset({"avx512_vnni", "avx_vnni"})
"""Extensions that multiply uint8 by int8 without saturating."""
NOISE_FRACTION: Final = 0.15
"""Latencies that differ by less are taken as equal."""
NOISE_MS: Final = 0.05
"""So are those that differ by less than this: a call's own overhead, and what a busy host adds to it."""
TURNS_NOISE_MS: Final = 0.005
"""What is left of that where both were measured in turns."""
ALIKE_FRACTION: Final = 0.1
"""Files that differ by less are taken as equally small."""
NEAREST: Final = 3
_ROUNDING: Final = 1e-9
_ARM: Final = frozenset({Architecture.AARCH64, Architecture.ARMV7})


@dataclass(frozen=True, slots=True)
class Floor:
    """The least that a candidate must score: `baseline` of the model it came from, less `max_drop`.

    A drop is in the metric's own unit where higher is better (0.005 of an accuracy is half a point), and a fraction of the
    baseline where lower is better (0.005 of an error of 40 is 0.2).
    """

    metric: str
    baseline: float
    max_drop: float
    direction: Direction = Direction.HIGHER

    def drop(self, value: float) -> float:
        """How much worse than the baseline; never negative, and infinite where either is no finite number."""
        if not math.isfinite(value) or not math.isfinite(self.baseline):
            return math.inf
        if self.direction is Direction.HIGHER:
            return max(0.0, self.baseline - value)
        return max(0.0, value - self.baseline) / (abs(self.baseline) or 1.0)

    def holds(self, value: float) -> bool:
        """Whether a candidate scores enough."""
        drop = self.drop(value)
        return math.isfinite(drop) and drop <= self.max_drop + _ROUNDING

    def said(self, drop: float) -> str:
        """Write a drop for people."""
        if not math.isfinite(drop):
            return "beyond measure"
        return f"{points(drop)} points" if self.direction is Direction.HIGHER else f"{drop:.2%} of itself"


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a candidate must keep to beside what its profile offers; None where there is no such constraint."""

    floor: Floor
    max_latency_ms: float | None = None
    max_bytes: int | None = None
    max_memory_bytes: int | None = None


class Preference(enum.Enum):
    """What is better among candidates that keep to everything."""

    BYTES = "bytes"
    LATENCY = "latency"


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
    """What was chosen for a profile (None: nothing keeps to everything); one judgement per candidate, in their order."""

    profile: str
    chosen: Recipe | None
    judgements: tuple[Judgement, ...]

    @property
    def reason(self) -> str:
        """Why the chosen one was chosen."""
        return next(one.reason for one in self.judgements if one.verdict is Verdict.CHOSEN)


def select(
    placements: Sequence[Placement],
    profile: HardwareProfile,
    constraints: Constraints,
    preference: Preference,
) -> Selection:
    """Judge all candidates for one profile."""
    refusals = [refusal(one, profile, constraints) for one in placements]
    good = [one for one, refused in zip(placements, refusals, strict=True) if not refused]
    chosen = _best(good, profile, preference) if good else None
    judgements = tuple(
        Judgement(one.candidate.recipe, *_verdict(one, refused, _Choice(chosen, good, profile, preference)))
        for one, refused in zip(placements, refusals, strict=True)
    )
    return Selection(profile.name, chosen.candidate.recipe if chosen else None, judgements)


def refusal(one: Placement, profile: HardwareProfile, constraints: Constraints) -> str:
    """Say why a candidate cannot be used on a profile; empty if it can."""
    if one.candidate.failure:
        return one.candidate.failure
    if not one.runs:
        names = ", ".join(runtime.value for runtime in profile.runtimes)
        return f"could not be verified: none of {names} runs it here"
    for run in one.runs:
        if isinstance(run.outcome, Failed):
            return f"{run.runtime.value}: {run.outcome.reason}" if len(one.runs) > 1 else run.outcome.reason
    if one.known_wrong:
        return one.known_wrong
    return "; ".join(_missed(one, profile, constraints))


def _missed(one: Placement, profile: HardwareProfile, constraints: Constraints) -> list[str]:
    missed = []
    floor, length = constraints.floor, one.candidate.length_bytes
    for run in one.runs:
        assert isinstance(run.outcome, Measured)
        if not floor.holds(run.outcome.value):
            where = f" on {run.runtime.value}" if len(one.runs) > 1 else ""
            missed.append(
                f"{floor.metric} drops {floor.said(floor.drop(run.outcome.value))}{where}, more than {floor.said(floor.max_drop)}"
            )
    if one.stored_bytes > profile.model_storage.value:
        beside = f" ({size(one.beside_bytes)} of its bundle beside the model)" if one.beside_bytes else ""
        missed.append(
            f"does not fit: {size(one.stored_bytes)}{beside} of {size(profile.model_storage.value)} storage for a model"
        )
    if constraints.max_bytes is not None and length > constraints.max_bytes:
        missed.append(f"has {size(length)}, more than {size(constraints.max_bytes)}")
    if one.memory_bytes is None:
        if _must_know_memory(profile, constraints):
            missed.append(f"nobody can say its memory on {profile.name}")
    else:
        offered, allowed = profile.model_memory.value, constraints.max_memory_bytes
        taken = f"takes {size(one.memory_bytes.value)} ({one.memory_bytes.basis.value})"
        if one.memory_bytes.value > offered:
            missed.append(f"does not fit: {taken} of {size(offered)} memory for a model")
        elif allowed is not None and one.memory_bytes.value > allowed:
            missed.append(f"{taken} of memory, more than the {size(allowed)} of --max-memory")
    if constraints.max_latency_ms is not None:
        if one.latency_ms is None:
            missed.append(f"nobody can say its latency on {profile.name}")
        elif one.latency_ms.value > constraints.max_latency_ms:
            missed.append(
                f"takes {one.latency_ms.value:.3g} ms ({one.latency_ms.basis.value}), more than {constraints.max_latency_ms:g} ms"
            )
    return missed


def _must_know_memory(profile: HardwareProfile, constraints: Constraints) -> bool:
    """Whether a candidate of unknown memory is refused: a microcontroller's arena is set aside before anything runs."""
    return constraints.max_memory_bytes is not None or DeviceRuntime.TFLITE_MICRO in profile.runtimes


def suits(recipe: Recipe, profile: HardwareProfile) -> bool:
    """Whether a static recipe for ONNX has the letters that the profile's instruction set multiplies best, and rightly.

    ARM multiplies int8 by int8. x86 multiplies uint8 by int8: with VNNI exactly, without it only weights of 7 bits are
    sure not to saturate (onnxruntime's documentation of `reduce_range`).
    """
    step = recipe.compression
    if not isinstance(step, StaticInteger):
        return True
    wanted = letters_for(profile)
    return wanted is None or (step.activations, step.weight_bits) == wanted


def letters_for(profile: HardwareProfile) -> tuple[Activations, int] | None:
    """Activations and bits of weights that suit a profile's instruction set; None if it says nothing."""
    if profile.architecture in _ARM:
        return Activations.INT8, 8
    if profile.architecture is Architecture.X86_64:
        return Activations.UINT8, 8 if VNNI & set(profile.extensions) else 7
    return None


def _best(good: Sequence[Placement], profile: HardwareProfile, preference: Preference) -> Placement:
    alike = _alike(good, preference)
    suited = [one for one in alike if suits(one.candidate.recipe, profile)] or alike
    if preference is Preference.LATENCY:
        return min(suited, key=lambda one: one.candidate.length_bytes)
    quick = _quick(suited)
    return min(quick, key=lambda one: one.candidate.length_bytes)


def _alike(good: Sequence[Placement], preference: Preference) -> list[Placement]:
    """Those that are as good as the best one in what is preferred."""
    if preference is Preference.LATENCY:
        return _quick(good)
    smallest = min(one.candidate.length_bytes for one in good)
    return [one for one in good if one.candidate.length_bytes <= smallest * (1 + ALIKE_FRACTION)]


def _quick(good: Sequence[Placement]) -> list[Placement]:
    """Those that are about as fast as the fastest; all where somebody's latency is not known."""
    if any(one.latency_ms is None for one in good):
        return list(good)
    figures = [one.latency_ms for one in good if one.latency_ms is not None]
    least = min(figures, key=lambda figure: figure.value)
    return [one for one, figure in zip(good, figures, strict=True) if not slower(figure, least)]


def slower(latency: Figure, other: Figure) -> bool:
    """Whether a latency in ms is longer than another one by more than noise.

    >>> from converters.candidate import Basis
    >>> alone, turns = ([Figure(ms, basis) for ms in (0.147, 0.107)] for basis in (Basis.HOST, Basis.TURNS))
    >>> slower(*alone), slower(*turns)
    (False, True)
    """
    in_turns = latency.basis is other.basis is Basis.TURNS
    least_ms = TURNS_NOISE_MS if in_turns else NOISE_MS
    return latency.value - other.value >= max(least_ms, NOISE_FRACTION * latency.value)


@dataclass(frozen=True, slots=True)
class _Choice:
    """What was chosen, of what, for whom, and by what."""

    chosen: Placement | None
    good: Sequence[Placement]
    profile: HardwareProfile
    preference: Preference


def _verdict(one: Placement, refused: str, choice: _Choice) -> tuple[Verdict, str]:
    if refused:
        return Verdict.REFUSED, refused
    assert choice.chosen is not None
    if one is choice.chosen:
        return Verdict.CHOSEN, _why(one, choice.good, choice.profile)
    return Verdict.PASSED_OVER, _why_not(one, choice.chosen, choice.profile, choice.preference)


def _why(chosen: Placement, good: Sequence[Placement], profile: HardwareProfile) -> str:
    said = ["keeps to every constraint"]
    plain = next((one for one in good if one.candidate.recipe.is_plain and one is not chosen), None)
    if plain is not None:
        said.append(f"{chosen.candidate.length_bytes / plain.candidate.length_bytes:.0%} of the fp32 file")
    elif chosen.candidate.recipe.is_plain:
        said.append("nothing smaller does" if len(good) > 1 else "nothing else does")
    step = chosen.candidate.recipe.compression
    if isinstance(step, StaticInteger) and letters_for(profile) == (step.activations, step.weight_bits):
        said.append(
            f"{step.activations.value}s{step.weight_bits} suits the instruction set ({_instructions(profile)})"
        )
    return "; ".join(said)


def _why_not(one: Placement, chosen: Placement, profile: HardwareProfile, preference: Preference) -> str:
    mine, theirs = one.candidate.length_bytes, chosen.candidate.length_bytes
    name = chosen.candidate.name
    slow = ""
    if one.latency_ms and chosen.latency_ms and slower(one.latency_ms, chosen.latency_ms):
        slow = f"slower than {name} ({one.latency_ms.basis.value})"
    if slow and preference is Preference.LATENCY:
        return slow
    if mine > theirs * (1 + ALIKE_FRACTION):
        return f"larger than {name}: {size(mine)} against {size(theirs)}"
    if not suits(one.candidate.recipe, profile) and suits(chosen.candidate.recipe, profile):
        return f"{name} suits the instruction set better ({_instructions(profile)})"
    return slow or (
        f"not smaller than {name}" if mine >= theirs else f"hardly smaller than {name}, and no faster"
    )


def _instructions(profile: HardwareProfile) -> str:
    if profile.architecture is not Architecture.X86_64:
        architecture: str = profile.architecture.value
        return architecture
    return ", ".join(sorted(VNNI & set(profile.extensions))) or "x86-64 without VNNI"


def nothing_left(
    placements: Sequence[Placement], profile: HardwareProfile, constraints: Constraints
) -> BudgetError | SelectionError:
    """Make the error that tells the nearest candidates, and what each of them misses."""
    ran = [
        one
        for one in placements
        if one.runs and all(isinstance(run.outcome, Measured) for run in one.runs) and not one.known_wrong
    ]
    if not ran:
        failures = [f"{one.candidate.name}: {refusal(one, profile, constraints)}" for one in placements]
        return SelectionError(
            f"no candidate for {profile.name} runs: {'; '.join(failures) or 'there is none'}",
            hint="run `edgeml doctor`",
        )
    floor = constraints.floor
    enough = [one for one in ran if all(floor.holds(value) for value in _values(one))]
    if not enough:
        return _too_inaccurate(ran, profile, floor)
    nearest = sorted(enough, key=lambda one: _excess(one, profile, constraints))
    shown = "; ".join(
        f"{one.candidate.name} {refusal(one, profile, constraints)}" for one in nearest[:NEAREST]
    )
    return BudgetError(
        f"nothing that keeps {floor.metric} meets the other constraints for {profile.name}: {shown}",
        budget=1.0, observed=_excess(nearest[0], profile, constraints), unit="of a constraint",
        hint="loosen the constraint that the nearest one misses, try more with --explore (with train_x and train_y in the data, smaller networks too), or train a smaller model",
    )  # fmt: skip


def _too_inaccurate(ran: Sequence[Placement], profile: HardwareProfile, floor: Floor) -> SelectionError:
    def worst(one: Placement) -> float:
        return max(floor.drop(value) for value in _values(one))

    nearest = sorted(ran, key=worst)
    allowed = drop_at_least(worst(nearest[0]))
    shown = ", ".join(f"{one.candidate.name} drops {floor.said(worst(one))}" for one in nearest[:NEAREST])
    return SelectionError(
        f"no candidate for {profile.name} keeps {floor.metric} within {floor.said(floor.max_drop)} of {floor.baseline:.4g}: {shown}",
        hint=f"{f'allow --max-drop {allowed} or more, or ' if allowed else ''}give calibration data nearer to the evaluation data",
    )


def _values(one: Placement) -> list[float]:
    return [run.outcome.value for run in one.runs if isinstance(run.outcome, Measured)]


def _excess(one: Placement, profile: HardwareProfile, constraints: Constraints) -> float:
    """By which factor the constraint that is missed most is missed; 1 or less if none is."""
    ratios = [one.stored_bytes / profile.model_storage.value]
    if constraints.max_bytes is not None:
        ratios.append(one.candidate.length_bytes / constraints.max_bytes)
    if one.memory_bytes is not None:
        offered = min(profile.model_memory.value, constraints.max_memory_bytes or float("inf"))
        ratios.append(one.memory_bytes.value / offered)
    elif _must_know_memory(profile, constraints):
        ratios.append(float("inf"))
    if constraints.max_latency_ms is not None:
        ratios.append(
            float("inf") if one.latency_ms is None else one.latency_ms.value / constraints.max_latency_ms
        )
    return max(ratios)
