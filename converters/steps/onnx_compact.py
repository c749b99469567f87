"""A smaller ONNX file with identical answers.

Decides what of a file no runtime needs, and which shorter spelling means the same: names, equal weights, attributes at
their defaults, a zero for every channel where one zero will do. It computes nothing anew, so answers are identical to
the bit; weights that are stored with fewer bits are the business of `onnx_quantize.py`. A graph within a graph (If,
Loop) may name any tensor of the outer one, so files with one, or with sparse weights, lose their notes and nothing else.

Biases that fit into 16 bits and scales that are float16 numbers are stored as such, all in one tensor that is cast and
split; runtimes do that once, when they load the model, so it costs no time. It is only done where it takes off a
hundredth of the file: a reader of the graph sees fewer constants that way.
"""

from __future__ import annotations

import itertools
import string
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from edgeml.errors import ConfigError

from ..opset import ir_version_for
from .onnx_export import strip

if TYPE_CHECKING:
    import numpy as np

_FIRST: Final = string.ascii_letters + "_"
_LATER: Final = string.ascii_letters + string.digits + "_"
_WEIGHT_ZERO: Final = {"QLinearConv": 5, "ConvInteger": 3}
"""Which input is the weights' zero point, where one zero may stand beside a scale for every channel (ONNX operators:
"could be a scalar or a 1-D tensor")."""
_IMPLIED: Final = {"dilations": 1, "strides": 1, "pads": 0}
"""Attributes of convolutions that mean the same when all their numbers are these and when they are left out."""
_CONVOLUTIONS: Final = frozenset({"Conv", "ConvInteger", "QLinearConv"})
_CONTRIBUTED: Final = {"channels_last": 0, "alpha": 1.0, "transA": 0, "transB": 0}
"""Defaults of onnxruntime's own operators, of which onnx has no schemas."""
_NARROWED_MIN: Final = 0.01
"""Share of the file that storing narrow numbers must save."""
_SPLIT_OPSET: Final = 13
"""Since when the sizes of a Split are an input."""


