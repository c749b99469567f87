"""TFLite files as sources: what they take, whether they are quantized already, and whether runtimes die of them.

Decides what is refused and which tensor is named. The runtime loads the file in a child first, which checks that all its
offsets lie inside it; only then is it read here. Source: schema.fbs of TensorFlow Lite.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from edgeml.errors import ArtifactError, ConfigError, IncompatibleError
from edgeml.ids import digest_of
from edgeml.manifest import RuntimeFamily
from edgeml.probe import describe

from .onnx_file import only_input, read_bounded
from .source import LIMITS, ModelFile

TENSORS_MAX: Final = 1 << 20
_REDUCED: Final = ("INT8", "UINT8", "INT16", "INT4", "FLOAT16")
_STATE: Final = 4
"""Which input of SVDF is its state."""


def read_tflite(path: Path) -> ModelFile:
    """Read a .tflite file.

    Raises:
        ConfigError: It cannot be read, or takes what cannot be converted.
        ArtifactError: It cannot be understood.
        BackendError: Its runtime refuses it, or dies of it.
        IncompatibleError: As `refuse_small_state`.
    """
    model = read_bounded(path)
    described = describe(model, RuntimeFamily.TFLITE, limits=LIMITS)
    spec = only_input(described, path.name)
    with _understood(path.name):
        quantized = first_quantized(model)
    refuse_small_state(model, path.name)
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


def refuse_small_state(model: bytes, what: str) -> None:
    """Refuse a file of which LiteRT 2.3 and tflite-runtime 2.14 die, or worse: go on with their memory overwritten.

    They take the state of an SVDF layer for int16 even where the file has it in int8, and write past its end.
    TensorFlow Lite Micro computes such a file rightly. To be called after a runtime has loaded the file.

    Raises:
        IncompatibleError: It has such a layer.
        ArtifactError: It cannot be understood.
    """
    with _understood(what):
        found = _small_state(model)
    if found:
        raise IncompatibleError(
            f"{what} keeps the state of layer {found} (SVDF) in int8: ai-edge-litert and tflite-runtime write beyond it",
            hint="quantize it with a state of int16; for a microcontroller alone it is right, but edgeml runs files on LiteRT, too",
        )


def _small_state(model: bytes) -> str:
    """Name the first state of an SVDF layer that is kept in int8; empty if there is none."""
    from ai_edge_litert import schema_py_generated as schema

    root = schema.Model.GetRootAs(model, 0)
    if not root.SubgraphsLength():
        return ""  # Told elsewhere.
    for index in range(root.SubgraphsLength()):
        graph = root.Subgraphs(index)
        for place in range(graph.OperatorsLength()):
            operator = graph.Operators(place)
            code = root.OperatorCodes(operator.OpcodeIndex())
            is_svdf = schema.BuiltinOperator.SVDF in {code.BuiltinCode(), code.DeprecatedBuiltinCode()}
            if is_svdf and operator.InputsLength() > _STATE:
                state = graph.Tensors(operator.Inputs(_STATE))
                if state.Type() == schema.TensorType.INT8:
                    return (state.Name() or b"").decode("utf-8", "replace") or f"number {place}"
    return ""


@contextmanager
def _understood(what: str) -> Iterator[None]:
    try:
        yield
    except (struct.error, IndexError, ValueError, TypeError, OverflowError, AttributeError) as error:
        raise ArtifactError(f"{what} cannot be understood", hint="export it again") from error


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
