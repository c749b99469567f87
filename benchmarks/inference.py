"""What a request costs: a bare onnxruntime call, through the worker, and over HTTP; one model, interleaved rounds.

Also how long a worker needs to start, and its unique memory. The socketpair row is the floor for anything that crosses
a process: the same bytes to and fro with nothing done about them. Targets for 1 KB: the worker adds at most 120 us at
the median; a worker with a tiny model has at most 20 MB of its own.
"""

# ruff: noqa: E402 - the directory of this file must not be looked into: its agent.py is no room
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import http.client
import json
import os
import socket
import tempfile
import time

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from agent.ipc import TensorBytes
from agent.sensors import Sensors
from agent.server import Server
from agent.serving import Serving
from agent.supervisor import Supervisor
from edgeml.bundle import MONITOR, write_bundle
from edgeml.ids import digest_of, digest_of_file
from edgeml.inference import JSON_LENGTH_HEADER
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily, ScoreKind, Task
from edgeml.monitor import encode
from edgeml.reference import build_monitor
from edgeml.runtime import open_session
from edgeml.tensors import DType

FEATURES = 256
HIDDEN = 32
CLASSES = 10
CALLS = 200
WARM_UP = 200
STARTS = 5


def mlp():
    generator = np.random.default_rng(0)
    first = generator.normal(size=(FEATURES, HIDDEN)).astype(np.float32)
    second = generator.normal(size=(HIDDEN, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "second"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def bundle(path):
    model = mlp()
    session = open_session(model, RuntimeFamily.ONNX)
    samples = np.random.default_rng(1).normal(size=(500, FEATURES)).astype(np.float32)
    manifest = Manifest(
        "bench", "1.0.0", "onnx-fp32", RuntimeFamily.ONNX, ("generic-x86-64",), session.inputs, session.outputs, (),
        Measurement("", "", 1, 1.0, 1.0, 0), Provenance("", digest_of(model)),
        task=Task.CLASSIFICATION, scores=ScoreKind.LOGITS,
    )  # fmt: skip
    monitor = build_monitor(manifest, {"x": samples}, {"logits": session.run([samples])[0]})
    write_bundle(path, manifest, {"model.onnx": model, MONITOR: encode(monitor)})
    return session


class Echo:
    """A child that sends 80 bytes back for each request."""

    def __init__(self, size):
        self.size = size
        self.ours, theirs = socket.socketpair()
        self.child = os.fork()
        if not self.child:
            self.ours.close()
            buffer = bytearray(1 << 16)
            while theirs.recv_into(buffer):
                theirs.send(bytes(80))
            os._exit(0)
        theirs.close()
        self.buffer = bytearray(1 << 16)

    def call(self):
        """Ask once."""
        self.ours.send(bytes(self.size))
        self.ours.recv_into(self.buffer)

    def close(self):
        """End the child."""
        self.ours.close()
        os.waitpid(self.child, 0)


class OverHttp:
    """A client with one connection and the binary extension."""

    def __init__(self, url, data):
        self.connection = http.client.HTTPConnection(url.removeprefix("http://"))
        described = {
            "name": "x",
            "datatype": "FP32",
            "shape": [1, FEATURES],
            "parameters": {"binary_data_size": len(data)},
        }
        head = msgspec.json.encode({"inputs": [described], "parameters": {"binary_data_output": True}})
        self.body = head + data
        self.headers = {JSON_LENGTH_HEADER: str(len(head))}

    def call(self):
        """Ask once."""
        self.connection.request("POST", "/v2/models/bench/infer", self.body, self.headers)
        response = self.connection.getresponse()
        body = response.read()
        assert response.status == http.HTTPStatus.OK, body


class Direct:
    """The endpoint's view of a serving worker."""

    def __init__(self, serving):
        self.serving = serving

    def models(self):
        """Who serves."""
        return ("bench",)

    def manifest(self, _model):
        """What serves."""
        return self.serving.active.manifest

    def ready(self, _model):
        """Always."""
        return True

    def infer(self, _model, tensors, _request_id, _deadline_s):
        """Answer, and count nothing."""
        return self.serving.infer(tensors)

    async def infer_in_loop(self, _model, tensors, _request_id, deadline_s):
        """The same in the endpoint's event loop."""
        return await self.serving.infer_in_loop(tensors, deadline_s)

    def misfit(self, _model, _error):
        """Count nothing."""

    def feedback(self, _model, _request_id, _label):
        """Remember nothing."""
        return False


def timed_us(call):
    started_ns = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started_ns) / 1000


def quantiles(values):
    ordered = sorted(values)
    return {"p50_us": ordered[len(ordered) // 2], "p99_us": ordered[int(len(ordered) * 0.99)]}


def measure(directory, rounds):
    path = directory / "bench.edgeml"
    session = bundle(path)
    digest = digest_of_file(path)
    array = np.random.default_rng(2).normal(size=(1, FEATURES)).astype(np.float32)
    request = [TensorBytes(DType.FLOAT32, array.shape, array.tobytes())]
    echo = Echo(array.nbytes)
    supervisor = Supervisor()
    supervisor.start()
    first = supervisor.load(path, digest)
    starts_ms = []
    for _ in range(STARTS):
        worker = supervisor.load(path, digest)
        starts_ms.append(worker.load_ms)
        worker.stop()
    serving = Serving(supervisor)
    serving.swap(first)
    server = Server(Direct(serving), "127.0.0.1:0")
    server.start()
    ways = {
        "bare": lambda: session.run([array]),
        "socketpair": echo.call,
        "worker": lambda: first.infer(request),
        "http": OverHttp(server.url, array.tobytes()).call,
    }
    taken = {name: [] for name in ways}
    for call in ways.values():
        for _ in range(WARM_UP):
            call()
    for _ in range(rounds):
        for name, call in ways.items():
            taken[name] += [timed_us(call) for _ in range(CALLS)]
    memory = Sensors().memory(first.pid)
    result = {name: quantiles(values) for name, values in taken.items()}
    bare = result["bare"]["p50_us"]
    for one in result.values():
        one["adds_p50_us"] = one["p50_us"] - bare
    result["start_ms"] = sorted(starts_ms)[STARTS // 2]
    result["uss_bytes"] = memory.uss_bytes
    result["rss_bytes"] = memory.rss_bytes
    server.stop()
    serving.close()
    supervisor.close()
    echo.close()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        result = measure(Path(directory), arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{'1 KB, us':<12} {'p50':>8} {'p99':>8} {'adds p50':>9}")
    for name in ("bare", "socketpair", "worker", "http"):
        one = result[name]
        print(f"{name:<12} {one['p50_us']:>8.1f} {one['p99_us']:>8.1f} {one['adds_p50_us']:>9.1f}")
    print(
        f"worker: loaded in {result['start_ms']:.0f} ms, USS {result['uss_bytes'] / 1e6:.1f} MB,"
        f" RSS {result['rss_bytes'] / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
