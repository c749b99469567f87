"""A candidate: one recipe's result and what was found out about it.

Decides the recipes, their names, and the figures that selection looks at. How a recipe is carried out is the business
of `steps/`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from edgeml.ids import Digest


class Recipe(enum.Enum):
    """What is done to the model. The letters say how activations and weights are stored: u8s8 is uint8 and int8."""

    FP32 = "fp32"
    INT8_U8S8 = "int8-u8s8"
    INT8_S8S8 = "int8-s8s8"

    @property
    def variant(self) -> str:
        """Name of the variant that it makes."""
        return f"onnx-{self.value}"

    @property
    def is_int8(self) -> bool:
        """Whether weights and activations are quantized."""
        return self is not Recipe.FP32

    @property
    def steps(self) -> str:
        """What is done, in words."""
        return _STEPS[self]


_EXPORT = "torch.export, ONNX opset 18"
_STATIC = f"{_EXPORT}, static QDQ per channel, min-max calibration"
_STEPS = {
    Recipe.FP32: _EXPORT,
    Recipe.INT8_U8S8: f"{_STATIC}, uint8 activations, int8 weights",
    Recipe.INT8_S8S8: f"{_STATIC}, int8 activations, int8 weights",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """What a candidate scored and cost on its runtime, on this host.

    `value` is the metric on the evaluation samples, `agreement` the fraction of them on which the candidate and the
    model it came from gave the same answer. Latency is of one request with one sample; peak memory is the process'
    (interpreter, numpy, runtime, model).
    """

    value: float
    agreement: float
    latency_p50_ms: float
    latency_p95_ms: float
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a candidate could not be made, or did not run on its runtime."""

    reason: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """One recipe's result. `length_bytes` is the model file's; `sha256` is None if there is no file."""

    recipe: Recipe
    length_bytes: int
    sha256: Digest | None
    outcome: Measured | Failed
