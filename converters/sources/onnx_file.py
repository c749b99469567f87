"""ONNX files as sources: one file, one input, one free dimension, operators that a runtime knows.

Decides what is refused and by which name, and how weights that lie beside the file are taken into it. The file is parsed
here and run only in a child. Source: the ONNX specification (IR.md, ExternalData.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgeml.errors import ArtifactError, BackendError, ConfigError
from edgeml.ids import Digest, digest_of
from edgeml.manifest import RuntimeFamily
from edgeml.probe import Description, describe
from edgeml.tensors import TensorSpec

from ..quiet import first_line
from .source import LIMITS, MODEL_BYTES_MAX, ModelFile

PER_CHANNEL_OPSET: Final = 13
"""From here on QuantizeLinear has an axis, without which there is no int8 per channel."""

_KNOWN_DOMAINS: Final = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
_QUANTIZED_PREFIXES: Final = ("QLinear", "QGemm", "QAttention", "DynamicQuantize")
_QUANTIZED: Final = {"DequantizeLinear", "QuantizeLinear", "MatMulInteger", "ConvInteger", "MatMulNBits"}


@dataclass(frozen=True, slots=True)
class OnnxFacts:
    """What a file says of itself: its opset, and the first tensor that is stored as integers, or empty."""

    opset: int
    quantized: str


def read_onnx(path: Path) -> ModelFile:
    """Read an ONNX file, with weights that lie in its folder.

    Raises:
        ConfigError: It cannot be read, or takes what cannot be converted.
        ArtifactError: It wants files from elsewhere, or operators that no runtime knows.
        BackendError: It is no ONNX model, or its runtime refuses it.
    """
    data = read_bounded(path)
    proto = parse(data, path.name)
    gathered = _gather(proto, path)
    model = proto.SerializeToString(deterministic=True) if gathered else data
    file = model_file(model, path.name, digest_of(data))
    if not gathered:
        return file
    names = ", ".join(sorted(gathered))
    return with_warnings(file, (f"the weights of {path.name} were taken from {names} into one file",))


def model_file(model: bytes, name: str, sha256: Digest) -> ModelFile:
    """Check an ONNX model that is one file, and say what it takes.

    Raises:
        ConfigError: It takes what cannot be converted.
        ArtifactError: It wants other files, or operators that no runtime knows.
        BackendError: It is no ONNX model, or its runtime refuses it.
    """
    proto = parse(model, name)
    refuse_external_data(proto, name)
    facts = check_graph(proto, name)
    described = describe(model, RuntimeFamily.ONNX, limits=LIMITS)
    warnings = (
        (
            f"{name} is written in opset {facts.opset}: int8 per channel needs {PER_CHANNEL_OPSET}; export it again with a newer one",
        )
        if facts.opset < PER_CHANNEL_OPSET
        else ()
    )
    return ModelFile(
        family=RuntimeFamily.ONNX,
        model=model,
        input=only_input(described, name),
        sha256=sha256,
        made_from=name,
        quantized=facts.quantized,
        opset=facts.opset,
        warnings=warnings,
    )


def read_bounded(path: Path) -> bytes:
    """Read a model file.

    Raises:
        ConfigError: It cannot be read, is empty, or is larger than MODEL_BYTES_MAX.
    """
    try:
        length_bytes = path.stat().st_size
        if not length_bytes or length_bytes > MODEL_BYTES_MAX:
            raise ConfigError(
                f"{path.name} has {length_bytes} bytes", hint=f"a model file has 1 to {MODEL_BYTES_MAX} bytes"
            )
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error


def parse(model: bytes, name: str) -> Any:
    """Parse an ONNX model without loading anything else.

    Raises:
        BackendError: It is none.
    """
    import onnx

    try:
        return onnx.load_from_string(model)
    except Exception as error:  # protobuf's errors are not public, and onnx passes them on
        raise BackendError(f"{name} is no ONNX model", hint="it may be truncated; export it again") from error


def refuse_external_data(proto: Any, name: str) -> None:
    """Refuse a model that is not one file.

    Raises:
        ArtifactError: A tensor's data lie in another file.
    """
    if next(_external(proto), None) is not None:
        raise ArtifactError(
            f"{name} keeps its weights in another file",
            hint="save it as one file: onnx.save(onnx.load(path), path, save_as_external_data=False)",
        )


def only_input(described: Description, name: str) -> TensorSpec:
    """Return the one input of a model with one output that takes one sample or any number of them.

    Raises:
        ConfigError: It has several, or takes a fixed number of samples, or other sizes are free.
    """
    for count, what in ((len(described.inputs), "inputs"), (len(described.outputs), "outputs")):
        if count != 1:
            raise ConfigError(
                f"{name} has {count} {what}",
                hint=f"only models with one input and one output can be converted; `edgeml package` bundles those with several {what} as they are",
            )
    spec = described.inputs[0]
    if not spec.shape or spec.shape[0] > 1:
        batch = spec.shape[0] if spec.shape else 0
        raise ConfigError(
            f"{name} takes {batch} samples at once",
            hint="export it with a free batch, or with a batch of 1",
        )
    if any(size < 1 for size in spec.sample_shape):
        raise ConfigError(
            f"input {spec.name} of {name} has free dimensions besides the batch: {list(spec.shape)}",
            hint="export it with fixed sizes; only the first dimension may be free",
        )
    return spec


def check_graph(proto: Any, name: str) -> OnnxFacts:
    """Check inputs and operators as the file states them.

    Raises:
        ConfigError: It takes several inputs, or inputs of sizes that nobody knows.
        ArtifactError: It uses operators that no runtime knows.
    """
    _check_domains(proto, name)
    stored = {tensor.name for tensor in proto.graph.initializer}
    inputs = [one for one in proto.graph.input if one.name not in stored]
    if len(inputs) != 1:
        shown = ", ".join(one.name for one in inputs[:5])
        raise ConfigError(
            f"{name} takes {len(inputs)} inputs: {shown}",
            hint="only models with one input can be converted; `edgeml package` bundles those with several as they are",
        )
    kind = inputs[0].type.tensor_type
    if not kind.HasField("shape"):
        raise ConfigError(
            f"input {inputs[0].name} of {name} has no shape",
            hint="export it with fixed sizes and a free batch",
        )
    free = [
        f"{index} ({size.dim_param or 'unnamed'})"
        for index, size in enumerate(kind.shape.dim)
        if index and size.dim_value < 1
    ]
    if free:
        raise ConfigError(
            f"input {inputs[0].name} of {name} has free dimensions besides the batch: {', '.join(free)}",
            hint="export it with fixed sizes; only the first dimension may be free",
        )
    opset = next((one.version for one in proto.opset_import if one.domain in {"", "ai.onnx"}), 0)
    return OnnxFacts(opset, _first_quantized(proto))


def with_warnings(file: ModelFile, warnings: tuple[str, ...]) -> ModelFile:
    """Add to what the user is told of a file."""
    from dataclasses import replace

    return replace(file, warnings=file.warnings + warnings)


def nodes_of(graph: Any) -> Iterator[Any]:
    """All nodes of a graph, those of subgraphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.ByteSize():
                    yield from nodes_of(inner)


