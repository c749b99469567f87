"""The process that quantizes a .tflite file with ai-edge-quantizer, which runs the model to see its ranges.

Decides how a step of a recipe is said to the quantizer, and what of a foreign file is put right first: a signature and
distinct names, without which the quantizer stops. What the file is worth, and what becomes of this process, is
`litert_quantize.py`'s business.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from ..errand import carry_out
from ..quiet import first_line, quiet
from ..recipe import (
    Activations,
    Boundary,
    Compression,
    DynamicInt8,
    Float16,
    Granularity,
    Layers,
    StaticInteger,
    WeightOnly,
)
from .tflite_names import distinct
from .tflite_schema import pack, unpack

SOURCE: Final = "source.tflite"
SAMPLES: Final = "samples.npy"
MODEL: Final = "model.tflite"
_EVERYWHERE: Final = ".*"
_SIGNATURE: Final = "serving_default"
_FLOAT32: Final = 0
_FLOAT16: Final = 1
"""Codes of `TensorType` in the schema, which never change."""


class Request(msgspec.Struct, frozen=True):
    """What is to be done."""

    step: Compression
    timeout_s: float


class Report(msgspec.Struct, frozen=True):
    """How it went: `refusal` is empty if there is a file."""

    refusal: str = ""
    hint: str = ""


class RefusedError(Exception):
    """Why a model is not taken, with what to do about it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def serve(folder: Path, request: Request) -> Report:
    """Read `source.tflite` and `samples.npy`, write `model.tflite`, or say why not."""
    try:
        samples = np.load(folder / SAMPLES, allow_pickle=False)
        with quiet():
            model = _quantize((folder / SOURCE).read_bytes(), samples, request.step)
        (folder / MODEL).write_bytes(model)
        return Report()
    except RefusedError as error:
        return Report(str(error), error.hint)
    except Exception as error:  # the library raises errors of every kind
        return Report(f"ai-edge-quantizer cannot: {first_line(error)}", "use another recipe, or ONNX")


def _quantize(source: bytes, samples: Any, step: Compression) -> bytes:
    from ai_edge_quantizer import quantizer

    root = checked(source, samples)
    prepared = pack(root)
    recipes = _said(step, frozenset(tensor.name.decode() for tensor in root.subgraphs[0].tensors))
    made = quantizer.Quantizer(bytearray(prepared), recipes.get_quantization_recipe())
    ranges = ranges_of(root, prepared, samples, recipes) if made.need_calibration else None
    result = made.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    quantized = unpack(bytes(result.quantized_model))
    if not any(_is_small(tensor) for graph in quantized.subgraphs for tensor in graph.tensors):
        raise RefusedError(
            "nothing in the model can be stored in fewer bits by this recipe", "use another one"
        )
    return pack(quantized)


def ranges_of(root: Any, prepared: bytes, samples: Any, recipes: Any) -> Any:
    """Run a checked model on samples and see the ranges that its tensors take, as the quantizer keeps them."""
    from ai_edge_quantizer import calibrator
    from ai_edge_quantizer.utils import qsv_utils

    name = root.signatureDefs[0].inputs[0].name.decode()
    feeds = [{name: samples[index : index + 1]} for index in range(len(samples))]
    # Not the quantizer's own `calibrate`: it forgets what it saw, so that the order of samples would decide.
    watch = calibrator.Calibrator(
        bytearray(prepared), num_threads=1, qsv_update_func=qsv_utils.min_max_update
    )
    watch.calibrate({root.signatureDefs[0].signatureKey.decode(): feeds}, recipes)
    return watch.get_model_qsvs()


