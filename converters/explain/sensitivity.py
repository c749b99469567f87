"""Which layer loses the accuracy: each layer quantized alone, all others in float.

Decides how a layer's part in the loss is measured, and which layers are proposed to stay in float. One layer at a time is
quantized, not one at a time left out: losses of single layers add up nearly, and a layer that alone does harm is found
even where another does more. Whether leaving layers out pays is found by trying it, which is the search's business.

It runs in this process. A model comes here after it was verified in a child, and what is added to it are operators that
onnxruntime's own quantizer writes; a child for each of the layers would take longer than the scan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from edgeml.errors import BackendError

from ..calibration import Observed, spread, tensors_of
from ..quiet import first_line
from ..recipe import StaticInteger
from ..sources.torch_model import Array
from ..steps.onnx_layers import Layer, layers
from ..steps.onnx_quantize import build_one, ranges_of
from .noise import sqnr_db

SAMPLES_MAX: Final = 500
"""Evaluation samples that are looked at, evenly taken: a scan is for ranking layers, and is repeated for each of them."""
_SQNR_SAMPLES: Final = 32
_BATCH: Final = 32


class Scored(Protocol):
    """What a judge says of answers: a metric of which more is better, and agreement with the float model."""

    @property
    def value(self) -> float:
        """The metric."""
        ...

    @property
    def agreement(self) -> float:
        """Fraction of the samples with the float model's answer."""
        ...


@dataclass(frozen=True, slots=True)
class Trial:
    """What the scan is made with: samples [n, ...] as the model takes them, who scores answers to them, progress.

    `score` is given answers [n, ...] to exactly these samples; `samples_of` chooses the rows that it should be made for.
    """

    samples: Array
    score: Callable[[Array], Scored]
    on_progress: Callable[[float], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """What quantizing one layer alone does. Ranges are of the float model on the calibration samples.

    `metric_drop` is by how much the metric gets worse with this layer quantized (negative if it gets better);
    `sqnr_db` is the power of the layer's output over the power of its error.
    """

    layer: str
    operator: str
    parameters: int
    metric_drop: float
    agreement: float
    sqnr_db: float
    weight_low: float
    weight_high: float
    activation_low: float
    activation_high: float

    @property
    def harm(self) -> tuple[float, float, float, str]:
        """Orders layers, the worst first: by agreement, then by the metric, then by noise, then by name.

        Agreement comes first because it counts every answer that changed. The metric counts those that became wrong
        less those that became right, which for one layer is a handful, and mostly chance.
        """
        return (self.agreement, -self.metric_drop, self.sqnr_db, self.layer)


def samples_of(count: int) -> npt.NDArray[np.int64]:
    """Choose the rows of `count` evaluation samples that a scan looks at."""
    return spread(count, SAMPLES_MAX)


def exclusions(rows: Sequence[LayerSensitivity]) -> tuple[tuple[str, ...], ...]:
    """Propose sets of layers to leave in float, each twice as large as the one before, up to half of the layers. Pure.

    Layers that change no answer and add little noise are never proposed.
    """
    worst = [
        one.layer
        for one in sorted(rows, key=lambda one: one.harm)
        if one.agreement < 1 or one.metric_drop > 0
    ]
    most = min(len(worst), max(1, len(rows) // 2))
    sizes = [1 << power for power in range(most.bit_length()) if 1 << power <= most]
    return tuple(tuple(worst[:size]) for size in sizes)


def scan(
    prepared: bytes, observed: Sequence[Observed], step: StaticInteger, trial: Trial
) -> tuple[LayerSensitivity, ...]:
    """Quantize each layer alone and score the model; the worst layer comes first.

    Args:
        prepared: from `steps.onnx_quantize.prepare`.
        observed: from `calibration.observe` on the calibration samples.
        step: how layers are quantized; its `float_layers` are looked at as well.
        trial: evaluation samples and who scores.

    Raises:
        BackendError: onnxruntime cannot quantize or run a layer.
    """
    import onnx

    graph = onnx.load_from_string(prepared).graph
    known = layers(graph)
    if not known:
        return ()
    ranges = ranges_of(observed)
    answer = graph.output[0].name
    # A layer's own output tells its noise; the answers are asked for beside it.
    some = trial.samples[:_SQNR_SAMPLES]
    wanted = list(dict.fromkeys([*(one.output for one in known), answer]))
    original = _gathered(tensors_of(prepared, some, wanted))
    baseline = trial.score(_answers(prepared, trial.samples, answer)).value
    bounds = {one.tensor: (one.low, one.high) for one in observed}
    weights = _weight_ranges(graph)
    rows = []
    for place, layer in enumerate(known):
        model = build_one(prepared, ranges, step, layer.node)
        score = trial.score(_answers(model, trial.samples, answer))
        noisy = _gathered(tensors_of(model, some, [layer.output]))[layer.output]
        rows.append(
            LayerSensitivity(
                layer.name, layer.operator, layer.parameters, baseline - score.value, score.agreement,
                sqnr_db(original[layer.output], noisy), *weights[layer.weight], *bounds.get(layer.output, (0.0, 0.0)),
            )
        )  # fmt: skip
        trial.on_progress((place + 1) / len(known))
    return tuple(sorted(rows, key=lambda one: one.harm))


def narrow_layers(prepared: bytes) -> tuple[str, ...]:
    """Name the convolutions with fewer than four input channels: in float they are often faster than in integers."""
    import onnx

    known: tuple[Layer, ...] = layers(onnx.load_from_string(prepared).graph)
    return tuple(one.name for one in known if one.is_narrow)


def _gathered(batches: Any) -> dict[str, Array]:
    parts: dict[str, list[Array]] = {}
    for batch in batches:
        for name, value in batch:
            parts.setdefault(name, []).append(value)
    return {name: np.concatenate(values) for name, values in parts.items()}


def _answers(model: bytes, samples: Array, output: str) -> Array:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        source = session.get_inputs()[0]
        step = 1 if isinstance(source.shape[0], int) else _BATCH
        batches = [
            session.run([output], {source.name: np.ascontiguousarray(samples[start : start + step])})[0]
            for start in range(0, len(samples), step)
        ]
    except Exception as error:  # onnxruntime raises errors of many kinds
        raise BackendError(
            f"onnxruntime cannot run a model with one quantized layer: {first_line(error)}"
        ) from error
    answers: Array = np.concatenate(batches)
    return answers


def _weight_ranges(graph: Any) -> dict[str, tuple[float, float]]:
    from onnx import numpy_helper

    wanted = {one.weight for one in layers(graph)}
    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer if one.name in wanted}
    return {name: (float(values.min()), float(values.max())) for name, values in arrays.items()}
