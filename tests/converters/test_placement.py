"""How a profile sees a candidate that ran on several runtimes: by the slowest, and by the one that takes most memory."""

import pytest

from converters.candidate import Basis, Candidate, Failed, Figure, Measured, Run
from converters.placement import place
from converters.recipe import Export, Recipe
from edgeml import profile
from edgeml.manifest import RuntimeFamily
from edgeml.profile import DeviceRuntime

BOARD = profile.load("raspberry-pi-4")
LITERT, OLD = DeviceRuntime.AI_EDGE_LITERT, DeviceRuntime.TFLITE_RUNTIME


def placed(*runs):
    return place(Candidate(Recipe(Export(RuntimeFamily.TFLITE)), 5, None, runs), None, BOARD)


def run(runtime, latency_ms, memory_bytes):
    return Run(runtime, "", Measured(0.9, 1.0, latency_ms, latency_ms, memory_bytes))


@pytest.mark.parametrize("slow", [50_000_000, 900_000_000])
def test_memory_is_the_most_that_any_runtime_takes_not_the_slowest_ones(slow):
    quick = 950_000_000 - slow
    assert {LITERT, OLD} <= set(BOARD.runtimes)
    found = placed(run(LITERT, 1.0, quick), run(OLD, 2.0, slow))
    assert found.memory_bytes == Figure(900_000_000, Basis.HOST)


def test_where_one_failed_nobody_can_say():
    assert placed(run(LITERT, 1.0, 5), Run(OLD, "", Failed("died"))).memory_bytes is None
    assert placed().memory_bytes is None
