"""torch to .tflite, by litert-torch in a process of its own.

Decides the batch (one: devices take one sample at a time, and most operators of a free batch do not exist there), the
layout of the input, and what is believed of the process that converts: it is another interpreter, because litert-torch
holds other libraries at old versions. Quantizing is `litert_quantize.py`'s business.
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
from edgeml.guest import Guest, interpreter_with

from ..quiet import first_line, quiet
from ..recipe import Layout
from ..sources.torch_model import Array, TorchModel
from .litert_child import FILE_BYTES_MAX, MODEL, PROGRAM, REPORT, REQUEST

INPUT: Final = "input"
LIMITS: Final = ChildLimits(timeout_s=600.0, threads=1, memory_bytes=8 << 30)
_MODULE: Final = f"{__package__}.litert_child"
_DEED: Final = "converted the model to .tflite"
_REPORT_BYTES_MAX: Final = 1 << 16
_SPATIAL_DIMENSIONS_MIN: Final = 3


class _Request(msgspec.Struct, frozen=True):
    channels_last: bool
    input: str
    output: str
    timeout_s: float


class _Report(msgspec.Struct, frozen=True):
    refusal: str


def export_tflite(
    model: TorchModel,
    sample: Array,
    output: str,
    layout: Layout = Layout.SOURCE,
    limits: ChildLimits = LIMITS,
) -> bytes:
    """Export a model.

    Args:
        model: in evaluation mode.
        sample: [1 or more, ...], as the torch model takes it, whatever the layout; only its shape and dtype matter.
        output: name of the model's output.
        layout: of the file's input.
        limits: what the converting process may take.

    Returns:
        A .tflite file: input `input` with a batch of one, layers named after the torch model's modules.

    Raises:
        ConfigError: litert-torch is nowhere, or torch cannot export the model, or the layout does not fit it.
        BackendError: litert-torch cannot convert it, or its process died, hung or wrote garbage.
        BudgetError: That process took more than `limits.memory_bytes`.
    """
    python = interpreter_with(Guest.LITERT_TORCH)
    if layout is Layout.CHANNELS_LAST and sample.ndim < _SPATIAL_DIMENSIONS_MIN:
        raise ConfigError(
            f"samples of shape {list(sample.shape[1:])} have no channels to put last",
            hint="leave the layout as it is",
        )
    with tempfile.TemporaryDirectory(prefix="edgeml-tflite-") as name:
        folder = Path(name)
        _write_program(model, sample, folder / PROGRAM)
        request = _Request(layout is Layout.CHANNELS_LAST, INPUT, output, limits.timeout_s)
        (folder / REQUEST).write_bytes(msgspec.json.encode(request))
        run_child(
            [*module_command(_MODULE, folder, python), str(folder), str(os.getpid())], folder, limits, _DEED
        )
        return _read(folder)


def _write_program(model: TorchModel, sample: Array, path: Path) -> None:
    with quiet():
        import torch

        example = torch.from_numpy(np.ascontiguousarray(sample[:1]))
        try:
            torch.export.save(torch.export.export(model.module, (example,)), path)
        except Exception as error:  # torch.export raises errors of many kinds
            raise ConfigError(
                f"the model cannot be exported for .tflite: {first_line(error)}",
                hint="torch.export must be able to trace it with one sample: avoid control flow on values",
            ) from error


def _read(folder: Path) -> bytes:
    """Read what the process left; nothing that it says is believed before it is checked."""
    try:
        with (folder / REPORT).open("rb") as file:
            report = msgspec.json.decode(file.read(_REPORT_BYTES_MAX), type=_Report)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _garbage() from error
    if report.refusal:
        raise BackendError(
            f"litert-torch cannot convert the model: {one_line(report.refusal)}",
            hint="replace the operator that it names, or convert to ONNX",
        )
    try:
        with (folder / MODEL).open("rb") as file:
            return file.read(FILE_BYTES_MAX)
    except OSError as error:
        raise _garbage() from error


def _garbage() -> BackendError:
    return BackendError(f"the process that {_DEED} left no readable result", hint="run `edgeml doctor`")
