"""How sure a classifier was of one answer, without numpy: the supervisor has none.

Decides what counts as sureness: the highest probability, be it that the model gives probabilities or scores of which a
softmax makes some. As `edgeml.columns` does it for windows. Pure.
"""

from __future__ import annotations

import math
import struct
from typing import Final

from edgeml.manifest import ScoreKind
from edgeml.tensors import DType, TensorSpec

from .ipc import TensorBytes

CLASSES_MAX: Final = 4096
"""With more classes this would cost the caller milliseconds; such answers have no confidence here."""
_FORMATS: Final = {
    DType.FLOAT16: "e", DType.FLOAT32: "f", DType.FLOAT64: "d", DType.INT8: "b", DType.UINT8: "B", DType.INT16: "h",
    DType.UINT16: "H", DType.INT32: "i", DType.INT64: "q",
}  # fmt: skip


def confidence(scores: TensorBytes, spec: TensorSpec, kind: ScoreKind) -> float | None:
    """Return the highest probability of one sample's scores, in [0, 1]; None if they are none, or not finite."""
    form = _FORMATS.get(scores.dtype)
    count = len(scores.data) // scores.dtype.item_bytes
    if kind is ScoreKind.NONE or form is None or not 0 < count <= CLASSES_MAX:
        return None
    stored = struct.unpack(f"<{count}{form}", scores.data)
    scale, zero = (spec.scale, spec.zero_point or 0) if spec.scale is not None else (1.0, 0)
    real: list[float] = [(value - zero) * scale for value in stored]
    if not all(map(math.isfinite, real)):
        return None
    highest: float = max(real)
    if kind is ScoreKind.PROBABILITIES:
        return min(1.0, max(0.0, highest))
    total: float = sum(math.exp(value - highest) for value in real)
    return 1.0 / total
