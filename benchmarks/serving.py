"""What a program on the device waits for an answer: 4 KB as JSON and as bytes, over TCP and a unix socket.

Next to a bare onnxruntime call of the same model in the same run, interleaved. `http` rows send prepared bodies through
`http.client` and read the answer unparsed: the endpoint's own cost. `client` rows are `edgeml.client` and
`edgeml.async_client`, from arrays to arrays. The endpoint counts every answer, as on a device. It shares the interpreter
lock with the client here, which a real agent does not.
"""

# ruff: noqa: E402 - the directory of this file must not be looked into: its agent.py is no room
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import asyncio
import http.client
import json
import tempfile
import time

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from agent.answering import Answering
from agent.roster import Roster
from agent.server import Server
from agent.supervisor import Supervisor
from agent.windows import Windows
from edgeml.async_client import AsyncClient
from edgeml.bundle import MONITOR, write_bundle
from edgeml.client import Client
from edgeml.clock import SystemClock
from edgeml.ids import ModelName, digest_of, digest_of_file
from edgeml.inference import infer_request
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily, ScoreKind, Task
from edgeml.monitor import encode
from edgeml.reference import build_monitor
from edgeml.runtime import open_session

FEATURES = 1024
CLASSES = 10
CALLS = 50
WARM_UP = 100


def bundle(path):
    weights = np.random.default_rng(0).normal(size=(FEATURES, CLASSES)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made)
    model = made.SerializeToString()
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


class Prepared:
    """One connection that sends the same request again and again."""

    def __init__(self, url, body, headers):
        self.connection = http.client.HTTPConnection(url.removeprefix("http://"))
        self.body, self.headers = body, headers

    def call(self):
        """Ask once."""
        self.connection.request("POST", "/v2/models/bench/infer", self.body, self.headers)
        response = self.connection.getresponse()
        body = response.read()
        assert response.status == http.HTTPStatus.OK, body

    def close(self):
        """Close the connection."""
        self.connection.close()


class Looped:
    """The asynchronous client, one request at a time."""

    def __init__(self, url, array):
        self.loop = asyncio.new_event_loop()
        self.client = AsyncClient(url)
        self.array = array

    def call(self):
        """Ask once."""
        self.loop.run_until_complete(self.client.infer("bench", {"x": self.array}))

    def close(self):
        """Close the connection and the loop."""
        self.loop.run_until_complete(self.client.close())
        self.loop.close()


def timed_us(call):
    started_ns = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started_ns) / 1000


def measure(directory, rounds):
    path = directory / "bench.edgeml"
    session = bundle(path)
    array = np.random.default_rng(2).normal(size=(1, FEATURES)).astype(np.float32)
    supervisor = Supervisor()
    roster = Roster(supervisor)
    roster.seat(ModelName("bench")).swap(supervisor.load(path, digest_of_file(path)))
    answering = Answering(roster, Windows(60.0), SystemClock())
    servers = [Server(answering, listen) for listen in ("127.0.0.1:0", f"unix:{directory}/agent.sock")]
    for server in servers:
        server.start()
    tcp, unix = (server.url for server in servers)
    binary = infer_request("bench", {"x": array})
    one = {"name": "x", "datatype": "FP32", "shape": array.shape, "data": array.ravel().tolist()}
    over = {
        "http JSON": Prepared(tcp, msgspec.json.encode({"inputs": [one]}), {}),
        "http binary": Prepared(tcp, binary.body, dict(binary.headers)),
    }
    clients = {"client tcp": Client(tcp), "client unix": Client(unix)}
    looped = Looped(tcp, array)
    ways = {
        "bare": lambda: session.run([array]),
        **{name: prepared.call for name, prepared in over.items()},
        **{
            name: lambda client=client: client.infer("bench", {"x": array})
            for name, client in clients.items()
        },
        "async tcp": looped.call,
    }
    taken = {name: [] for name in ways}
    for call in ways.values():
        for _ in range(WARM_UP):
            call()
    for _ in range(rounds):
        for name, call in ways.items():
            taken[name] += [timed_us(call) for _ in range(CALLS)]
    for closable in (*over.values(), *clients.values(), looped):
        closable.close()
    for server in servers:
        server.stop()
    roster.close()
    supervisor.close()
    return compared({name: sorted(values) for name, values in taken.items()})


def compared(taken):
    """Quantiles, and by how much they are more than the bare call's median."""
    bare_us = taken["bare"][len(taken["bare"]) // 2]
    result = {}
    for name, ordered in taken.items():
        p50_us, p99_us = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
        result[name] = {"p50_us": p50_us, "p99_us": p99_us, "p50_ratio": p50_us / bare_us}
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
    print(f"{'4 KB, us':<12} {'p50':>8} {'p99':>8} {'x bare':>8}")
    for name, one in result.items():
        print(f"{name:<12} {one['p50_us']:>8.1f} {one['p99_us']:>8.1f} {one['p50_ratio']:>8.1f}")


if __name__ == "__main__":
    main()
