"""Which waiting requests a worker answers next, and how several become one and come apart again.

Decides by times and sizes alone: who is too late, who goes together, for how long it is worth waiting for more, and
when somebody who was turned away should come again. Requests go together only in the order in which they came, and only
if the model leaves the first dimension of everything it takes and gives to the caller. Threads are `line`'s business.
"""

from __future__ import annotations

import array
import math
import struct
from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from edgeml.manifest import Manifest, Task
from edgeml.tensors import BATCH, DType

from .ipc import Answer, TensorBytes

RETRY_MAX_S: Final = 60
_CODES: Final = {
    DType.FLOAT32: "f", DType.FLOAT64: "d", DType.INT8: "b", DType.UINT8: "B", DType.BOOL: "B",
    DType.INT16: "h", DType.UINT16: "H", DType.INT32: "i", DType.INT64: "q",
}  # fmt: skip
Tails: TypeAlias = tuple[tuple[DType, tuple[int, ...]], ...]


class Rules(msgspec.Struct, frozen=True):
    """How requests may wait for one worker.

    `waiting_max` is how many; more are turned away. `batch_max` is how many samples may go together, if the model
    allows it at all, and `window_s` for how long the first of them may be held back for others.
    """

    waiting_max: int = 16
    batch_max: int = 1
    window_s: float = 0.0


class Waiting(msgspec.Struct, frozen=True):
    """What the decision needs to know of a request. Times are of the monotonic clock; no deadline is infinity."""

    arrived_s: float
    deadline_s: float
    rows: int
    tails: Tails = ()


class Plan(msgspec.Struct, frozen=True):
    """Positions in the line: `late` ones are not run, `taken` ones go now, together, unless `wait_s` is more than 0."""

    late: tuple[int, ...]
    taken: tuple[int, ...]
    wait_s: float


def plan(waiting: Sequence[Waiting], now_s: float, rules: Rules) -> Plan:
    """Decide who goes next.

    >>> line = [Waiting(0.0, math.inf, 1), Waiting(0.001, 0.002, 1), Waiting(0.001, math.inf, 1)]
    >>> plan(line, 0.003, Rules(batch_max=2))
    Plan(late=(1,), taken=(0, 2), wait_s=0.0)
    >>> plan(line[:1], 0.003, Rules(batch_max=2, window_s=0.005)).wait_s
    0.002
    """
    late = tuple(i for i, one in enumerate(waiting) if one.deadline_s <= now_s)
    rest = [i for i, one in enumerate(waiting) if one.deadline_s > now_s]
    if not rest:
        return Plan(late, (), 0.0)
    first = waiting[rest[0]]
    taken, rows = [rest[0]], first.rows
    for position in rest[1:]:
        other = waiting[position]
        # Whoever does not fit ends the batch: nobody is overtaken.
        if other.tails != first.tails or rows + other.rows > rules.batch_max:
            break
        taken.append(position)
        rows += other.rows
    until_s = first.arrived_s + rules.window_s
    # Nobody is held back who would be late then.
    in_time = all(waiting[i].deadline_s > until_s for i in taken)
    more_may_come = len(taken) == len(rest) and rows < rules.batch_max
    return Plan(late, tuple(taken), max(until_s - now_s, 0.0) if more_may_come and in_time else 0.0)


def may_batch(manifest: Manifest) -> bool:
    """Tell whether a model leaves the first dimension of everything to the caller, and nothing else.

    Steps and expectations are about one request, so a model with them answers one by one.
    """
    if manifest.processing is not None or manifest.expected is not None:
        return False
    return all(
        spec.shape[:1] == (BATCH,) and all(size > 0 for size in spec.sample_shape)
        for spec in (*manifest.inputs, *manifest.outputs)
    )


def tails(tensors: Sequence[TensorBytes]) -> Tails:
    """Say what requests must have in common to go together."""
    return tuple((one.dtype, one.shape[1:]) for one in tensors)


def combine(requests: Sequence[Sequence[TensorBytes]]) -> tuple[TensorBytes, ...]:
    """Make one request of several with equal tails."""
    return tuple(
        TensorBytes(
            parts[0].dtype,
            (sum(one.shape[0] for one in parts), *parts[0].shape[1:]),
            b"".join(one.data for one in parts),
        )
        for parts in zip(*requests, strict=True)
    )


def split(answer: Answer, rows: Sequence[int], task: Task) -> list[Answer]:
    """Take an answer to a combined request apart. Each took as long as all of them.

    Raises:
        ValueError: The model did not give one row for each that it was given.
    """
    outputs: list[list[TensorBytes]] = [[] for _ in rows]
    for tensor in answer.outputs:
        if tensor.shape[:1] != (sum(rows),):
            raise ValueError(f"an output of shape {tensor.shape} for {sum(rows)} samples")
        row_bytes = len(tensor.data) // sum(rows)
        at = 0
        for given, count in zip(outputs, rows, strict=True):
            end = at + count * row_bytes
            given.append(TensorBytes(tensor.dtype, (count, *tensor.shape[1:]), tensor.data[at:end]))
            at = end
    classifies = task is Task.CLASSIFICATION
    return [
        Answer(
            tuple(given),
            answer.latency_us,
            highest(given[0]) if classifies and count == 1 and given else None,
        )
        for given, count in zip(outputs, rows, strict=True)
    ]


def highest(tensor: TensorBytes) -> int | None:
    """Find the first highest element, as numpy's argmax does: what is no number counts as highest. None if empty.

    >>> highest(TensorBytes(DType.FLOAT32, (1, 3), struct.pack("<3f", 1.0, 3.0, 3.0)))
    1
    """
    values: Sequence[float]
    if tensor.dtype is DType.FLOAT16:
        values = struct.unpack(f"<{len(tensor.data) // 2}e", tensor.data)
    else:
        values = array.array(_CODES[tensor.dtype], bytes(tensor.data))
    if not values:
        return None
    best = max(values)
    strange = next((i for i, value in enumerate(values) if value != value), None)  # noqa: PLR0124 - only NaN is not itself
    return values.index(best) if strange is None else strange


def retry_after_s(waiting: int, call_s: float, together: int = 1) -> int:
    """Say when to come again: once those who wait now have been answered, in whole seconds as HTTP wants them.

    >>> retry_after_s(16, 0.002), retry_after_s(16, 0.5), retry_after_s(16, 0.5, together=8), retry_after_s(16, 100.0)
    (1, 9, 2, 60)
    """
    calls = math.ceil(waiting / max(together, 1)) + 1
    return min(max(math.ceil(calls * call_s), 1), RETRY_MAX_S)
