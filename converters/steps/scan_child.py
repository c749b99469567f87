"""The process that quantizes each layer of a .tflite file alone and runs what comes of it.

Decides what a layer is: an operator with weights of its own, named as the tensor that it gives. What the answers are
worth, and what becomes of this process, is `explain/tflite_sensitivity.py`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from ..errand import carry_out
from ..explain.noise import sqnr_db
from ..quiet import first_line, quiet
from ..recipe import Activations, StaticInteger
from .quantize_child import (
    SAMPLES,
    SOURCE,
    RefusedError,
    checked,
    ranges_of,
    scope_of,
)
from .tflite_schema import operator_names, pack

TRIAL: Final = "trial.npy"
ANSWERS: Final = "answers.npy"
_LAYERS: Final = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"}
)
_SQNR_SAMPLES: Final = 32
_FLOAT32: Final = 0
_CALIBRATED: Final = 8
"""Bits by which ranges are watched; which tensors are watched does not depend on them."""


class ScanRequest(msgspec.Struct, frozen=True):
    """What is to be done: each layer alone, by this step."""

    step: StaticInteger
    timeout_s: float


class ScanRow(msgspec.Struct, frozen=True):
    """A layer, and what quantizing it alone did to its own output. Ranges are of the float model."""

    layer: str
    operator: str
    parameters: int
    sqnr_db: float
    weight_low: float
    weight_high: float
    activation_low: float
    activation_high: float


class ScanReport(msgspec.Struct, frozen=True):
    """How it went: `refusal` is empty if there are answers, of the float model and of a model for each row."""

    rows: tuple[ScanRow, ...] = ()
    refusal: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class _Layer:
    name: str
    operator: str
    parameters: int
    low: float
    high: float


def serve(folder: Path, request: ScanRequest) -> ScanReport:
    """Read `source.tflite`, `samples.npy` and `trial.npy`, write `answers.npy`, or say why not."""
    try:
        samples, trial = (np.load(folder / name, allow_pickle=False) for name in (SAMPLES, TRIAL))
        with quiet():
            rows, answers = _scanned((folder / SOURCE).read_bytes(), samples, trial, request.step)
        np.save(folder / ANSWERS, answers, allow_pickle=False)
        return ScanReport(rows)
    except RefusedError as error:
        return ScanReport(refusal=str(error), hint=error.hint)
    except Exception as error:  # the libraries raise errors of every kind
        return ScanReport(
            refusal=f"a model with one quantized layer cannot be made or run: {first_line(error)}"
        )


def _scanned(source: bytes, samples: Any, trial: Any, step: StaticInteger) -> tuple[tuple[ScanRow, ...], Any]:
    root = checked(source, samples)
    known = list(_layers(root))
    if not known:
        raise RefusedError("the model has no layer with weights", "nothing can be told apart")
    prepared = pack(root)
    ranges = ranges_of(root, prepared, samples, _recipe(".*", _CALIBRATED))
    some = trial[:_SQNR_SAMPLES]
    original = _outputs(prepared, some, [layer.name for layer in known])
    rows, answers = [], [_answers(prepared, trial)]
    bits = 16 if step.activations is Activations.INT16 else 8
    for layer in known:
        model = _alone(prepared, layer.name, bits, ranges)
        answers.append(_answers(model, trial))
        noisy = _outputs(model, some, [layer.name])[layer.name]
        seen = ranges.get(layer.name, {})
        low, high = (float(np.min(seen.get(end, 0.0))) for end in ("min", "max"))
        rows.append(
            ScanRow(
                layer.name, layer.operator, layer.parameters, sqnr_db(original[layer.name], noisy),
                layer.low, layer.high, low, high,
            )
        )  # fmt: skip
    return tuple(rows), np.stack(answers)


def _layers(root: Any) -> Iterator[_Layer]:
    [graph] = root.subgraphs
    names = operator_names(root)
    for operator in graph.operators:
        kind = names[operator.opcodeIndex]
        if kind not in _LAYERS:
            continue
        stored = [_stored(root, graph.tensors[index]) for index in operator.inputs if index >= 0]
        weights = [one for one in stored if one is not None]
        if weights:
            largest = max(weights, key=len)
            name = graph.tensors[operator.outputs[0]].name.decode()
            yield _Layer(name, kind, sum(map(len, weights)), float(largest.min()), float(largest.max()))


def _stored(root: Any, tensor: Any) -> Any:
    """Return the numbers of a constant float tensor; None for anything else."""
    data = root.buffers[tensor.buffer].data
    if tensor.type != _FLOAT32 or data is None or not len(data):
        return None
    return np.asarray(data, np.uint8).view(np.float32)


def _recipe(scope: str, bits: int) -> Any:
    from ai_edge_quantizer import qtyping, recipe_manager

    recipes = recipe_manager.RecipeManager()
    recipes.add_static_config(
        scope, qtyping.TFLOperationName.ALL_SUPPORTED, activation_num_bits=bits, weight_num_bits=8
    )
    return recipes


def _alone(prepared: bytes, layer: str, bits: int, ranges: Any) -> bytes:
    from ai_edge_quantizer import quantizer

    made = quantizer.Quantizer(bytearray(prepared), _recipe(scope_of(layer), bits).get_quantization_recipe())
    result = made.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


def _answers(model: bytes, samples: Any) -> Any:
    interpreter = _interpreter(model, is_inspected=False)
    given, taken = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    found = []
    for index in range(len(samples)):
        interpreter.set_tensor(given["index"], samples[index : index + 1])
        interpreter.invoke()
        found.append(_real(interpreter.get_tensor(taken["index"]), taken)[0])
    return np.stack(found)


def _outputs(model: bytes, samples: Any, names: list[str]) -> dict[str, Any]:
    """What layers give within the model, [samples, ...] each, as reals."""
    interpreter = _interpreter(model, is_inspected=True)
    given = interpreter.get_input_details()[0]
    wanted = {one["name"]: one for one in interpreter.get_tensor_details() if one["name"] in set(names)}
    found: dict[str, list[Any]] = {name: [] for name in names}
    for index in range(len(samples)):
        interpreter.set_tensor(given["index"], samples[index : index + 1])
        interpreter.invoke()
        for name in names:
            found[name].append(_real(interpreter.get_tensor(wanted[name]["index"]), wanted[name]))
    return {name: np.concatenate(values) for name, values in found.items()}


def _interpreter(model: bytes, *, is_inspected: bool) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    made = Interpreter(model_content=model, num_threads=1, experimental_preserve_all_tensors=is_inspected)
    made.allocate_tensors()
    return made


def _real(values: Any, details: Any) -> Any:
    scale, zero_point = details["quantization"]
    real = values.astype(np.float32)
    return (real - np.float32(zero_point)) * np.float32(scale) if scale else real


if __name__ == "__main__":
    carry_out(ScanRequest, serve)
