"""TFLite files as sources: what they take, and whether they are quantized already.

Decides what is refused and which tensor is named. The runtime loads the file in a child first, which checks that all its
offsets lie inside it; only then is it read here. Source: schema.fbs of TensorFlow Lite.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from edgeml.errors import ArtifactError, ConfigError
from edgeml.ids import digest_of
from edgeml.manifest import RuntimeFamily
from edgeml.probe import describe

from .onnx_file import only_input, read_bounded
from .source import LIMITS, ModelFile

TENSORS_MAX: Final = 1 << 20
_REDUCED: Final = ("INT8", "UINT8", "INT16", "INT4", "FLOAT16")


def read_tflite(path: Path) -> ModelFile:
    """Read a .tflite file.

    Raises:
        ConfigError: It cannot be read, or takes what cannot be converted.
        ArtifactError: It cannot be understood.
        BackendError: Its runtime refuses it, or dies of it.
    """
    model = read_bounded(path)
    described = describe(model, RuntimeFamily.TFLITE, limits=LIMITS)
    spec = only_input(described, path.name)
    try:
        quantized = first_quantized(model)
    except (struct.error, IndexError, ValueError, TypeError, OverflowError) as error:
        raise ArtifactError(f"{path.name} cannot be understood", hint="export it again") from error
    warnings = (
        (f"{path.name} is quantized already (tensor {quantized}): it can only be bundled as it is",)
        if quantized
        else ()
    )
    return ModelFile(
        family=RuntimeFamily.TFLITE,
        model=model,
        input=spec,
        sha256=digest_of(model),
        made_from=path.name,
        quantized=quantized,
        warnings=warnings,
    )


def first_quantized(model: bytes) -> str:
    """Name the first tensor that is stored as scaled integers or half floats; empty if all is float.

    Raises:
        ValueError: More tensors than any model has.
        struct.error: An offset leads out of the file.
    """
    from ai_edge_litert import schema_py_generated as schema

    reduced = {getattr(schema.TensorType, name) for name in _REDUCED}
    for count, tensor in enumerate(_tensors(schema.Model.GetRootAs(model, 0))):
        if count > TENSORS_MAX:
            raise ValueError("too many tensors")
        scales = tensor.Quantization()
        is_scaled = scales is not None and scales.ScaleLength() > 0
        if tensor.Type() in reduced and (is_scaled or tensor.Type() == schema.TensorType.FLOAT16):
            name = (tensor.Name() or b"").decode("utf-8", "replace")
            return name or f"number {count}"
    return ""


def _tensors(model: Any) -> Iterator[Any]:
    if not model.SubgraphsLength():
        raise ConfigError("the file holds no graph", hint="export it again")
    for index in range(model.SubgraphsLength()):
        graph = model.Subgraphs(index)
        for place in range(graph.TensorsLength()):
            yield graph.Tensors(place)