def checked(source: bytes, samples: Any) -> Any:
    """Put a file right for the quantizer, or refuse it."""
    from ai_edge_litert import schema_py_generated as schema

    try:
        root = unpack(source)
    except ValueError as error:
        raise RefusedError(str(error), "export it again") from error
    if len(root.subgraphs) != 1:
        raise RefusedError(
            f"the model has {len(root.subgraphs)} subgraphs: loops and branches are not quantized",
            "export it without control flow",
        )
    [graph] = root.subgraphs
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise RefusedError(
            f"the model takes {len(graph.inputs)} inputs and gives {len(graph.outputs)} outputs; only one of each is quantized",
            "split it, or bundle it as it is with `edgeml package`",
        )
    taken = graph.tensors[graph.inputs[0]]
    if taken.type != _FLOAT32 or any(_is_quantized(tensor) for tensor in graph.tensors):
        raise RefusedError(
            "the model is quantized already",
            "give the float model, or bundle it as it is with `edgeml package`",
        )
    if samples.dtype != np.float32 or list(samples.shape[1:]) != [int(size) for size in taken.shape[1:]]:
        raise RefusedError(
            f"the model takes float32 samples of shape {[int(size) for size in taken.shape[1:]]}, "
            f"was given {samples.dtype.name} of shape {list(samples.shape[1:])}",
            "give samples exactly as the model takes them",
        )
    for tensor, name in zip(
        graph.tensors, distinct([(one.name or b"").decode("utf-8", "replace") for one in graph.tensors]), strict=True
    ):  # fmt: skip
        tensor.name = name.encode()
    if not root.signatureDefs:
        root.signatureDefs = [_signature(schema, graph)]
    return root


def _is_quantized(tensor: Any) -> bool:
    told = tensor.quantization
    return told is not None and told.scale is not None and len(told.scale) > 0


def _is_small(tensor: Any) -> bool:
    return tensor.type == _FLOAT16 or _is_quantized(tensor)


def _signature(schema: Any, graph: Any) -> Any:
    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = _SIGNATURE.encode(), 0
    made.inputs, made.outputs = [schema.TensorMapT()], [schema.TensorMapT()]
    for entry, index in ((made.inputs[0], graph.inputs[0]), (made.outputs[0], graph.outputs[0])):
        entry.name, entry.tensorIndex = graph.tensors[index].name, int(index)
    return made


def _said(step: Compression, names: frozenset[str]) -> Any:
    """Say a step in the quantizer's words."""
    from ai_edge_quantizer import algorithm_manager, qtyping, recipe_manager

    everything = qtyping.TFLOperationName.ALL_SUPPORTED
    algorithm = algorithm_manager.AlgorithmName
    recipes = recipe_manager.RecipeManager()
    match step:
        case Float16():
            recipes.add_weight_only_config(
                _EVERYWHERE, everything, num_bits=16, algorithm_key=algorithm.FLOAT_CASTING
            )
        case WeightOnly():
            recipes.add_weight_only_config(_EVERYWHERE, everything, num_bits=step.bits)
        case DynamicInt8():
            _say_dynamic(recipes, step)
        case StaticInteger():
            bits = 16 if step.activations is Activations.INT16 else 8
            recipes.add_static_config(_EVERYWHERE, everything, activation_num_bits=bits, weight_num_bits=8)
            if step.boundary is Boundary.FLOAT:
                for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
                    recipes.add_quantization_config(_EVERYWHERE, end, algorithm_key=algorithm.NO_QUANTIZE)
            for layer in step.float_layers:
                if layer not in names:
                    raise RefusedError(
                        f"the model has no layer {layer!r}", "name a tensor that a layer gives"
                    )
                recipes.add_quantization_config(
                    scope_of(layer), everything, algorithm_key=algorithm.NO_QUANTIZE
                )
    return recipes


def scope_of(layer: str) -> str:
    """Say the layer that gives a tensor in the quantizer's words: an expression for its outputs' names."""
    return f"^{re.escape(layer)};$"


def _say_dynamic(recipes: Any, step: DynamicInt8) -> None:
    from ai_edge_quantizer import qtyping

    granularity = {
        Granularity.CHANNEL: qtyping.QuantGranularity.CHANNELWISE,
        Granularity.TENSOR: qtyping.QuantGranularity.TENSORWISE,
    }
    operators = qtyping.TFLOperationName
    if step.layers is Layers.ALL:
        recipes.add_dynamic_config(
            _EVERYWHERE,
            operators.ALL_SUPPORTED,
            num_bits=step.bits,
            granularity=granularity[step.convolution],
        )
    recipes.add_dynamic_config(
        _EVERYWHERE, operators.FULLY_CONNECTED, num_bits=step.bits, granularity=granularity[step.linear]
    )


if __name__ == "__main__":
    carry_out(Request, serve)
