"""A float .tflite file to a smaller one, by ai-edge-quantizer in a process of its own.

Decides which settings a .tflite file can have, how many calibration samples are used, and what is believed of the
process: the quantizer runs the model to see its ranges, and a foreign model may abort whoever runs it. Whether the
result is any good is told by `verify.py`, on the runtime that the device has.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from edgeml.child import ChildLimits
from edgeml.errors import ConfigError

from ..calibration import spread
from ..errand import FILE_BYTES_MAX, Errand
from ..recipe import (
    Activations,
    CalibrationMethod,
    Compression,
    DynamicInt8,
    Float16,
    StaticInteger,
    WeightOnly,
)
from ..sources.torch_model import Array
from .quantize_child import MODEL, SAMPLES, SOURCE, Report, Request

"""More samples than these hardly move the ranges; they are taken evenly from all that are given."""
LIMITS: Final = ChildLimits(timeout_s=300.0, threads=1, memory_bytes=8 << 30)
_MODULE: Final = f"{__package__}.quantize_child"
_DEED: Final = "quantized the model"
_WEIGHT_BITS: Final = frozenset({8, 4})


def quantize_tflite(
    model: bytes, samples: Array, step: Compression, *, limits: ChildLimits = LIMITS
) -> bytes:
    """Quantize a float model.

    Args:
        model: a .tflite file with one float32 input and one output, from `litert_export.py` or from elsewhere.
        samples: calibration samples, float32 [samples, ...], as the file takes them; static recipes alone look at them.
        step: what is done. `float_layers` are names of tensors that layers give.
        limits: what the process may take.

    Returns:
        A .tflite file. The same arguments give the same bytes.

    Raises:
        ConfigError: A .tflite file cannot have these settings.
        BackendError: The model is no float .tflite file with one input and output, the samples do not fit it, the
            quantizer cannot do it, or its process died (with a model that aborts its runtime), hung or wrote garbage.
        BudgetError: That process took more than `limits.memory_bytes`.
    """
    check_step(step)
    with tempfile.TemporaryDirectory(prefix="edgeml-quantize-") as name:
        folder = Path(name)
        (folder / SOURCE).write_bytes(model)
        np.save(folder / SAMPLES, np.ascontiguousarray(samples[spread(len(samples))]), allow_pickle=False)
        errand = Errand(_MODULE, _DEED, limits)
        errand.run(folder, Request(step, limits.timeout_s), Report)
        try:
            with (folder / MODEL).open("rb") as file:
                return file.read(FILE_BYTES_MAX)
        except OSError as error:
            raise errand.garbage() from error


def check_step(step: Compression) -> None:
    """Refuse settings that a .tflite file cannot have; costs nothing.

    Raises:
        ConfigError: It cannot.
    """
    match step:
        case StaticInteger(activations=Activations.UINT8):
            raise ConfigError(
                "activations of a .tflite file are int8 or int16, not uint8", hint="use int8 activations"
            )
        case StaticInteger() if step.weight_bits != 8:
            raise ConfigError(
                f"weights of a static .tflite file have 8 bits, not {step.weight_bits}", hint="use 8"
            )
        case StaticInteger() if step.calibration is not CalibrationMethod.MINMAX:
            raise ConfigError(
                f"a .tflite file is calibrated by minmax, not by {step.calibration.value}", hint="use minmax"
            )
        case DynamicInt8() | WeightOnly() if step.bits not in _WEIGHT_BITS:
            raise ConfigError(f"weights of a .tflite file have 8 or 4 bits, not {step.bits}", hint="use 8")
        case StaticInteger() | DynamicInt8() | WeightOnly() | Float16():
            pass
