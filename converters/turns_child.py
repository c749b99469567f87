"""The process in which several models answer in turns, so that their latencies can be compared.

Decides the order: rounds, in each of which every model answers a few requests. A machine whose speed changes within
minutes changes it for all of them alike. What is compared, and why, is `turns.py`'s business.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgeml.manifest import RuntimeFamily
from edgeml.profile import DeviceRuntime
from edgeml.runtime import Session, open_session

from .errand import carry_out
from .quiet import first_line
from .sources.torch_model import Array

CALLS: Final = 8
"""Of one model in one round: enough that its weights are in the processor's cache again."""
ROUNDS: Final = 60
ROUNDS_MIN: Final = 6
WARM_UP: Final = 2
"""Rounds that are not counted."""


class TurnsRequest(msgspec.Struct, frozen=True):
    """How many models there are, as `N.model` and `N.npy`, and what runs them; no round begins after `measure_s`."""

    models: int
    family: RuntimeFamily
    runtime: DeviceRuntime | None
    measure_s: float
    timeout_s: float


class TurnsReport(msgspec.Struct, frozen=True):
    """Median latency of each model, in order; `refusal` says why there are none."""

    latency_p50_ms: tuple[float, ...] = ()
    refusal: str = ""
    hint: str = ""


def serve(folder: Path, request: TurnsRequest) -> TurnsReport:
    """Measure what the request names, or say why not."""
    try:
        return TurnsReport(_timed(folder, request))
    except Exception as error:  # runtimes raise errors of every kind
        return TurnsReport(refusal=f"candidates could not be measured in turns: {first_line(error)}")


def _timed(folder: Path, request: TurnsRequest) -> tuple[float, ...]:
    rivals: list[tuple[Session, list[list[Array]], list[int]]] = []
    for place in range(request.models):
        model = (folder / f"{place}.model").read_bytes()
        samples = np.load(folder / f"{place}.npy", allow_pickle=False)
        session = open_session(model, request.family, 1, request.runtime)
        rivals.append((session, [[samples[index : index + 1]] for index in range(len(samples))], []))
    ends_s = time.monotonic() + request.measure_s
    for turn in range(WARM_UP + ROUNDS):
        if turn >= WARM_UP + ROUNDS_MIN and time.monotonic() > ends_s:
            break
        for session, inputs, taken_ns in rivals:
            for call in range(CALLS):
                given = inputs[(turn * CALLS + call) % len(inputs)]
                started_ns = time.perf_counter_ns()
                session.run(given)
                if turn >= WARM_UP:
                    taken_ns.append(time.perf_counter_ns() - started_ns)
    return tuple(statistics.median(taken_ns) / 1e6 for _, _, taken_ns in rivals)


if __name__ == "__main__":
    carry_out(TurnsRequest, serve)
