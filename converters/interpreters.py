"""Where a model is tried for a device: the runtime, its kernels, and the Python interpreter that has them.

Decides what stands in for a runtime that has no Python library. Which interpreters there are is `edgeml.guest`'s
business; what a model does there, `edgeml.probe`'s.
"""

from __future__ import annotations

from edgeml.guest import Guest, interpreter_with
from edgeml.probe import Place
from edgeml.profile import DeviceRuntime
from edgeml.runtime import KernelSet


def place_of(runtime: DeviceRuntime) -> Place:
    """Say where a model is tried for a device with this runtime.

    TensorFlow Lite Micro has no Python library: its place is LiteRT with its reference kernels, which only stands in for
    it.

    Raises:
        ConfigError: tflite-runtime is nowhere.
    """
    match runtime:
        case DeviceRuntime.TFLITE_RUNTIME:
            return Place(runtime, python=interpreter_with(Guest.TFLITE_RUNTIME))
        case DeviceRuntime.TFLITE_MICRO:
            return Place(DeviceRuntime.AI_EDGE_LITERT, KernelSet.REFERENCE)
        case DeviceRuntime.ONNXRUNTIME | DeviceRuntime.AI_EDGE_LITERT:
            return Place(runtime)
