"""Latencies of candidates measured in turns on this host, for the profile `host`.

Decides who is measured again: what keeps to the floor, the fastest first, and the plain export. During a search every
candidate is measured when it is made, minutes apart: on a machine whose speed changes meanwhile, the same arithmetic was
seen to take 0.25 ms at first and 0.17 ms in the end. What is chosen by latency is chosen by these figures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edgeml.child import ChildLimits
from edgeml.errors import BackendError
from edgeml.profile import DeviceRuntime

from .candidate import Measured
from .errand import Errand
from .feed import feed
from .recipe import Recipe
from .select import Floor
from .sources.torch_model import Array
from .turns_child import TurnsReport, TurnsRequest
from .verify import Verified

RIVALS_MAX: Final = 12
SAMPLES: Final = 64
MEASURE_S: Final = 20.0
LIMITS: Final = ChildLimits(timeout_s=120.0, threads=1, memory_bytes=8 << 30)
_ERRAND: Final = Errand("converters.turns_child", "measured candidates in turns", LIMITS)


def rivals_of(found: Sequence[Verified], floor: Floor) -> tuple[Verified, ...]:
    """Choose who is measured in turns: at most RIVALS_MAX of those that keep to the floor, one of them plain. Pure."""
    good = [one for one in found if _latency(one) is not None and _holds(one, floor)]
    good.sort(key=lambda one: (not one.candidate.recipe.is_plain, _latency(one)))
    return tuple(good[:RIVALS_MAX]) if len(good) > 1 else ()


def in_turns(rivals: Sequence[Verified], samples: Array, runtime: DeviceRuntime) -> Mapping[Recipe, float]:
    """Measure candidates of one family in turns.

    Args:
        rivals: verified on this runtime, of this interpreter.
        samples: [n, ...] as the source takes them.
        runtime: what runs them.

    Returns:
        The median latency of one request with one sample, in ms.

    Raises:
        BackendError: A model cannot be run beside the others, or the process died, hung or wrote garbage.
        BudgetError: It took too much memory.
    """
    with tempfile.TemporaryDirectory(prefix="edgeml-turns-") as name:
        folder = Path(name)
        for place, one in enumerate(rivals):
            assert one.result is not None
            (folder / f"{place}.model").write_bytes(one.model)
            given = feed(samples[:SAMPLES], one.result.inputs[0], one.candidate.recipe.export.layout)
            np.save(folder / f"{place}.npy", given, allow_pickle=False)
        family = rivals[0].candidate.recipe.family
        request = TurnsRequest(len(rivals), family, runtime, MEASURE_S, LIMITS.timeout_s)
        report = _ERRAND.run(folder, request, TurnsReport)
    if len(report.latency_p50_ms) != len(rivals) or not all(one > 0 for one in report.latency_p50_ms):
        raise BackendError(f"the process that {_ERRAND.deed} left other figures than were asked for")
    recipes = (one.candidate.recipe for one in rivals)
    return dict(zip(recipes, report.latency_p50_ms, strict=True))


def _holds(one: Verified, floor: Floor) -> bool:
    outcomes = [run.outcome for run in one.candidate.runs]
    return all(isinstance(each, Measured) and floor.holds(each.value) for each in outcomes)


def _latency(one: Verified) -> float | None:
    measured = one.candidate.measured()
    return None if measured is None or one.result is None else measured.latency_p50_ms
