"""Calibration: which samples are shown to a model, what ranges its tensors take, and how many samples were enough.

Decides that samples are taken evenly from all that are given, and when ranges count as settled. How a range becomes a
scale is the business of the steps; what is drawn of it, of `explain/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from edgeml.errors import BackendError

from .quiet import first_line
from .sources.torch_model import Array

CALIBRATION_MAX: Final = 256
"""More samples than these hardly move the ranges; they are taken evenly from all that are given."""
SETTLED: Final = 0.01
"""Ranges that grow by less than this fraction are taken as settled."""
_BATCH: Final = 16

Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """What one tensor held: the least and the greatest value of each sample, both float32 [samples]."""

    tensor: str
    minima: Floats
    maxima: Floats

    @property
    def low(self) -> float:
        """Least value of all samples."""
        return float(self.minima.min())

    @property
    def high(self) -> float:
        """Greatest value of all samples."""
        return float(self.maxima.max())


@dataclass(frozen=True, slots=True)
class Convergence:
    """How the ranges of all tensors grew with the number of samples.

    `covered[i]` is the part of its final range that the tensor which lags most had reached after `counts[i]` samples.
    `enough` is the number of samples after which no range grows by more than the tolerance; `last` is the tensor that
    needed so many.
    """

    samples: int
    enough: int
    last: str
    counts: tuple[int, ...]
    covered: tuple[float, ...]

    @property
    def is_settled(self) -> bool:
        """Whether the second half of the samples taught nothing new; if not, more samples may widen the ranges."""
        return 2 * self.enough <= self.samples


def spread(count: int, most: int = CALIBRATION_MAX) -> npt.NDArray[np.int64]:
    """Choose at most `most` of `count` rows, evenly, with the first and the last.

    >>> spread(10, 4).tolist()
    [0, 3, 6, 9]
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def convergence(observed: Sequence[Observed], tolerance: float = SETTLED) -> Convergence:
    """Tell how many samples were enough for the ranges of all tensors. Pure.

    Args:
        observed: one or more tensors, each with the same number of samples, in the order in which they were shown.
        tolerance: fraction of its final width by which a range may still grow.
    """
    shares = np.stack([_shares(one) for one in observed])
    needed = (
        np.argmax(shares >= 1 - tolerance, axis=1) + 1
    )  # shares never fall, so the first place is where it stays
    last = int(np.argmax(needed))
    samples = shares.shape[1]
    counts = sorted({*(1 << power for power in range(samples.bit_length())), samples})
    covered = tuple(float(shares[:, count - 1].min()) for count in counts)
    return Convergence(samples, int(needed[last]), observed[last].tensor, tuple(counts), covered)


def _shares(one: Observed) -> npt.NDArray[np.float64]:
    """Width of the range after 1, 2, ... samples, as part of its width after all. Zero belongs to every range."""
    low = np.minimum.accumulate(np.minimum(one.minima.astype(np.float64), 0.0))
    high = np.maximum.accumulate(np.maximum(one.maxima.astype(np.float64), 0.0))
    width = high - low
    return width / width[-1] if width[-1] > 0 else np.ones_like(width)


def observe(prepared: bytes, samples: Array) -> tuple[Observed, ...]:
    """Run a float ONNX model on samples and note what each float tensor holds, its inputs included.

    It runs in this process: a model comes here after it was verified in a child.

    Args:
        prepared: from `steps.onnx_quantize.prepare`.
        samples: [samples, ...] as the model takes them.

    Raises:
        BackendError: onnxruntime cannot run the model on these samples.
    """
    found: dict[str, list[tuple[Floats, Floats]]] = {}
    for values in tensors_of(prepared, samples):
        for name, value in values:
            if value.dtype == np.float32 and value.size:
                found.setdefault(name, []).append(_extremes(name, value, len(values[0][1])))
    return tuple(
        Observed(name, np.concatenate([low for low, _ in parts]), np.concatenate([high for _, high in parts]))
        for name, parts in found.items()
    )


def tensors_of(
    prepared: bytes, samples: Array, wanted: Sequence[str] = ()
) -> Iterator[list[tuple[str, Array]]]:
    """Give the values of a model's tensors, one list of (name, value) a batch; of all tensors if none is named.

    Raises:
        BackendError: onnxruntime cannot run the model on these samples.
    """
    import onnx

    proto = onnx.load_from_string(prepared)
    source = proto.graph.input[0]
    visible = [one.name for one in proto.graph.output]
    names = list(wanted) or [name for node in proto.graph.node for name in node.output if name]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in visible)
    is_free = bool(source.type.tensor_type.shape.dim[0].dim_param)
    step = _BATCH if is_free else 1
    try:
        session = _session(proto.SerializeToString())
        for start in range(0, len(samples), step):
            batch = np.ascontiguousarray(samples[start : start + step])
            values = session.run(names, {source.name: batch})
            shown = [(source.name, batch)] if not wanted else []
            yield [*shown, *((name, np.asarray(value)) for name, value in zip(names, values, strict=True))]
    except Exception as error:  # onnxruntime raises errors of many kinds
        raise BackendError(
            f"onnxruntime cannot run the model on the calibration samples: {first_line(error)}",
            hint="give samples exactly as the model takes them",
        ) from error


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _extremes(name: str, value: Array, count: int) -> tuple[Floats, Floats]:
    if not np.isfinite(value).all():
        raise BackendError(
            f"tensor {name} holds NaN or infinity for a calibration sample",
            hint="look for NaN in the data, or for a division or logarithm in the model that the data drive out of range",
        )
    if value.ndim and len(value) == count:
        flat = value.reshape(count, -1).astype(np.float32)
        return flat.min(axis=1), flat.max(axis=1)
    # Not one row a sample: what it holds is true of each sample of the batch.
    return np.full(count, value.min(), np.float32), np.full(count, value.max(), np.float32)
