"""Pairs of recipe and runtime that are known to give wrong answers, to be refused, or to be slow.

Decides what is refused before it is tried, each row with its reason and how it was seen. What is not here is still
verified by its answers on the runtime of the device: a conversion that ends well can answer at chance level without a
word. Pure.

Wrong answers were seen with the files that ai-edge-quantizer 0.10 writes, on ai-edge-litert 2.3.0, tflite-runtime 2.14.0
and TensorFlow Lite Micro's own interpreter on x86-64, with networks of convolutions, depthwise convolutions and a linear
layer on digits, whose float files are right on each (`tests/converters/test_silent_failures.py` shows them again). The weights
in the files are right; what is wrong are the runtimes' kernels for float activations with integer weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from edgeml.profile import DeviceRuntime, version_of

from .recipe import Activations, DynamicInt8, Float16, Granularity, Layers, Recipe, StaticInteger, WeightOnly

_LITERT: Final = DeviceRuntime.AI_EDGE_LITERT
_OLD: Final = DeviceRuntime.TFLITE_RUNTIME
_MICRO: Final = DeviceRuntime.TFLITE_MICRO
_ORT: Final = DeviceRuntime.ONNXRUNTIME
_NEWEST: Final = (1 << 16, 0)


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that is known: for these runtimes and recipes, `reason`; `seen` says how it is known."""

    runtimes: frozenset[DeviceRuntime]
    covers: Callable[[Recipe], bool]
    reason: str
    seen: str
    before: tuple[int, int] | None = None
    """For older versions only; then it counts for profiles that say which one their devices have."""


def _is_dynamic(bits: int, layers: Layers | None = None) -> Callable[[Recipe], bool]:
    def covers(recipe: Recipe) -> bool:
        step = recipe.compression
        return isinstance(step, DynamicInt8) and step.bits == bits and layers in {None, step.layers}

    return covers


def _dynamic_linear_per_channel(recipe: Recipe) -> bool:
    step = recipe.compression
    return isinstance(step, DynamicInt8) and step.bits == 8 and step.linear is Granularity.CHANNEL


def _dynamic_convolution_per_tensor(recipe: Recipe) -> bool:
    step = recipe.compression
    return (
        isinstance(step, DynamicInt8) and step.layers is Layers.ALL and step.convolution is Granularity.TENSOR
    )


def _weights_of_4_bits(recipe: Recipe) -> bool:
    return isinstance(recipe.compression, WeightOnly) and recipe.compression.bits == 4


def _has_int16_activations(recipe: Recipe) -> bool:
    step = recipe.compression
    return isinstance(step, StaticInteger) and step.activations is Activations.INT16


