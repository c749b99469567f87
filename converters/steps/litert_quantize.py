"""A float .tflite file to a smaller one, by ai-edge-quantizer in a process of its own.

Decides which settings a .tflite file can have, how many calibration samples are used, and what is believed of the
process: the quantizer runs the model to see its ranges, and a foreign model may abort whoever runs it. Whether the
result is any good is told by `verify.py`, on the runtime that the device has.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgeml.child import ChildLimits, module_command, one_line, run_child
from edgeml.errors import BackendError, ConfigError

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
from .quantize_child import FILE_BYTES_MAX, MODEL, REPORT, REQUEST, SAMPLES, SOURCE, Report, Request

CALIBRATION_MAX: Final = 256
"""More samples than these hardly move the ranges; they are taken evenly from all that are given."""
LIMITS: Final = ChildLimits(timeout_s=300.0, threads=1, memory_bytes=8 << 30)
_MODULE: Final = f"{__package__}.quantize_child"
_DEED: Final = "quantized the model"
_REPORT_BYTES_MAX: Final = 1 << 16
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
        np.save(folder / SAMPLES, np.ascontiguousarray(_spread(samples)), allow_pickle=False)
        (folder / REQUEST).write_bytes(msgspec.json.encode(Request(step, limits.timeout_s)))
        command = [*module_command(_MODULE, folder), str(folder), str(os.getpid())]
        run_child(command, folder, limits, _DEED)
        return _read(folder)


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


def _spread(samples: Array) -> Array:
    count = len(samples)
    rows = np.unique(np.linspace(0, count - 1, min(count, CALIBRATION_MAX)).round().astype(int))
    taken: Array = samples[rows]
    return taken


def _read(folder: Path) -> bytes:
    """Read what the process left; nothing that it says is believed before it is checked."""
    try:
        with (folder / REPORT).open("rb") as file:
            report = msgspec.json.decode(file.read(_REPORT_BYTES_MAX), type=Report)
        if report.refusal:
            raise BackendError(one_line(report.refusal), hint=one_line(report.hint))
        with (folder / MODEL).open("rb") as file:
            return file.read(FILE_BYTES_MAX)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BackendError(
            f"the process that {_DEED} left no readable result", hint="run `edgeml doctor`"
        ) from error