def _check_domains(proto: Any, name: str) -> None:
    own = {(one.domain, one.name) for one in proto.functions}
    nodes = [*nodes_of(proto.graph), *(node for one in proto.functions for node in one.node)]
    custom = sorted(
        {
            f"{node.domain}:{node.op_type}"
            for node in nodes
            if node.domain not in _KNOWN_DOMAINS and (node.domain, node.op_type) not in own
        }
    )
    if custom:
        raise ArtifactError(
            f"{name} uses operators that no runtime of a device knows: {', '.join(custom[:5])}",
            hint="replace them by operators of ONNX before you export the model",
        )


def _first_quantized(proto: Any) -> str:
    for node in nodes_of(proto.graph):
        if node.op_type in _QUANTIZED or node.op_type.startswith(_QUANTIZED_PREFIXES):
            return str(node.input[0] if node.input else node.op_type)
    return ""


def _tensors(graph: Any) -> Iterator[Any]:
    """All tensors of a graph that may keep their data elsewhere, those of subgraphs too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _tensors_of(node)


def _tensors_of(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for inner in (attribute.g, *attribute.graphs):
            if inner.ByteSize():
                yield from _tensors(inner)


def _external(proto: Any) -> Iterator[Any]:
    import onnx

    every = [*_tensors(proto.graph)]
    every += [tensor for one in proto.functions for node in one.node for tensor in _tensors_of(node)]
    return (tensor for tensor in every if tensor.data_location == onnx.TensorProto.EXTERNAL)


def _gather(proto: Any, path: Path) -> set[str]:
    """Take the data of all tensors into the model; return the names of the files where they were."""
    from onnx.external_data_helper import load_external_data_for_tensor

    names: set[str] = set()
    total_bytes = 0
    folder = path.absolute().parent
    for tensor in _external(proto):
        entries = {one.key: one.value for one in tensor.external_data}
        place = entries.get("location", "")
        file = _inside(folder, place, path.name)
        length_bytes = _length_bytes(entries, file.stat().st_size, path.name)
        total_bytes += length_bytes
        if total_bytes > MODEL_BYTES_MAX:
            raise ConfigError(
                f"the weights of {path.name} have more than {MODEL_BYTES_MAX} bytes",
                hint="use a smaller model",
            )
        try:
            load_external_data_for_tensor(tensor, str(folder))
        except Exception as error:  # the library raises errors of many kinds for what it cannot read
            raise ArtifactError(
                f"the weights of {path.name} in {place} cannot be read: {first_line(error)}",
                hint="export it again",
            ) from error
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        names.add(place)
    return names


def _inside(folder: Path, place: str, name: str) -> Path:
    """Find a file that a model names, if it lies in the model's folder by itself and by no link."""
    parts = Path(place).parts
    file = folder / place
    steps = [folder.joinpath(*parts[: index + 1]) for index in range(len(parts))]
    if not place or Path(place).is_absolute() or ".." in parts or any(map(os.path.islink, steps)):
        raise ArtifactError(
            f"{name} wants its weights from outside its folder: {place!r}",
            hint="put the file beside the model, or save the model as one file with save_as_external_data=False",
        )
    if not file.is_file():
        raise ArtifactError(
            f"{name} wants its weights from {place!r}, which is not there",
            hint="put the file beside the model",
        )
    return file


def _length_bytes(entries: dict[str, str], file_bytes: int, name: str) -> int:
    try:
        offset = int(entries.get("offset") or 0)
        length_bytes = int(entries.get("length") or file_bytes - offset)
    except ValueError as error:
        raise ArtifactError(f"{name} does not say where its weights lie", hint="export it again") from error
    if offset < 0 or length_bytes < 0 or offset + length_bytes > file_bytes:
        raise ArtifactError(
            f"{name} wants {length_bytes} bytes of weights at {offset} from a file of {file_bytes}",
            hint="the file of the weights is truncated, or belongs to another model",
        )
    return length_bytes
