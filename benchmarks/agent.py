"""The agent next to a bare onnxruntime session, a bare LiteRT interpreter and, with `--peer mlserver`, MLServer; one run.

In a program: an `Agent` in its two modes, at three sizes of input, each call next to a bare one. Over HTTP: a model of
about a quarter of a millisecond and 4 KB, one client in turns with the peer's, then eight at a time, also in turns. The
clients are the same for all, and share the machine's processors with the servers. Then memory of all processes after
that load, and an agent that nobody asks anything: memory, processor time, and how long the first answer takes.

`--peer mlserver` makes an environment under ~/.cache for the pinned MLServer with the same onnxruntime, once. It has no
binary tensors, so it is asked in JSON. Its model has the same session settings and runs in the server's own process,
which is quicker and smaller than its default of one process more. Targets are printed beside; a shared machine misses some of them at times, so the load is printed, too.
"""

# ruff: noqa: E402 - the first thing it does is to get its own name out of the way of the room it measures
import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import msgspec
import numpy as np

from agent import Agent, Mode
from benchmarks.side_by_side import models
from benchmarks.side_by_side.clients import Connection, crowd
from benchmarks.side_by_side.echo import Echo
from benchmarks.side_by_side.servers import AgentServer, MlServer, first_answer_s
from edgeml.inference import infer_request
from edgeml.manifest import RuntimeFamily

CALLS = 100
WARM_UP = 300
CROWD = 8
STARTS = 3
SETTLE_S = 3.0


class Figures:
    """Rows of a table: what, how much, in which unit, and the most or least that it should be."""

    def __init__(self):
        self.rows = []

    def add(self, name, value, unit, at_most=None, at_least=None):
        """Note a figure and whether it meets its target."""
        target = at_most if at_most is not None else at_least
        met = None
        if target is not None:
            met = value <= target if at_most is not None else value >= target
        self.rows.append({"name": name, "value": value, "unit": unit, "target": target, "met": met})

    def print(self):
        """Print the table."""
        for row in self.rows:
            words = {True: "hit", False: "MISS", None: ""}[row["met"]]
            target = "" if row["target"] is None else f"{row['target']:>9.4g}"
            print(f"{row['name']:<66} {row['value']:>9.4g} {row['unit']:<6} {target:>9} {words}")


def quantiles(values):
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]


def interleaved(ways, rounds):
    """Time each way CALLS times a round, in turns; return the median and the 99th percentile of each, in us."""
    taken = {name: [] for name in ways}
    for call in ways.values():
        for _ in range(WARM_UP):
            call()
    for _ in range(rounds):
        for name, call in ways.items():
            for _ in range(CALLS):
                started_ns = time.perf_counter_ns()
                call()
                taken[name].append((time.perf_counter_ns() - started_ns) / 1000)
    return {name: quantiles(values) for name, values in taken.items()}


def embedded(folder, rounds, figures):
    """What `Agent.infer` adds to a bare call."""
    worker_us = {"1 KB": 60, "150 KB": 150, "1 MB": 250}
    ways = {
        "onnxruntime": (RuntimeFamily.ONNX, models.slicing, worker_us),
        "LiteRT": (RuntimeFamily.TFLITE, models.beginning, worker_us),
        "LiteRT, as much back": (RuntimeFamily.TFLITE, models.doubling, {}),
    }
    for way, (family, make, target_us) in ways.items():
        for size, floats in models.FLOATS.items():
            path = folder / f"{way} {size}.edgeml"
            session = models.bundle(path, "calls", make(floats), family)
            array = np.random.default_rng(0).normal(size=(1, floats)).astype(np.float32)
            with Agent(path) as worker, Agent(path, Mode.IN_PROCESS) as inside, Echo(array.nbytes) as echo:
                taken = interleaved(
                    {
                        "bare": lambda session=session, array=array: session.run([array]),
                        "worker": lambda worker=worker, array=array: worker.infer({"x": array}),
                        "in-process": lambda inside=inside, array=array: inside.infer({"x": array}),
                        "echo": echo.call,
                    },
                    rounds,
                )
            bare_us, echo_us = taken["bare"][0], taken["echo"][0]
            adds_us = {name: taken[name][0] - bare_us for name in ("worker", "in-process")}
            figures.add(f"{way}, {size}: bare call, p50", bare_us, "us")
            figures.add(
                f"{way}, {size}: a worker adds, p50", adds_us["worker"], "us", at_most=target_us.get(size)
            )
            figures.add(f"{way}, {size}: in a worker, p99", taken["worker"][1], "us")
            figures.add(f"{way}, {size}: as many bytes to a process that does nothing, p50", echo_us, "us")
            figures.add("  a worker adds / that", adds_us["worker"] / echo_us, "x")
            figures.add(f"{way}, {size}: in-process adds, p50", adds_us["in-process"], "us", at_most=10)


