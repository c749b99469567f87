"""ONNX float32 to fewer bits: static and dynamic integers, and weights alone.

Decides the quantizer's settings, and how weights are stored that are computed with in float: as integers or float16 that
a Cast turns into float32. A runtime does that once, when it loads the file, so such a model is as fast as the float one;
onnxruntime's own float16 converter and its weight-only DequantizeLinear do it anew for every request. Which samples
calibrate is decided by `calibration.py`, what a layer is called by `onnx_layers.py`; whether the result is any good is
told by `verify.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeml.errors import BackendError, ConfigError

from ..calibration import CALIBRATION_MAX, Observed, observe, spread
from ..quiet import first_line, quiet
from ..recipe import (
    Activations,
    CalibrationMethod,
    Compression,
    DynamicInt8,
    Encoding,
    Float16,
    Layers,
    StaticInteger,
    WeightOnly,
)
from ..sources.torch_model import Array
from .onnx_compact import compact, drop_dead, drop_unused_opsets
from .onnx_layers import layers, nodes_of
from .onnx_narrow import halve_scales, store_as_float16, store_as_integers
from .onnx_rewrite import answer_in_float, flatten_biases, hold_in_float, name_nodes, pool_means

_LINEAR: Final = ("Gemm", "MatMul")
_KEPT_FLOAT: Final = frozenset({"Softmax", "ArgMax", "EmbedLayerNormalization", "Attention", "LSTM"})
"""Their integer forms cost accuracy, or do not exist in both encodings."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """Ranges of a prepared model's tensors, found once and used for many recipes."""

    method: CalibrationMethod
    bounds: tuple[tuple[str, float, float], ...]


def prepare(model: bytes) -> bytes:
    """Infer shapes, fold constants, name nodes, write means as poolings and biases flat: the quantizers rely on all of it.

    Raises:
        BackendError: onnxruntime cannot.
    """
    with tempfile.TemporaryDirectory(prefix="edgeml-quantize-") as folder, quiet():
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process

        source, prepared = Path(folder) / "source.onnx", Path(folder) / "prepared.onnx"
        source.write_bytes(model)
        try:
            # Symbolic shapes are for what transformers do; they would load torch, which takes seconds.
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            proto = onnx.load(str(prepared))
            name_nodes(proto.graph)
            pool_means(proto.graph)
            flatten_biases(proto.graph)
            drop_dead(proto.graph)
            drop_unused_opsets(proto)
            proto = onnx.shape_inference.infer_shapes(proto)
        except Exception as error:  # the library raises errors of many kinds
            raise BackendError(
                f"onnxruntime cannot prepare the model for int8: {first_line(error)}"
            ) from error
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def quantize(prepared: bytes, samples: Array, step: Compression) -> bytes:
    """Carry out one compression of a prepared model. The result is compact already.

    Args:
        prepared: from `prepare`.
        samples: calibration samples [samples, ...] as the model takes them; only static integers look at them.
        step: what is to be done.

    Raises:
        BackendError: onnxruntime cannot.
        ConfigError: `step` names layers that the model has not, or bits that there are not.
    """
    import onnx

    if not layers(onnx.load_from_string(prepared).graph):
        raise BackendError(
            "it has no convolution and no linear layer, so there is nothing to store in fewer bits",
            hint="bundle it as it is",
        )
    match step:
        case StaticInteger():
            return quantize_static(prepared, find_ranges(prepared, samples, step.calibration), step)
        case DynamicInt8():
            return compact(_dynamic(prepared, step))
        case WeightOnly():
            return compact(store_as_integers(prepared, step.bits))
        case Float16():
            return compact(store_as_float16(prepared))


def find_ranges(prepared: bytes, samples: Array, method: CalibrationMethod) -> Ranges:
    """Calibrate: find the range of every float tensor from at most `CALIBRATION_MAX` of the samples.

    Raises:
        BackendError: onnxruntime cannot run the model on them.
    """
    shown = samples[spread(len(samples))]
    if method is CalibrationMethod.MINMAX:
        return ranges_of(observe(prepared, shown))
    return Ranges(method, _histograms(prepared, shown, method))


def ranges_of(observed: Sequence[Observed]) -> Ranges:
    """Take least and greatest values as ranges."""
    return Ranges(CalibrationMethod.MINMAX, tuple((one.tensor, one.low, one.high) for one in observed))


def quantize_static(prepared: bytes, ranges: Ranges, step: StaticInteger) -> bytes:
    """Quantize weights and activations by ranges that were found before.

    Layers that are left in float are stored as float16, which rounds them far less than int8 and costs no time.
    16-bit activations are always written as QDQ: there are no operators for them.

    Raises:
        BackendError: onnxruntime cannot.
        ConfigError: `step` names layers that the model has not, or bits that there are not.
    """
    import onnx

    if step.weight_bits not in {7, 8}:
        raise ConfigError(
            f"{step.weight_bits} weight bits are not to be had", hint="static recipes have 8, or 7"
        )
    proto = onnx.load_from_string(prepared)
    excluded = nodes_of(step.float_layers, layers(proto.graph))
    result = build_static(proto, ranges, step, Nodes((), tuple(excluded)))
    hold_in_float(result.graph)
    if step.encoding is Encoding.QOPERATOR:
        answer_in_float(result.graph)
        halve_scales(result.graph)
    data: bytes = result.SerializeToString(deterministic=True)
    return compact(store_as_float16(data) if excluded else data)


