"""What counting costs an inference, with the flush of each full ring paid by its rows.

In processor time, which neighbours disturb less than time on the wall; next to it, in the same rounds, a call that does
nothing. `pause` is one flush: how long the worker is busy between two answers, once in a ring's worth of inferences.
Target: at most 5 us an inference at 43 columns.
"""

import argparse
import json
import statistics
import time

import numpy as np

from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily, ScoreKind, Task
from edgeml.observer import RING_ROWS, Observer
from edgeml.reference import build_monitor
from edgeml.tensors import DType, TensorSpec

SHAPES = {11: ((6,), 3), 43: ((31,), 10), 139: ((64, 57), 16)}
"""Columns: elements of each input, classes."""
ROUNDS = 15
CALLS = 8 * RING_ROWS


def observer(widths, classes):
    inputs = tuple(TensorSpec(f"x{i}", DType.FLOAT32, (-1, width)) for i, width in enumerate(widths))
    manifest = Manifest(
        "bench", "1.0.0", "onnx-fp32", RuntimeFamily.ONNX, ("generic-x86-64",), inputs,
        (TensorSpec("y", DType.FLOAT32, (-1, classes)),), (), Measurement("", "", 1, 1.0, 1.0, 0),
        Provenance("", "0" * 64), task=Task.CLASSIFICATION, scores=ScoreKind.LOGITS,
    )  # fmt: skip
    generator = np.random.default_rng(0)
    arrays = {spec.name: generator.normal(size=(2000, spec.shape[1])).astype(np.float32) for spec in inputs}
    answers = generator.normal(size=(2000, classes)).astype(np.float32)
    monitor = build_monitor(manifest, arrays, {"y": answers})
    requests = [([a[i : i + 1] for a in arrays.values()], [answers[i : i + 1]]) for i in range(2000)]
    return Observer(monitor, manifest), requests, len(monitor.columns)


def nothing(_inputs, _outputs):
    pass


def per_call_us(function, requests):
    count = len(requests)
    started_ns = time.thread_time_ns()
    for i in range(CALLS):
        function(*requests[i % count])
    return (time.thread_time_ns() - started_ns) / CALLS / 1000


def flush_ms(watcher, requests):
    for i in range(RING_ROWS - 1):
        watcher.observe(*requests[i])
    started_ns = time.thread_time_ns()
    watcher.observe(*requests[RING_ROWS - 1])
    return (time.thread_time_ns() - started_ns) / 1e6


def measure(columns):
    watcher, requests, found = observer(*SHAPES[columns])
    assert found == columns, found
    watcher.take()
    bare, counted, pauses = [], [], []
    for _ in range(ROUNDS):
        bare.append(per_call_us(nothing, requests))
        counted.append(per_call_us(watcher.observe, requests))
        watcher.take()
        pauses.append(flush_ms(watcher, requests))
    cost = statistics.median(one - other for one, other in zip(counted, bare, strict=True))
    return {
        "columns": columns,
        "nothing_us": statistics.median(bare),
        "observe_us": statistics.median(counted),
        "cost_us": cost,
        "share_of_1_ms": cost / 1000,
        "pause_ms": statistics.median(pauses),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = [measure(columns) for columns in SHAPES]
    if arguments.json:
        print(json.dumps(results))
        return
    print("columns  nothing  observe   costs   of 1 ms   pause")
    for one in results:
        print(
            f"{one['columns']:>7}  {one['nothing_us']:4.2f} us  {one['observe_us']:4.2f} us  {one['cost_us']:4.2f} us"
            f"  {one['share_of_1_ms']:6.2%}  {one['pause_ms']:5.2f} ms"
        )


if __name__ == "__main__":
    main()
