"""What looking at inputs and steps cost a request, next to a bare onnxruntime call in the same run.

Requests of 1 KB and of 150 KB: one that breaks nothing, one that is counted, one that is clipped, one that is refused; and a
photo of 640 x 480 pixels through resize, normalise and transpose. The bare call is a small network with the same input.
"""

# ruff: noqa: E402 - the directory of this file must not be looked into: its agent.py is no room
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import time
from contextlib import suppress

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from agent.guard import Guard
from edgeml.errors import ConfigError
from edgeml.expectation import Expected, InputExpectation, Policy
from edgeml.ids import digest_of
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily
from edgeml.pipeline import Pipeline
from edgeml.runtime import open_session
from edgeml.steps import Normalise, Preparation, Processing, Resize, Transpose
from edgeml.tensors import BATCH, DType, TensorSpec

HIDDEN = 32
CALLS = 100
WARM_UP = 50
SIZES = {"1 KB": 256, "150 KB": 38_400}
SIDE = 224


def network(features):
    """A matrix product, a ReLU and another one."""
    generator = np.random.default_rng(0)
    first = generator.normal(size=(features, HIDDEN)).astype(np.float32)
    second = generator.normal(size=(HIDDEN, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "first"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "second"], ["y"]),
    ]
    return nodes, [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")]


def opened(shape):
    """A session with an input of this shape, and its bytes."""
    nodes, weights = network(int(np.prod(shape)))
    graph = helper.make_graph(
        nodes, "bench",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data = model.SerializeToString()
    onnx.checker.check_model(model)
    return open_session(data, RuntimeFamily.ONNX), data


def guard(features, policy):
    """A guard of one input between -1 and 1."""
    spec = TensorSpec("x", DType.FLOAT32, (BATCH, features))
    return Guard(Expected((InputExpectation("x", -1, 1, policy=policy),)), (spec,))


def refused(one, arrays):
    """Ask, and be refused."""
    with suppress(ConfigError):
        one.admit(arrays)


def camera():
    """The steps of a photo, a photo, and the bare call on what they make."""
    session, data = opened((3, SIDE, SIDE))
    spec = TensorSpec("photo", DType.UINT8, (BATCH, BATCH, BATCH, 3), "NHWC")
    steps = (Resize(SIDE, SIDE), Normalise(1 / 255, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), Transpose("NCHW"))
    manifest = Manifest(
        "bench", "1.0.0", "onnx-fp32", RuntimeFamily.ONNX, ("generic-x86-64",), session.inputs, session.outputs, (),
        Measurement("", "", 1, 1.0, 1.0, 0), Provenance("", digest_of(data)),
        processing=Processing((Preparation("x", spec, steps),)),
    )  # fmt: skip
    pipeline = Pipeline(manifest)
    photo = np.random.default_rng(0).integers(0, 256, (1, 480, 640, 3), np.uint8)
    (tensor,) = pipeline.prepare([photo])
    return {
        "photo: bare": lambda: session.run([tensor]),
        "photo: steps": lambda: pipeline.prepare([photo]),
    }


def ways():
    """Every call by its name; the bare one of each group comes first."""
    calls = {}
    for size, features in SIZES.items():
        session, _ = opened((features,))
        sound = np.random.default_rng(1).uniform(-1, 1, (1, features)).astype(np.float32)
        bad = sound.copy()
        bad[0, -1] = 7
        calls[f"{size}: bare"] = lambda session=session, sound=sound: session.run([sound])
        for name, policy, array in (
            ("sound", Policy.SERVE, sound), ("counted", Policy.SERVE, bad), ("clipped", Policy.CLIP, bad),
        ):  # fmt: skip
            one = guard(features, policy)
            calls[f"{size}: {name}"] = lambda one=one, arrays=[array]: one.admit(arrays)
        one = guard(features, Policy.REFUSE)
        calls[f"{size}: refused"] = lambda one=one, arrays=[bad]: refused(one, arrays)
    return calls | camera()


def measure(rounds):
    """Median microseconds of each call, interleaved, and its ratio to the bare one of its group."""
    calls = ways()
    taken = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(CALLS):
                started_ns = time.perf_counter_ns()
                call()
                taken[name].append((time.perf_counter_ns() - started_ns) / 1000)
    medians = {name: sorted(values)[len(values) // 2] for name, values in taken.items()}
    return {
        name: {"p50_us": value, "of_bare": value / medians[f"{name.split(':')[0]}: bare"]}
        for name, value in medians.items()
    }


def main():
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    result = measure(arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{'request':<18} {'p50 us':>9} {'of bare':>8}")
    for name, one in result.items():
        print(f"{name:<18} {one['p50_us']:>9.1f} {one['of_bare']:>8.2f}")


if __name__ == "__main__":
    main()
