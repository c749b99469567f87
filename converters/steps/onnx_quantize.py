"""ONNX fp32 to int8: static, QDQ, per channel.

Decides the quantizer's settings and how many calibration samples are used. Whether the result is any good is told by
`verify.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeml.errors import BackendError

from ..candidate import Recipe
from ..quiet import first_line, quiet
from ..sources.torch_model import Array
from .onnx_export import strip

CALIBRATION_MAX: Final = 256
"""More samples than these hardly move the ranges; they are taken evenly from all that are given."""


class _Calibration:
    """Feeds samples one at a time. onnxruntime exhausts it in one pass, so each call gets a new one."""

    def __init__(self, name: str, samples: Array) -> None:
        rows = np.unique(
            np.linspace(0, len(samples) - 1, min(len(samples), CALIBRATION_MAX)).round().astype(int)
        )
        self._feeds: Iterator[dict[str, Array]] = iter([{name: samples[row : row + 1]} for row in rows])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return self._feeds

    def __next__(self) -> dict[str, Array]:
        return next(self._feeds)


def prepare(model: bytes) -> bytes:
    """Infer shapes and fold constants, which the quantizer relies on.

    Raises:
        BackendError: onnxruntime cannot.
    """
    with tempfile.TemporaryDirectory(prefix="edgeml-quantize-") as folder, quiet():
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(onnx.load_from_string(model), str(prepared))
        except Exception as error:  # the library raises errors of many kinds
            raise BackendError(
                f"onnxruntime cannot prepare the model for int8: {first_line(error)}"
            ) from error
        return prepared.read_bytes()


def quantize(prepared: bytes, samples: Array, recipe: Recipe) -> bytes:
    """Quantize a prepared model.

    Args:
        prepared: from `prepare`.
        samples: calibration samples [samples, ...] as the model takes them.
        recipe: which int8 recipe.

    Raises:
        BackendError: onnxruntime cannot.
    """
    with tempfile.TemporaryDirectory(prefix="edgeml-quantize-") as folder, quiet():
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        target = Path(folder) / "int8.onnx"
        proto = onnx.load_from_string(prepared)
        try:
            quantize_static(
                proto, str(target), _Calibration(proto.graph.input[0].name, samples), quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8 if recipe is Recipe.INT8_U8S8 else QuantType.QInt8,
                weight_type=QuantType.QInt8, per_channel=True,
            )  # fmt: skip
        except Exception as error:  # the library raises errors of many kinds
            raise BackendError(f"onnxruntime cannot quantize the model: {first_line(error)}") from error
        result = onnx.load(str(target))
    strip(result)
    _drop_unused_opsets(result)
    data: bytes = result.SerializeToString(deterministic=True)
    return data


def _drop_unused_opsets(proto: Any) -> None:
    """The quantizer declares domains that no node uses, which strict readers refuse."""
    used = {"", *(node.domain for node in proto.graph.node)}
    kept = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