@dataclass(frozen=True, slots=True)
class Nodes:
    """Which nodes are quantized: the first, or all if there are none, but for the second."""

    quantized: tuple[str, ...]
    excluded: tuple[str, ...]


def build_one(prepared: bytes, ranges: Ranges, step: StaticInteger, node: str) -> bytes:
    """Quantize one node by its name and leave all others in float: tensors keep their names."""
    import onnx

    result = build_static(onnx.load_from_string(prepared), ranges, step, Nodes((node,), ()))
    data: bytes = result.SerializeToString(deterministic=True)
    return data


def build_static(proto: Any, ranges: Ranges, step: StaticInteger, nodes: Nodes) -> Any:
    """Run onnxruntime's quantizer on a prepared ModelProto and give another ModelProto."""
    with quiet():
        from onnxruntime.quantization import QuantizationMode, QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod as Method
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

        bounds = {name: (np.float32(low), np.float32(high)) for name, low, high in ranges.bounds}
        data = TensorsData(
            Method.MinMax, {name: tuple(map(np.asarray, pair)) for name, pair in bounds.items()}
        )
        activation = {
            Activations.UINT8: QuantType.QUInt8,
            Activations.INT8: QuantType.QInt8,
            Activations.INT16: QuantType.QInt16,
        }[step.activations]
        reduced, wanted, excluded = step.weight_bits < 8, list(nodes.quantized), list(nodes.excluded)
        is_wide = step.activations is Activations.INT16
        try:
            if step.encoding is Encoding.QOPERATOR and not is_wide:
                kinds = sorted(set(QLinearOpsRegistry) - _KEPT_FLOAT)
                quantizer = ONNXQuantizer(
                    proto, True, reduced, QuantizationMode.QLinearOps, True, QuantType.QInt8, activation, data,
                    wanted, excluded, kinds, {},
                )  # fmt: skip
            else:
                # The contributed form of Q and DQ has 16 bits in every opset; the standard one only since 21.
                options = {"UseQDQContribOps": is_wide, "ActivationSymmetric": is_wide}
                kinds = sorted({*QLinearOpsRegistry, *QDQRegistry} - _KEPT_FLOAT)
                quantizer = QDQQuantizer(
                    proto, True, reduced, QuantType.QInt8, activation, data, wanted, excluded, kinds, options
                )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        except Exception as error:  # the library raises errors of many kinds
            raise BackendError(f"onnxruntime cannot quantize the model: {first_line(error)}") from error
    return quantizer.model.model


class _Feeds:
    """Feeds samples one at a time. onnxruntime exhausts it in one pass."""

    def __init__(self, name: str, samples: Array) -> None:
        self._feeds = iter([{name: samples[row : row + 1]} for row in range(len(samples))])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def _histograms(
    prepared: bytes, samples: Array, method: CalibrationMethod
) -> tuple[tuple[str, float, float], ...]:
    with tempfile.TemporaryDirectory(prefix="edgeml-quantize-") as folder, quiet():
        import onnx
        from onnxruntime.quantization.calibrate import CalibrationMethod as Method
        from onnxruntime.quantization.calibrate import create_calibrator

        source = Path(folder) / "prepared.onnx"
        source.write_bytes(prepared)
        kind = Method.Entropy if method is CalibrationMethod.ENTROPY else Method.Percentile
        name = onnx.load_from_string(prepared).graph.input[0].name
        try:
            calibrator = create_calibrator(
                source, augmented_model_path=str(Path(folder) / "augmented.onnx"), calibrate_method=kind
            )
            calibrator.collect_data(_Feeds(name, samples))
            found = calibrator.compute_data()
        except Exception as error:  # the library raises errors of many kinds
            raise BackendError(f"onnxruntime cannot calibrate the model: {first_line(error)}") from error
    bounds = {one: found[one].range_value for one in found}
    return tuple(
        (one, float(np.min(bounds[one][0])), float(np.max(bounds[one][1]))) for one in sorted(bounds)
    )


def _dynamic(prepared: bytes, step: DynamicInt8) -> bytes:
    with tempfile.TemporaryDirectory(prefix="edgeml-quantize-") as folder, quiet():
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        target = Path(folder) / "int8.onnx"
        # ConvInteger with int8 weights is three times slower than with uint8 weights (measured on x86).
        kinds, weights = {
            Layers.LINEAR: (list(_LINEAR), QuantType.QInt8),
            Layers.ALL: (["Conv", *_LINEAR], QuantType.QUInt8),
        }[step.layers]
        try:
            quantize_dynamic(
                onnx.load_from_string(prepared), str(target), op_types_to_quantize=kinds, weight_type=weights
            )
        except Exception as error:  # the library raises errors of many kinds
            raise BackendError(f"onnxruntime cannot quantize the model: {first_line(error)}") from error
        return target.read_bytes()


__all__ = ["CALIBRATION_MAX", "Ranges", "find_ranges", "prepare", "quantize", "quantize_static", "ranges_of"]