def compact(model: bytes) -> bytes:
    """Write an ONNX file with fewer bytes. Inputs and outputs keep their names, shapes and types.

    Args:
        model: one ONNX file without external data.

    Raises:
        ConfigError: The bytes are no ONNX file, or its weights lie elsewhere.
    """
    import onnx

    try:
        proto = onnx.load_from_string(model)
    except Exception as error:  # protobuf's, which has no types here
        raise ConfigError("the file is no ONNX model", hint="give an .onnx file") from error
    graph = proto.graph
    if any(tensor.external_data for tensor in graph.initializer):
        raise ConfigError("the model's weights lie in another file", hint="save it as one file first")
    strip(proto)
    for field in ("producer_name", "producer_version", "domain", "model_version"):
        proto.ClearField(field)
    drop_unused_opsets(proto)
    proto.ir_version = ir_version_for(
        next((one.version for one in proto.opset_import if not one.domain), 0), proto.ir_version
    )
    nested = any(one.HasField("g") or one.graphs for node in graph.node for one in node.attribute)
    if not nested and not graph.sparse_initializer:
        _lift_constants(graph)
        drop_dead(graph)
        _drop_defaults(proto)
        _one_zero(graph)
        _share(graph)
        proto = _narrow(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def drop_unused_opsets(proto: Any) -> None:
    """Remove the domains that no node uses, which strict readers refuse: onnxruntime's quantizer declares nine."""
    used = {
        "",
        *(node.domain for node in proto.graph.node),
        *(node.domain for one in proto.functions for node in one.node),
    }
    kept = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def _lift_constants(graph: Any) -> None:
    """Make initializers of Constant nodes, so that equal ones are found."""
    import onnx

    kept = []
    outputs = {one.name for one in graph.output}
    for node in graph.node:
        tensors = [one.t for one in node.attribute if one.name == "value"]
        if node.op_type != "Constant" or not tensors or node.output[0] in outputs:
            kept.append(node)
            continue
        lifted = onnx.TensorProto()
        lifted.CopyFrom(tensors[0])
        lifted.name = node.output[0]
        graph.initializer.append(lifted)
    _replace(graph.node, kept)


def drop_dead(graph: Any) -> None:
    """Remove nodes and initializers of which nobody reads anything."""
    wanted = {one.name for one in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(_reads(node))
            kept.append(node)
    _replace(graph.node, kept[::-1])
    _replace(graph.initializer, [one for one in graph.initializer if one.name in wanted])
    del graph.value_info[:]
    del graph.quantization_annotation[:]


def _reads(node: Any) -> Iterator[str]:
    """Name what a node reads, graphs within it included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (one.name for one in graph.output)
            for inner in graph.node:
                yield from _reads(inner)


def _drop_defaults(proto: Any) -> None:
    import onnx

    versions = {entry.domain: entry.version for entry in proto.opset_import}
    for node in proto.graph.node:
        node.ClearField("name")
        defaults = {}
        if not node.domain and onnx.defs.has(node.op_type):
            schema = onnx.defs.get_schema(node.op_type, versions[""])
            defaults = {
                name: one.default_value for name, one in schema.attributes.items() if one.default_value.type
            }
        _replace(
            node.attribute,
            [
                one
                for one in node.attribute
                if one != defaults.get(one.name) and not _implied(node.op_type, one)
            ],
        )


def _implied(operator: str, attribute: Any) -> bool:
    if (
        operator in {"QGemm", "QLinearGlobalAveragePool", "QLinearAveragePool"}
        and attribute.name in _CONTRIBUTED
    ):
        default = _CONTRIBUTED[attribute.name]
        return bool((attribute.f if attribute.type == attribute.FLOAT else attribute.i) == default)
    if operator not in _CONVOLUTIONS:
        return False
    if attribute.name == "kernel_shape":
        return True  # the shape of the weights says it
    return attribute.name in _IMPLIED and set(attribute.ints) == {_IMPLIED[attribute.name]}


def _one_zero(graph: Any) -> None:
    """Let one zero point stand for all channels."""
    from onnx import numpy_helper

    tensors = {one.name: one for one in graph.initializer}
    for node in graph.node:
        place = _WEIGHT_ZERO.get(node.op_type)
        if place is None or node.domain or len(node.input) <= place:
            continue
        zeros = tensors.get(node.input[place])
        if zeros is None or len(zeros.dims) != 1 or zeros.dims[0] < 2:
            continue
        values = numpy_helper.to_array(zeros)
        if (values == values[0]).all():
            name = f"{zeros.name}/one"
            if name not in tensors:
                tensors[name] = numpy_helper.from_array(values[0].reshape(()), name)
                graph.initializer.append(tensors[name])
            node.input[place] = name
    drop_dead(graph)


def _share(graph: Any) -> None:
    """Keep one of all initializers with the same type, shape and content.

    Not of int8: onnxruntime on x86 without VNNI makes uint8 of the weights and zero points of each node on its own, and
    fails where two nodes share one ("Attempt to replace the existing tensor").
    """
    from onnx import numpy_helper

    visible = {one.name for one in (*graph.input, *graph.output)}
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same: dict[str, str] = {}
    for one in graph.initializer:
        if one.name in visible or one.data_type in {one.STRING, one.INT8}:
            continue
        content = (one.data_type, tuple(one.dims), numpy_helper.to_array(one).tobytes())
        same[one.name] = first.setdefault(content, one.name)
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
    _replace(
        graph.initializer, [one for one in graph.initializer if same.get(one.name, one.name) == one.name]
    )


def _narrow(proto: Any) -> Any:
    """Store int32 vectors as int16 and float32 vectors as float16 where not a bit of any number is lost.

    Returns the model in its last spelling, for only that shows what is saved.
    """
    import numpy as np
    import onnx

    versions = {entry.domain: entry.version for entry in proto.opset_import}
    packed = type(proto).FromString(proto.SerializeToString(deterministic=True))
    if versions[""] >= _SPLIT_OPSET:
        _pack(packed.graph, onnx.TensorProto.INT32, np.dtype(np.int16))
        _pack(packed.graph, onnx.TensorProto.FLOAT, np.dtype(np.float16))
    for one in (proto, packed):
        _respell(one.graph)
        _rename(one.graph)
    return packed if packed.ByteSize() < (1 - _NARROWED_MIN) * proto.ByteSize() else proto


def _pack(graph: Any, wide: int, narrow: np.dtype[Any]) -> None:
    import numpy as np
    from onnx import helper, numpy_helper

    visible = {one.name for one in (*graph.input, *graph.output)}
    parts = {}
    for one in graph.initializer:
        if one.data_type == wide and len(one.dims) == 1 and one.dims[0] > 1 and one.name not in visible:
            values = numpy_helper.to_array(one)
            with np.errstate(over="ignore", invalid="ignore"):
                narrowed = values.astype(narrow)
            if (narrowed.astype(values.dtype) == values).all():
                parts[one.name] = narrowed
    if len(parts) < 2:
        return
    _replace(graph.initializer, [one for one in graph.initializer if one.name not in parts])
    name = f"packed/{narrow.name}"
    sizes = np.array([len(one) for one in parts.values()], np.int64)
    graph.initializer.append(numpy_helper.from_array(np.concatenate(list(parts.values())), name))
    graph.initializer.append(numpy_helper.from_array(sizes, f"{name}/sizes"))
    unpacked = [
        helper.make_node("Cast", [name], [f"{name}/wide"], to=wide),
        helper.make_node("Split", [f"{name}/wide", f"{name}/sizes"], list(parts)),
    ]
    _replace(graph.node, [*unpacked, *graph.node])


def _respell(graph: Any) -> None:
    """Write integers as varints where that is shorter: shapes and zero biases."""
    import onnx
    from onnx import numpy_helper

    shorter = []
    for one in graph.initializer:
        spellings = [one]
        if one.data_type in {onnx.TensorProto.INT64, onnx.TensorProto.INT32}:
            values = numpy_helper.to_array(one)
            spellings += [
                numpy_helper.from_array(values, one.name),
                onnx.helper.make_tensor(one.name, one.data_type, one.dims, values.ravel().tolist()),
            ]
        elif one.data_type != onnx.TensorProto.STRING and not one.raw_data:
            spellings.append(numpy_helper.from_array(numpy_helper.to_array(one), one.name))
        shorter.append(min(spellings, key=lambda each: each.ByteSize()))
    _replace(graph.initializer, shorter)


def _rename(graph: Any) -> None:
    """Give the shortest names to the tensors that are named most often; what callers name stays."""
    graph.name = "g"
    visible = {one.name for one in (*graph.input, *graph.output)}
    uses = Counter(one.name for one in graph.initializer)
    for node in graph.node:
        uses.update([*node.input, *node.output])
    names = (name for name in _short_names() if name not in visible)
    ordered = sorted((name for name in uses if name and name not in visible), key=lambda name: -uses[name])
    short = dict(zip(ordered, names, strict=False))
    for one in graph.initializer:
        one.name = short.get(one.name, one.name)
    for node in graph.node:
        node.input[:] = [short.get(name, name) for name in node.input]
        node.output[:] = [short.get(name, name) for name in node.output]


def _short_names() -> Iterator[str]:
    """Count in letters: a, b, ... `_`, aa, ab, ...; each is a C identifier, as ONNX asks of names."""
    for length in itertools.count():
        for first in _FIRST:
            for rest in itertools.product(_LATER, repeat=length):
                yield first + "".join(rest)


def _replace(field: Any, kept: list[Any]) -> None:
    """Put messages into a repeated field; they are copied first, for clearing it may free them."""
    copies = [type(one).FromString(one.SerializeToString(deterministic=True)) for one in kept]
    del field[:]
    field.extend(copies)