def over_http(folder, rounds, peer, figures):
    """One client and eight, the agent and its peer in turns."""
    path = folder / "convolutional.edgeml"
    model = models.convolutional()
    session = models.bundle(path, "convolutional", model)
    array = np.random.default_rng(0).normal(size=(1, models.FEATURES)).astype(np.float32)
    binary = infer_request("convolutional", {"x": array})
    one = {"name": "x", "datatype": "FP32", "shape": array.shape, "data": array.ravel().tolist()}
    text, kind = msgspec.json.encode({"inputs": [one]}), {"Content-Type": "application/json"}
    with ExitStack() as running:
        agent = running.enter_context(AgentServer(folder / "agent", path))
        first_answer_s(agent, binary.body, dict(binary.headers))
        asked = {
            "agent, binary": (agent.port, binary.body, dict(binary.headers)),
            "agent, JSON": (agent.port, text, kind),
        }
        other = None
        if peer:
            other = running.enter_context(MlServer(folder / "peer", model))
            first_answer_s(other, text, kind)
            asked["MLServer, JSON"] = (other.port, text, kind)
        alone(asked, lambda: session.run([array]), rounds, figures)
        crowded(asked, rounds, figures)
        memory(agent, other, figures)
    return path, binary


def alone(asked, bare, rounds, figures):
    """One client at a time, in turns."""
    connections = {name: Connection(*given) for name, given in asked.items()}
    taken = interleaved({"bare": bare} | {name: one.call for name, one in connections.items()}, rounds)
    figures.add("4 KB: bare onnxruntime call, p50", taken["bare"][0] / 1000, "ms")
    for name, target_ms in (("agent, binary", 0.7), ("agent, JSON", 1.0), ("MLServer, JSON", None)):
        if name in taken:
            figures.add(f"HTTP, 4 KB, {name}: p50", taken[name][0] / 1000, "ms", at_most=target_ms)
            figures.add(f"HTTP, 4 KB, {name}: p99", taken[name][1] / 1000, "ms")
    for one in connections.values():
        one.close()


def crowded(asked, rounds, figures):
    """Eight clients at a time, in turns."""
    seen = {name: [] for name in asked}
    for _ in range(max(rounds // 5, 1)):
        for name, given in asked.items():
            seen[name].append(crowd(CROWD, *given, 2.0))
    rates = {}
    for name, found in seen.items():
        rates[name] = sorted(rate for rate, _ in found)[len(found) // 2]
        figures.add(f"HTTP, {CROWD} clients, {name}: requests", rates[name], "1/s")
        p50, p99 = quantiles([one for _, all_of in found for one in all_of])
        figures.add(f"HTTP, {CROWD} clients, {name}: p50", p50 / 1000, "ms")
        figures.add(f"HTTP, {CROWD} clients, {name}: p99", p99 / 1000, "ms")
    if "MLServer, JSON" in rates:
        for name in ("agent, binary", "agent, JSON"):
            figures.add(f"  {name} / MLServer, JSON", rates[name] / rates["MLServer, JSON"], "x", at_least=2)


def memory(agent, other, figures):
    """What all processes of a server have, after the load."""
    ours = agent.memory()
    figures.add(f"agent with worker and forkserver ({ours['processes']}): PSS", ours["pss_mb"], "MB")
    figures.add("agent with worker and forkserver: USS", ours["uss_mb"], "MB")
    figures.add("agent with worker and forkserver: RSS, summed", ours["rss_mb"], "MB")
    if other is not None:
        theirs = other.memory()
        figures.add(f"MLServer ({theirs['processes']}): PSS", theirs["pss_mb"], "MB")
        figures.add("MLServer: USS", theirs["uss_mb"], "MB")
        figures.add("MLServer: RSS, summed", theirs["rss_mb"], "MB")
        figures.add("  agent / MLServer, PSS", ours["pss_mb"] / theirs["pss_mb"], "x", at_most=0.7)
        figures.add("  agent / MLServer, USS", ours["uss_mb"] / theirs["uss_mb"], "x", at_most=0.7)


def idle(folder, path, binary, seconds, figures):
    """An agent that nobody asks."""
    starts = []
    for turn in range(STARTS):
        with AgentServer(folder / f"start {turn}", path) as agent:
            starts.append(first_answer_s(agent, binary.body, dict(binary.headers)))
    figures.add("start to first answer over HTTP", sorted(starts)[STARTS // 2], "s", at_most=1.5)
    with (
        AgentServer(folder / "silent", path, endpoint=False) as silent,
        AgentServer(folder / "listening", path) as listening,
    ):
        time.sleep(SETTLE_S)
        before = silent.cpu_s(), listening.cpu_s()
        time.sleep(seconds)
        spent = silent.cpu_s() - before[0], listening.cpu_s() - before[1]
        figures.add("idle supervisor: RSS", silent.memory()["rss_first_mb"], "MB", at_most=30)
        figures.add("idle supervisor with HTTP: RSS", listening.memory()["rss_first_mb"], "MB", at_most=45)
    for name, one in (("idle", spent[0]), ("idle with HTTP", spent[1])):
        figures.add(f"{name}, all processes, {seconds:g} s: processor", one / seconds * 100, "%", at_most=0.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peer", choices=["none", "mlserver"], default="none")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--idle-s", type=float, default=30.0)
    arguments = parser.parse_args()
    figures = Figures()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        embedded(folder, arguments.rounds, figures)
        path, binary = over_http(folder, arguments.rounds, arguments.peer == "mlserver", figures)
        idle(folder, path, binary, arguments.idle_s, figures)
    if arguments.json:
        print(json.dumps({"load_before": load_before, "figures": figures.rows}))
        return
    print(f"{os.cpu_count()} processors, load before {load_before:.2f}")
    figures.print()


if __name__ == "__main__":
    main()
