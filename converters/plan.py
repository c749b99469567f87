"""What is tried, and in which order: the cheapest first.

Decides the stages of a search for one profile. A stage is made and verified as a whole; whether the next one is needed is
asked after each (`search.py`). Whether a recipe is known to be wrong on a runtime is `known_wrong.py`'s business: such a
recipe is not planned, unless everything is to be explored, and is refused then. Pure.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from edgeml.errors import IncompatibleError
from edgeml.manifest import RuntimeFamily
from edgeml.profile import DeviceRuntime, HardwareProfile

from .opset import NIBBLE_OPSET, OPSET, opset_for
from .recipe import (
    Activations,
    Boundary,
    CalibrationMethod,
    Compression,
    DynamicInt8,
    Encoding,
    Export,
    Float16,
    Layers,
    Layout,
    Prune,
    QuantizationAwareTraining,
    Recipe,
    StaticInteger,
    Student,
    WeightOnly,
)
from .select import letters_for

PRUNE_RATIOS: Final = (0.3, 0.5, 0.6, 0.7)
RUNTIMES: Final = {
    RuntimeFamily.ONNX: frozenset({DeviceRuntime.ONNXRUNTIME}),
    RuntimeFamily.TFLITE: frozenset(
        {DeviceRuntime.AI_EDGE_LITERT, DeviceRuntime.TFLITE_RUNTIME, DeviceRuntime.TFLITE_MICRO}
    ),
    RuntimeFamily.TORCHSCRIPT: frozenset({DeviceRuntime.TORCH}),
}
"""Which runtimes load which family."""


class Effort(enum.Enum):
    """How far a search goes."""

    FIRST = "first"
    """Until something smaller than the plain export keeps to every constraint."""
    EXPLORE = "explore"
    """Through every stage."""


class Lack(enum.Enum):
    """What a profile still misses after what was tried."""

    NOTHING = "nothing"
    """Something other than the plain export keeps to every constraint."""

    ACCURACY = "accuracy"
    """Everything smaller than the plain export scores too low, or does not run."""
    COST = "cost"
    """Something scores enough, and takes too much memory or time."""
    BYTES = "bytes"
    """Everything that scores enough is too large a file."""


class Need(enum.Enum):
    """What a stage needs before its recipes are known."""

    NOTHING = "nothing"
    SENSITIVITY = "sensitivity"
    """The layers, worst first, by a scan of the stage's only recipe."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Recipes that are tried together.

    `helps` is where a stage is of use: it is left out where something else lacks. `cost_s` is about how many seconds one
    recipe takes, for the progress bar.
    """

    title: str
    recipes: tuple[Recipe, ...]
    cost_s: float
    helps: frozenset[Lack] = frozenset()
    need: Need = Need.NOTHING


@dataclass(frozen=True, slots=True)
class Means:
    """What there is to search with: what the source can become, whether it can be trained, the students that were named.

    `is_image` is whether one sample has three dimensions, the first of which are channels. `opset` is what ONNX comes in.
    """

    families: tuple[RuntimeFamily, ...]
    can_train: bool = False
    students: tuple[Student, ...] = ()
    is_image: bool = False
    opset: int = OPSET


_ALWAYS: Final = frozenset(Lack)
_ACCURACY: Final = frozenset({Lack.ACCURACY})
_SMALLER: Final = frozenset({Lack.ACCURACY, Lack.BYTES})
_COST: Final = frozenset({Lack.COST, Lack.BYTES})


def family_for(profile: HardwareProfile, means: Means, wanted: RuntimeFamily | None) -> RuntimeFamily:
    """Decide what a profile gets: what was asked for, else ONNX where it has onnxruntime, else TFLite, else TorchScript.

    Raises:
        IncompatibleError: The profile has no runtime for what the source can become, or for what was asked for.
    """
    candidates = means.families if wanted is None else (wanted,)
    for family in RuntimeFamily:
        if family in candidates and family in means.families and RUNTIMES[family] & set(profile.runtimes):
            return family
    has = ", ".join(runtime.value for runtime in profile.runtimes) or "no runtime"
    can = " and ".join(family.value for family in means.families) or "nothing"
    if wanted is None:
        raise IncompatibleError(
            f"profile {profile.name} has {has}, and the model can become {can}",
            hint="`edgeml profiles list` shows which profile has which runtime; a torch model can become both",
        )
    # What it would get otherwise; if that is nothing either, it is not the wish that is wrong.
    other = family_for(profile, means, None)
    hint = f"leave --target: {profile.name} gets {other.value} then"
    if wanted not in means.families:
        raise IncompatibleError(
            f"--target {wanted.value}: the model cannot become that, only {can}", hint=hint
        )
    needed = " or ".join(sorted(runtime.value for runtime in RUNTIMES[wanted]))
    raise IncompatibleError(
        f"--target {wanted.value}: profile {profile.name} has {has}, and that needs {needed}",
        hint=f"{hint}; or give a profile whose runtimes have {needed}",
    )


def stages(
    profile: HardwareProfile, means: Means, family: RuntimeFamily, effort: Effort
) -> tuple[Stage, ...]:
    """Plan a search for one profile.

    Args:
        profile: the hardware.
        means: what there is to search with.
        family: what the profile gets.
        effort: EXPLORE adds what is seldom worth it.
    """
    export = export_for(profile, means, family)
    if family is RuntimeFamily.TORCHSCRIPT:
        # torch's own quantization of TorchScript is given up by torch; what is smaller has fewer channels.
        return (
            Stage("as it is", (Recipe(export),), 4.0, _ALWAYS),
            *_smaller_networks(profile, means, export, [None]),
        )
    static = static_for(profile, family)
    planned = [
        Stage("as it is", (Recipe(export),), 4.0, _ALWAYS),
        Stage("static int8", (Recipe(export, (), static),), 1.5, _ALWAYS),
        Stage("other ranges", _compressed(export, _other_ranges(static)), 2.0, _ACCURACY),
        Stage("mixed precision", (Recipe(export, (), static),), 2.0, _ACCURACY, Need.SENSITIVITY),
    ]
    if effort is Effort.EXPLORE:
        planned.append(Stage("other forms of int8", _compressed(export, _other_forms(static, family)), 2.0))
    planned.append(
        Stage("float16 and weights", _compressed(export, _weights(profile, export, effort)), 1.5, _SMALLER)
    )
    planned += _training_stages(profile, means, export, static)
    return tuple(stage for stage in planned if stage.recipes)


def as_it_is(planned: Sequence[Stage]) -> tuple[Stage, ...]:
    """Leave of a plan what can be done with a file that is quantized already: nothing but its own verification."""
    first = planned[0]
    recipes = tuple(Recipe(msgspec.structs.replace(one.export, is_quantized=True)) for one in first.recipes)
    return (replace(first, recipes=recipes),)


def mixed(recipe: Recipe, exclusions: Sequence[tuple[str, ...]]) -> tuple[Recipe, ...]:
    """Make the recipes of mixed precision: one for each growing set of layers that stay in float."""
    static = recipe.compression
    assert isinstance(static, StaticInteger)
    return tuple(
        msgspec.structs.replace(recipe, compression=msgspec.structs.replace(static, float_layers=layers))
        for layers in exclusions
    )


def export_for(profile: HardwareProfile, means: Means, family: RuntimeFamily) -> Export:
    """Decide how the model is written: in an opset that the runtime reads, for microcontrollers with channels last.

    Raises:
        IncompatibleError: As `opset_for`.
    """
    if family is RuntimeFamily.ONNX:
        return Export(family, opset_for(profile, means.opset))
    on_microcontroller = DeviceRuntime.TFLITE_MICRO in profile.runtimes
    return Export(
        family, layout=Layout.CHANNELS_LAST if on_microcontroller and means.is_image else Layout.SOURCE
    )


def static_for(profile: HardwareProfile, family: RuntimeFamily) -> StaticInteger:
    """Decide the first int8 recipe of a profile."""
    if family is RuntimeFamily.TFLITE:
        on_microcontroller = DeviceRuntime.TFLITE_MICRO in profile.runtimes
        return StaticInteger(
            Activations.INT8, boundary=Boundary.INTEGER if on_microcontroller else Boundary.FLOAT
        )
    activations, weight_bits = letters_for(profile) or (Activations.INT8, 8)
    return StaticInteger(activations, weight_bits=weight_bits)


def _compressed(export: Export, steps: Sequence[Compression]) -> tuple[Recipe, ...]:
    return tuple(Recipe(export, (), step) for step in steps)


def _other_ranges(static: StaticInteger) -> tuple[StaticInteger, ...]:
    if static.boundary is not Boundary.INTEGER:
        return ()  # ai-edge-quantizer knows min-max alone.
    return tuple(
        msgspec.structs.replace(static, calibration=method)
        for method in (CalibrationMethod.PERCENTILE, CalibrationMethod.ENTROPY)
    )


def _other_forms(static: StaticInteger, family: RuntimeFamily) -> tuple[Compression, ...]:
    change = msgspec.structs.replace
    if family is RuntimeFamily.TFLITE:
        return (
            change(static, activations=Activations.INT16),
            DynamicInt8(Layers.ALL),
            DynamicInt8(Layers.LINEAR),
        )
    letters = ((Activations.UINT8, 8), (Activations.INT8, 8), (Activations.UINT8, 7))
    others = [
        change(static, activations=activations, weight_bits=bits)
        for activations, bits in letters
        if (activations, bits) != (static.activations, static.weight_bits)
    ]
    return (
        change(static, encoding=Encoding.QDQ),
        *others,
        change(static, activations=Activations.INT16, weight_bits=8, encoding=Encoding.QDQ),
        DynamicInt8(Layers.LINEAR),
    )


def _weights(profile: HardwareProfile, export: Export, effort: Effort) -> tuple[Compression, ...]:
    if profile.runtimes == (DeviceRuntime.TFLITE_MICRO,):
        return ()  # TFLite Micro refuses float activations with small weights.
    steps: tuple[Compression, ...] = (WeightOnly(8), Float16())
    if effort is Effort.EXPLORE:
        steps = (WeightOnly(8), WeightOnly(4), Float16())
    return tuple(
        step for step in steps if step != WeightOnly(4) or not export.opset or export.opset >= NIBBLE_OPSET
    )


def _training_stages(
    profile: HardwareProfile, means: Means, export: Export, static: StaticInteger
) -> list[Stage]:
    if not means.can_train:
        return []
    aware = Recipe(export, (QuantizationAwareTraining(static.weight_bits, static.activations),), static)
    found = [Stage("quantization-aware training", (aware,), 30.0, _ACCURACY)]
    smaller: list[Compression | None] = (
        [static] if export.family is RuntimeFamily.TFLITE else [static, WeightOnly(8)]
    )
    return [*found, *_smaller_networks(profile, means, export, smaller)]


def _smaller_networks(
    profile: HardwareProfile, means: Means, export: Export, smaller: Sequence[Compression | None]
) -> list[Stage]:
    """Plan what is trained, and each way of compressing it."""
    if not means.can_train:
        return []
    block = int(profile.channel_block.value)
    found = []
    for title, steps, cost_s in (
        ("pruning", [Prune(ratio, block) for ratio in PRUNE_RATIOS], 40.0),
        ("students", list(means.students), 60.0),
    ):
        # Trained once a step. Where integers are no faster than floats, small weights keep the speed of a small network.
        recipes = tuple(Recipe(export, (step,), one) for step in steps for one in smaller)
        found.append(Stage(title, recipes, cost_s / len(smaller), _COST))
    return found
