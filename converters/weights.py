"""The constant tensors of a model file, as the reals they stand for: .onnx initializers, .tflite buffers.

Decides how a quantized constant is turned back (by the node that reads it, or by the scales stored with it)
and what it is called then, so that the fp32 and the int8 variant of a model have tensors of the same name. Nothing is
run. Files are hostile: what states more than it holds is refused.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeml.errors import BackendError
from edgeml.manifest import RuntimeFamily

TENSORS_MAX: Final = 20_000
QUANTIZED_SUFFIX: Final = "_quantized"
"""What onnxruntime's quantizer adds to the name of a weight."""
_TFLITE_TYPES: Final = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8", 10: "float64",
    15: "uint32", 16: "uint16",
}  # fmt: skip
"""Element types by their number in the .tflite schema; others (text, 4-bit integers, ...) are left out."""
_HINT: Final = "the file may be damaged; make the bundle again"

Reals = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Weight:
    """One constant tensor. `stored` is the element type in the file, `values` the reals it stands for."""

    name: str
    stored: str
    values: Reals

    @property
    def layer(self) -> str:
        """What it belongs to: its name without the last part.

        >>> Weight("net.0.weight", "float32", np.zeros(1)).layer
        'net.0'
        >>> Weight("w", "float32", np.zeros(1)).layer
        'w'
        """
        for mark in ("/", "."):
            head, found, _ = self.name.rpartition(mark)
            if found and head:
                return head
        return self.name


def read_weights(model: bytes, family: RuntimeFamily) -> tuple[Weight, ...]:
    """Read all numeric constants, in the order of the file; none of TorchScript, whose file is code.

    Raises:
        BackendError: The file is damaged, or keeps its weights elsewhere.
    """
    match family:
        case RuntimeFamily.ONNX:
            return tuple(_onnx(model))
        case RuntimeFamily.TFLITE:
            return tuple(_tflite(model))
        case RuntimeFamily.TORCHSCRIPT:
            return ()


def _onnx(model: bytes) -> Iterator[Weight]:
    import onnx
    from onnx import numpy_helper

    try:
        graph = onnx.load_from_string(model).graph
    except Exception as error:  # protobuf's errors are not public, and onnx passes them on
        raise BackendError("no ONNX model", hint=_HINT) from error
    stored = {one.name: one for one in graph.initializer}
    if len(stored) > TENSORS_MAX:
        raise BackendError(f"the model has {len(stored)} constants, more than {TENSORS_MAX}")
    if any(one.data_location == onnx.TensorProto.EXTERNAL for one in stored.values()):
        raise BackendError("the model keeps its weights in another file", hint="save it as one file")
    scaled = {name: how for node in graph.node for name, how in _scalings(node) if name in stored}
    parameters = {name for how in scaled.values() for name in (*how.scales, how.zero)}
    for name, tensor in stored.items():
        if name in parameters:
            continue
        try:
            array = numpy_helper.to_array(tensor)
            how = scaled.get(name)
            if how is None or not set(how.scales) <= set(stored):
                if array.dtype.kind in "fiub":
                    yield Weight(name, array.dtype.name, array.astype(np.float64))
                continue
            scale = np.asarray(math.prod(numpy_helper.to_array(stored[one]) for one in how.scales))
            zero = numpy_helper.to_array(stored[how.zero]) if how.zero in stored else np.zeros(())
            if how.block:
                scale, zero = (_spread(one, array.shape, how) for one in (scale, zero))
            values = _reals(array, scale, zero, how.axis)
            yield Weight(name.removesuffix(QUANTIZED_SUFFIX), array.dtype.name, values)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise BackendError(f"constant {name[:100]} is damaged: {error}", hint=_HINT) from error


@dataclass(frozen=True, slots=True)
class _Scaling:
    """How a node reads an integer constant: names of its scales (multiplied) and zero point, the axis of these."""

    scales: tuple[str, ...]
    zero: str
    axis: int
    block: int = 0
    """So many elements in a row of `axis` share a scale; 0: all of an index do."""


