"""The constant tensors of a model file, as the reals they stand for: .onnx initializers, .tflite buffers.

Decides what a constant is called, so that the fp32 and the int8 variant of a model have tensors of the same name: by its
own name or, where those say nothing, by its reader (`constants.py`). How integers are turned back:
`scaling.py`, or by the scales that a .tflite stores with them. Nothing is run. Files are hostile: what states more than it
holds is refused.
"""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeml.errors import BackendError
from edgeml.manifest import RuntimeFamily

from .constants import GROWTH_MAX, Growth, read_constants, says_nothing
from .scaling import Weight, reals_of, scalings, to_reals

TENSORS_MAX: Final = 20_000
QUANTIZED_SUFFIX: Final = "_quantized"
"""What onnxruntime's quantizer adds to the name of a weight."""
_TFLITE_TYPES: Final = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8", 10: "float64",
    15: "uint32", 16: "uint16",
}  # fmt: skip
"""Element types by their number in the .tflite schema; others (text, 4-bit integers, ...) are left out."""
_HINT: Final = "the file may be damaged; make the bundle again"


class Naming(enum.Enum):
    """What constants of an ONNX file are called by."""

    NAME = "name"
    """Their own."""
    READER = "reader"
    """The operator that reads them, and what they are to it."""


def naming_of(model: bytes, family: RuntimeFamily) -> Naming:
    """Tell by what the constants of a file are to be called: by their names, if those say anything.

    Raises:
        BackendError: The file is damaged, or keeps its weights elsewhere.
    """
    if family is RuntimeFamily.ONNX and says_nothing(_graph(model)):
        return Naming.READER
    return Naming.NAME


def read_weights(model: bytes, family: RuntimeFamily, naming: Naming = Naming.NAME) -> tuple[Weight, ...]:
    """Read all numeric constants, in the order of the file; none of TorchScript, whose file is code.

    Raises:
        BackendError: The file is damaged, or keeps its weights elsewhere.
    """
    match family:
        case RuntimeFamily.ONNX:
            return tuple(_onnx(model) if naming is Naming.NAME else _by_reader(model))
        case RuntimeFamily.TFLITE:
            return tuple(_tflite(model))
        case RuntimeFamily.TORCHSCRIPT:
            return ()


def _graph(model: bytes) -> Any:
    import onnx

    try:
        graph = onnx.load_from_string(model).graph
    except Exception as error:  # protobuf's errors are not public, and onnx passes them on
        raise BackendError("no ONNX model", hint=_HINT) from error
    if len(graph.initializer) > TENSORS_MAX:
        raise BackendError(f"the model has {len(graph.initializer)} constants, more than {TENSORS_MAX}")
    in_nodes = (one.t for node in graph.node for one in node.attribute)
    if any(one.data_location == onnx.TensorProto.EXTERNAL for one in (*graph.initializer, *in_nodes)):
        raise BackendError("the model keeps its weights in another file", hint="save it as one file")
    return graph


def _by_reader(model: bytes) -> Iterator[Weight]:
    try:
        yield from read_constants(_graph(model), len(model))
    except (ValueError, TypeError, KeyError, IndexError, MemoryError) as error:
        raise BackendError(f"a constant is damaged: {error}", hint=_HINT) from error


def _onnx(model: bytes) -> Iterator[Weight]:
    from onnx import numpy_helper

    graph = _graph(model)
    stored = {one.name: one for one in graph.initializer}
    scaled = {name: how for node in graph.node for name, how in scalings(node) if name in stored}
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
            known = {
                one: numpy_helper.to_array(stored[one]) for one in (*how.scales, how.zero) if one in stored
            }
            values = reals_of(array, how, known)
            yield Weight(name.removesuffix(QUANTIZED_SUFFIX), array.dtype.name, values)
        except (ValueError, TypeError, KeyError, IndexError, MemoryError) as error:
            raise BackendError(f"constant {name[:100]} is damaged: {error}", hint=_HINT) from error


def _tflite(model: bytes) -> Iterator[Weight]:
    from ai_edge_litert import schema_py_generated as schema

    growth = Growth(GROWTH_MAX * len(model))
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
                weight = _tflite_weight(model, root, graph.Tensors(index), growth)
                if weight is not None:
                    yield weight
    # The generated reader trusts every offset: what it trips over depends on the damage.
    except (
        struct.error,
        IndexError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
    ) as error:
        raise BackendError("a damaged TFLite model", hint=_HINT) from error


def _tflite_weight(model: bytes, root: Any, tensor: Any, growth: Growth) -> Weight | None:
    if tensor.Buffer() >= root.BuffersLength() or tensor.Type() not in _TFLITE_TYPES:
        return None
    buffer = root.Buffers(tensor.Buffer())
    growth.add(buffer.Size() if buffer.Offset() > 1 else buffer.DataLength())  # Tensors may share a buffer.
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
    return Weight(name, dtype.name, to_reals(array, scale, zeros, quantization.QuantizedDimension()))
