"""The two questions that users ask most: which layer lost the accuracy, and why int8 is not faster here.

Decides what counts as a reason and in which order reasons are told. Every reason is a figure of this conversion (a count, a
share, a latency) or something that is known of a runtime. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeml.profile import DeviceRuntime

from ..candidate import Measured, Run
from ..estimate.graph import WEIGHTED, Arithmetic, Graph, OperatorKind, arithmetic, macs
from ..known_wrong import slowness
from ..recipe import Activations, Recipe, StaticInteger
from ..select import NOISE_FRACTION, VNNI, Floor
from .sensitivity import LayerSensitivity

WHICH_LAYER: Final = "Which layer lost the accuracy?"
WHY_SLOW: Final = "Why is int8 not faster here?"
LAYERS_TOLD: Final = 3
SMALL_MACS: Final = 2_000_000
"""Below this, a request's own overhead is about as long as its arithmetic on a processor of a few GMAC/s."""
_CONVERSIONS: Final = frozenset({OperatorKind.QUANTIZE})


@dataclass(frozen=True, slots=True)
class Shown:
    """A candidate with what its file computes, what its first runtime measured, and its latency beside others in turns."""

    recipe: Recipe
    graph: Graph | None
    run: Run
    turns_ms: float | None = None


def which_layer(rows: Sequence[LayerSensitivity], floor: Floor, int8: Shown | None) -> tuple[str, ...]:
    """Say which layers lose most when they alone are quantized, in paragraphs."""
    if int8 is None or not isinstance(int8.run.outcome, Measured):
        return ("No int8 candidate ran, so there is nothing to tell apart.",)
    drop = floor.drop(int8.run.outcome.value)
    held = "keeps to the floor" if floor.holds(int8.run.outcome.value) else "misses the floor"
    first = f"{int8.recipe.name} loses {floor.said(drop)} of {floor.metric} and {held}."
    if not rows:
        return (
            first,
            "Its layers were not told apart: the file has none with weights of their own, or they cannot be quantized one by one.",
        )
    harmful = [one for one in rows if one.agreement < 1]
    if not harmful:
        noisy = min(rows, key=lambda one: one.sqnr_db)
        return (
            first,
            f"No layer changes an answer when it alone is quantized. {noisy.layer} adds most noise ({noisy.sqnr_db:.0f} dB).",
        )
    said = "; ".join(
        f"{one.layer} ({one.operator}): {1 - one.agreement:.2%} of the answers change, {one.sqnr_db:.0f} dB"
        for one in harmful[:LAYERS_TOLD]
    )
    most = f"Quantized alone, these change most answers: {said}."
    wide = [one for one in harmful[:LAYERS_TOLD] if _is_uneven(one)]
    causes = [
        f"{one.layer} has weights from {one.weight_low:.3g} to {one.weight_high:.3g} and gives {one.activation_low:.3g} to "
        f"{one.activation_high:.3g}: one of these ranges is wide for what most values need, which leaves few steps for them."
        for one in wide
    ]
    return (first, most, *causes)


def _is_uneven(one: LayerSensitivity) -> bool:
    """Whether a layer's range is wide for what it carries: much noise in it."""
    return one.sqnr_db < 20.0


def why_slow(
    plain: Shown | None, int8: Shown | None, extensions: frozenset[str], block: int
) -> tuple[str, ...]:
    """Say whether int8 is faster on this host, and why not, in paragraphs.

    Args:
        plain: the float candidate.
        int8: the static int8 candidate beside it.
        extensions: of this host's processor, as Linux spells them.
        block: channels that this host's runtime works in at once.
    """
    if plain is None or int8 is None:
        return ("There is no int8 candidate beside a float one to compare.",)
    before, after = plain.run.outcome, int8.run.outcome
    if not isinstance(before, Measured) or not isinstance(after, Measured):
        return ("One of the two did not run.",)
    before_ms, after_ms, how = before.latency_p50_ms, after.latency_p50_ms, ""
    if plain.turns_ms is not None and int8.turns_ms is not None:
        before_ms, after_ms, how = plain.turns_ms, int8.turns_ms, ", measured in turns"
    ratio = after_ms / before_ms
    told = f"{int8.recipe.name} takes {after_ms:.3f} ms on this host, {ratio:.2f} times the {before_ms:.3f} ms of {plain.recipe.name}{how}"
    reasons = tuple(_reasons(int8, extensions, block))
    if ratio <= 1 - NOISE_FRACTION:
        rest = ("It would be faster still, but for this:", *reasons) if reasons else ()
        return (f"It is faster: {told}.", *rest)
    return (
        f"{told}.",
        *(reasons or ("Nothing in the file explains it: measure it on the device with `edgeml measure`.",)),
    )


def _reasons(int8: Shown, extensions: frozenset[str], block: int) -> list[str]:
    known = slowness(int8.recipe, int8.run.runtime)
    said = [f"{known[0].upper()}{known[1:]}."] if known else []
    step = int8.recipe.compression
    signed = isinstance(step, StaticInteger) and step.activations is Activations.INT8
    if signed and int8.run.runtime is DeviceRuntime.ONNXRUNTIME and "sse4_2" in extensions:
        said.append(
            "onnxruntime has no fast kernels for int8 by int8 on x86; on ARM it has. u8s8 and u8s7 are the forms for x86."
        )
    is_for_a_chip = int8.run.runtime is DeviceRuntime.TFLITE_MICRO
    if is_for_a_chip:
        said.append(
            "Plain reference kernels ran here, a chip has its own or a maker's: their time says nothing of it."
        )
    elif "avx2" in extensions and not VNNI & extensions:
        said.append(
            "This processor has AVX2 and no VNNI: a product of int8 takes about as many instructions as one of floats. "
            "A processor with VNNI, or with dot product on ARM, gains more."
        )
    graph = int8.graph
    if graph is None:
        return said
    total = macs(graph)
    if total and total < SMALL_MACS:
        said.append(
            f"The network is small: {total / 1e6:.2f} million MACs. Calls and operators take a large part of the time, and int8 does not make them fewer."
        )
    conversions = sum(operator.kind in _CONVERSIONS for operator in graph.operators)
    if conversions > 2:
        said.append(
            f"{conversions} of its {len(graph.operators)} operators only turn floats into integers and back."
        )
    floats = [
        operator
        for operator in graph.operators
        if operator.kind in WEIGHTED and arithmetic(graph, operator) is Arithmetic.FLOAT32
    ]
    if floats and total:
        share = sum(operator.macs for operator in floats) / total
        said.append(
            f"{share:.0%} of its MACs are still in float, in {', '.join(one.name for one in floats[:LAYERS_TOLD])}."
        )
    uneven = [
        operator
        for operator in graph.operators
        if operator.kind in WEIGHTED and operator.channels > block and operator.channels % block
    ]
    if uneven and not is_for_a_chip:
        named = ", ".join(f"{one.name} ({one.channels})" for one in uneven[:LAYERS_TOLD])
        said.append(
            f"Channels are worked on {block} at a time, and these layers have other numbers of them: {named}."
        )
    return said