def _scalings(node: Any) -> Iterator[tuple[str, _Scaling]]:
    """Name the constants that a node takes as integers."""
    names = [*node.input]
    numbers = {one.name: one.i for one in node.attribute}
    match node.op_type:
        case "DequantizeLinear":
            zero = names[2] if len(names) > 2 else ""
            yield names[0], _Scaling((names[1],), zero, numbers.get("axis", 1), numbers.get("block_size", 0))
        case "QLinearConv" | "QLinearMatMul" | "QGemm" if len(names) >= 6:
            # Output channels come first in a convolution's weights, last in a matrix'.
            first = node.op_type == "QLinearConv" or bool(numbers.get("transB"))
            yield names[3], _Scaling((names[4],), names[5], 0 if first else -1)
            bias = {"QLinearConv": 8, "QGemm": 6}.get(node.op_type)
            if bias is not None and len(names) > bias and names[bias]:
                # A bias is added to products, whose scale is the product of both.
                yield names[bias], _Scaling((names[1], names[4]), "", 0)


def _spread(one: npt.NDArray[Any], shape: tuple[int, ...], how: _Scaling) -> npt.NDArray[Any]:
    """Give each element the scale of its block."""
    if one.ndim != len(shape):
        return one
    wide = np.repeat(one, min(how.block, shape[how.axis]), axis=how.axis)
    return wide.take(range(shape[how.axis]), axis=how.axis)


def _tflite(model: bytes) -> Iterator[Weight]:
    from ai_edge_litert import schema_py_generated as schema

    try:
        root: Any = schema.Model.GetRootAs(model, 0)
        graphs = root.SubgraphsLength()
        # Counts are the file's own words: each element takes at least four bytes of it.
        if not 0 < graphs <= TENSORS_MAX or root.BuffersLength() > len(model) // 4:
            raise BackendError("no TFLite model", hint=_HINT)
        for at in range(graphs):
            graph = root.Subgraphs(at)
            if graph.TensorsLength() > TENSORS_MAX:
                raise BackendError(f"the model has more than {TENSORS_MAX} tensors")
            for index in range(graph.TensorsLength()):
                weight = _tflite_weight(model, root, graph.Tensors(index))
                if weight is not None:
                    yield weight
    # The generated reader trusts every offset: what it trips over depends on the damage.
    except (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise BackendError("a damaged TFLite model", hint=_HINT) from error


def _tflite_weight(model: bytes, root: Any, tensor: Any) -> Weight | None:
    if tensor.Buffer() >= root.BuffersLength() or tensor.Type() not in _TFLITE_TYPES:
        return None
    buffer = root.Buffers(tensor.Buffer())
    # Models above 2 GB keep their data behind the flatbuffer.
    content = (
        model[buffer.Offset() : buffer.Offset() + buffer.Size()]
        if buffer.Offset() > 1
        else (buffer.DataAsNumpy().tobytes() if buffer.DataLength() else b"")
    )
    if not content:
        return None
    dtype = np.dtype(_TFLITE_TYPES[tensor.Type()])
    shape = tuple(map(int, tensor.ShapeAsNumpy())) if tensor.ShapeLength() else ()
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError("a tensor's shape and its data differ")
    array: npt.NDArray[Any] = np.frombuffer(content, dtype).reshape(shape)
    name = (tensor.Name() or b"").decode("utf-8", "replace")
    quantization = tensor.Quantization()
    if quantization is None or not quantization.ScaleLength():
        return Weight(name, dtype.name, array.astype(np.float64))
    scale, zero = quantization.ScaleAsNumpy(), quantization.ZeroPointAsNumpy()
    zeros = zero if quantization.ZeroPointLength() else np.zeros(len(scale))
    return Weight(name, dtype.name, _reals(array, scale, zeros, quantization.QuantizedDimension()))


def _reals(array: npt.NDArray[Any], scale: npt.NDArray[Any], zero: npt.NDArray[Any], axis: int) -> Reals:
    """Turn integers back; `scale` and `zero` are one for all, or one for each index of `axis`."""
    if scale.size > 1 and scale.shape != array.shape:
        if not -array.ndim <= axis < array.ndim or scale.size != array.shape[axis]:
            raise ValueError("its scales do not fit its shape")
        form = [1] * array.ndim
        form[axis] = -1
        scale, zero = scale.reshape(form), zero.reshape(form)
    result: Reals = (array.astype(np.float64) - zero.astype(np.float64)) * scale.astype(np.float64)
    return result