WRONG: Final = (
    Row(
        frozenset({_ORT}),
        _has_int16_activations,
        "onnxruntime 1.17 answers int16 activations at chance level, and older ones do not load them",
        "digits: 0.928 right in 1.18 to 1.32 and 0.150 in 1.17.3; 1.11 to 1.16 refuse int32 in the operator that such files need",
        before=(1, 18),
    ),
    Row(
        frozenset({_ORT}),
        _weights_of_4_bits,
        "onnxruntime before 1.21 has no kernel by which weights of 4 bits are unpacked (Sub of int8)",
        "digits: 0.931 right in 1.21 to 1.32; 1.14 to 1.20 do not load the file",
        before=(1, 21),
    ),
    Row(
        frozenset({_OLD}),
        _dynamic_linear_per_channel,
        "linear layers with one scale a channel and float activations answer at chance level in tflite-runtime 2.14",
        "three networks: 0.95, 0.95 and 0.92 right in ai-edge-litert, 0.10, 0.07 and 0.10 in tflite-runtime, also if only that layer is quantized",
    ),
    Row(
        frozenset({_LITERT, _OLD}),
        _dynamic_convolution_per_tensor,
        "convolutions with one scale a layer and float activations answer at chance level in both runtimes for .tflite",
        "three networks: 0.06 to 0.26 right in either, with reference kernels too, and other answers at each start: one scale is read as many",
    ),
    Row(
        frozenset({_OLD}),
        _is_dynamic(4, Layers.ALL),
        "convolutions with 4-bit weights and float activations answer at chance level in tflite-runtime 2.14",
        "three networks: 0.94, 0.93 and 0.90 right in ai-edge-litert, about 0.10 in tflite-runtime",
    ),
    Row(
        frozenset({_OLD}),
        _weights_of_4_bits,
        "tflite-runtime 2.14 does not load files that store weights in 4 bits and compute in float",
        "its DEQUANTIZE refuses int4 when the file is loaded",
    ),
    Row(
        frozenset({_MICRO}),
        lambda recipe: isinstance(recipe.compression, DynamicInt8),
        "TensorFlow Lite Micro refuses float activations with integer weights ('Hybrid models are not supported')",
        "its interpreter on x86-64 (build 20261023) does not load them, be convolutions or only linear layers of 8 or 4 bits",
    ),
    Row(
        frozenset({_MICRO}),
        lambda recipe: isinstance(recipe.compression, WeightOnly | Float16),
        "TensorFlow Lite Micro reads one scale where weights have one a channel, and neither float16 nor 4-bit weights",
        "its interpreter on x86-64 (build 20261023): int8 weights 0.77 right where ai-edge-litert has 0.91; float16 and 4 bits are not loaded",
    ),
)  # fmt: skip
"""Refused before they are tried."""


def _is_static_int8(recipe: Recipe) -> bool:
    step = recipe.compression
    return isinstance(step, StaticInteger) and step.activations is Activations.INT8


def _dynamic_of_all(recipe: Recipe) -> bool:
    return isinstance(recipe.compression, DynamicInt8) and recipe.compression.layers is Layers.ALL


SLOW: Final = (
    Row(
        frozenset({_LITERT, _OLD}),
        _has_int16_activations,
        "int16 activations run in reference kernels, many times slower than float",
        "ResNet8 and DS-CNN on x86-64: 100 times the float file's latency in ai-edge-litert, 20 times in tflite-runtime",
    ),
    Row(
        frozenset({_LITERT}),
        _weights_of_4_bits,
        "4-bit weights are unpacked at each request, several times slower than float",
        "ResNet8 and DS-CNN on x86-64: 4 to 20 times the float file's latency",
    ),
    Row(
        frozenset({_OLD}),
        _is_static_int8,
        "tflite-runtime has no fast int8 kernels on x86-64, so int8 is slower than float there; on ARM it was not measured",
        "ResNet8 and DS-CNN on x86-64: 2 to 8 times the float file's latency",
    ),
    Row(
        frozenset({_ORT, _LITERT, _OLD}),
        _dynamic_of_all,
        "convolutions with ranges found anew at each request are slower than float",
        "ResNet8 and DS-CNN on x86-64: 6 to 48 times the float file's latency in onnxruntime, up to 3 times in ai-edge-litert",
    ),
)
"""Right, and slower than the float model where it was measured."""


def refusal(recipe: Recipe, runtime: DeviceRuntime, version: str = "") -> str:
    """Say why a recipe is not tried for a runtime; "" if nothing is known against it.

    Args:
        recipe: what is to be made.
        runtime: what is to run it.
        version: the oldest one that devices have, major and minor; empty: one that this edgeml runs on.
    """
    return _first(WRONG, recipe, runtime, version)


def slowness(recipe: Recipe, runtime: DeviceRuntime) -> str:
    """Say why a recipe is slow on a runtime; "" if nothing is known. A note, no refusal."""
    return _first(SLOW, recipe, runtime, "")


def _first(rows: tuple[Row, ...], recipe: Recipe, runtime: DeviceRuntime, version: str) -> str:
    old = version_of(version) if version else _NEWEST
    return next(
        (
            row.reason
            for row in rows
            if runtime in row.runtimes and (row.before is None or old < row.before) and row.covers(recipe)
        ),
        "",
    )
