"""Where a model is tried for a device: the runtime, its kernels, and the Python interpreter that has them.

Decides what stands in for TensorFlow Lite Micro where it cannot be had. Which interpreters there are is `edgeml.guest`'s
business; what a model does there, `edgeml.probe`'s.
"""

from __future__ import annotations

from typing import Final

from edgeml.errors import ConfigError
from edgeml.guest import Guest, interpreter_with
from edgeml.probe import Place
from edgeml.profile import DeviceRuntime
from edgeml.runtime import KernelSet

STAND_IN: Final = Place(DeviceRuntime.AI_EDGE_LITERT, KernelSet.REFERENCE)
"""For TensorFlow Lite Micro: kernels that its own came from."""


def place_of(runtime: DeviceRuntime) -> Place:
    """Say where a model is tried for a device with this runtime.

    TensorFlow Lite Micro's place is its own interpreter on this processor, and LiteRT with its reference kernels where that
    is nowhere: the place's `runtime` tells which, for the latter only stands in for it.

    Raises:
        ConfigError: tflite-runtime is nowhere.
    """
    match runtime:
        case DeviceRuntime.TFLITE_RUNTIME:
            return Place(runtime, python=interpreter_with(Guest.TFLITE_RUNTIME))
        case DeviceRuntime.TFLITE_MICRO:
            try:
                return Place(runtime, python=interpreter_with(Guest.TFLITE_MICRO))
            except ConfigError:
                return STAND_IN
        case DeviceRuntime.ONNXRUNTIME | DeviceRuntime.AI_EDGE_LITERT | DeviceRuntime.TORCH:
            return Place(runtime)
