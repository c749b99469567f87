"""Our ONNX recipes next to onnxruntime's own static quantization and NNCF with accuracy control, on two small nets.

For each model: bytes and latency over the float export's, accuracy, agreement with it. Latencies are of one image, one
thread, in rounds that take turns; a round counts its fastest tenth, a ratio is taken within a round, and the median of
the rounds is shown. Selected is, of ours within the floor and within 0.30 of the bytes, the fastest; among those within
3 % of it the smallest. Targets: 0.30 of the bytes, 0.60 of the latency, and neither larger nor slower than the best peer
within the floor. That latency was set for quantization alone on a processor with VNNI; `--whole` has `edgeml convert` choose, with
samples to train on: as a user begins, with everything explored under the same floor, and explored at a floor of 3 points,
where 0.45 of the latency is the target. What it chose is measured beside everything else.

    python benchmarks/converters.py                       # peers of onnxruntime only
    python benchmarks/converters.py --peers peers    # NNCF too, in an environment that is made there
    python benchmarks/converters.py --whole          # whole conversions too: about fifteen minutes
"""

# ruff: noqa: E402 - the directory of this file must not be looked into: its converters.py is no room
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import argparse
import json
import subprocess
import tempfile
import time
import venv
from dataclasses import asdict, dataclass

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.side_by_side import conversions, nets
from converters.calibration import convergence, observe, spread
from converters.explain.sensitivity import Trial, exclusions, narrow_layers, samples_of, scan
from converters.metrics import Evaluation, judge_of
from converters.quiet import quiet
from converters.recipe import Activations, Encoding, Float16, StaticInteger, WeightOnly
from converters.steps.onnx_compact import compact
from converters.steps.onnx_quantize import prepare, quantize, ranges_of
from converters.steps.onnx_quantize import quantize_static as static

NNCF = ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.32.0")
HERE = Path(__file__).parent
FLOOR = 0.005
BYTES, LATENCY = 0.30, 0.60
LOW_FLOOR, LOW_LATENCY = 0.03, 0.45
BY_PLAIN, BY_EXPLORING, BY_LOW = "convert", "convert, explored", "convert, explored at 3 points"
CALLS, WARM_UP = 100, 10
UNDISTURBED = 0.1
"""Which quantile of a round's calls is its figure: on a busy host the median tells of the neighbours."""
NOISE = 0.03
BASE = "fp32"


@dataclass(frozen=True)
class Row:
    """One model's figures; ratios are over the float export."""

    net: str
    model: str
    ours: bool
    length_bytes: int
    bytes_ratio: float
    latency_ratio: float
    latency_us: float
    accuracy: float
    agreement: float
    within_floor: bool


@dataclass(frozen=True)
class Search:
    """What finding the candidates took: static integers with the scan and the mixed recipes it proposes.

    `_processor_s` is what it takes where nothing else runs; wall time is longer the more others want the processor.
    """

    net: str
    scan_s: float
    scan_processor_s: float
    search_s: float
    search_processor_s: float
    layers: int
    worst: str
    calibration_enough: int


class Feeds:
    """Calibration images for onnxruntime's quantizer, one at a time."""

    def __init__(self, name, images):
        self.feeds = iter([{name: images[row : row + 1]} for row in range(len(images))])

    def get_next(self):
        """Give the next, or None."""
        return next(self.feeds, None)


def ours(name, model, data):
    """Make the candidates of our search: static integers, then the scan and what it proposes, then weights alone."""
    began, began_processor = time.perf_counter(), time.process_time()
    prepared = prepare(model)
    observed = observe(prepared, data.train_x[spread(len(data.train_x))])
    ranges = ranges_of(observed)
    u8, s8 = Activations.UINT8, Activations.INT8
    steps = {
        "u8s8": StaticInteger(u8),
        "u8s7": StaticInteger(u8, weight_bits=7),
        "s8s8": StaticInteger(s8),
        "u8s8 qdq": StaticInteger(u8, Encoding.QDQ),
    }
    began_scan, began_scan_processor = time.perf_counter(), time.process_time()
    chosen = samples_of(len(data.test_x))
    images = data.test_x[chosen]
    judge = judge_of(None, answers(model, images), Evaluation(images, data.test_y[chosen]))
    rows = scan(prepared, observed, steps["u8s8"], Trial(images, judge.score))
    taken = (time.perf_counter() - began_scan, time.process_time() - began_scan_processor)
    for left in dict.fromkeys((narrow_layers(prepared), *exclusions(rows))):
        if left:
            steps[f"u8s8, float {'+'.join(left)}"] = StaticInteger(u8, float_layers=left)
            steps[f"u8s7, float {'+'.join(left)}"] = StaticInteger(u8, weight_bits=7, float_layers=left)
    made = {BASE: model, "fp32 compact": compact(model)}
    made |= {f"ours {word}": static(prepared, ranges, step) for word, step in steps.items()}
    search = (time.perf_counter() - began, time.process_time() - began_processor)
    searched = Search(name, *taken, *search, len(rows), rows[0].layer, convergence(observed).enough)
    for word, step in (("weights 8", WeightOnly(8)), ("weights 4", WeightOnly(4)), ("float16", Float16())):
        made[f"ours {word}"] = quantize(prepared, data.train_x[:1], step)
    return made, searched


def plain(model, data):
    """Quantize as onnxruntime's guide says: pre-process, calibrate with the same samples, quantize per channel."""
    images = data.train_x[spread(len(data.train_x))]
    made = {}
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model)
        quant_pre_process(str(folder / "model.onnx"), str(folder / "prepared.onnx"))
        source = onnx.load(folder / "prepared.onnx").graph.input[0].name
        for word, form, activations, reduced in (
            ("qdq s8s8", QuantFormat.QDQ, QuantType.QInt8, False),
            ("qdq u8s8", QuantFormat.QDQ, QuantType.QUInt8, False),
            ("qdq u8s7", QuantFormat.QDQ, QuantType.QUInt8, True),
            ("qoperator u8s8", QuantFormat.QOperator, QuantType.QUInt8, False),
            ("qoperator u8s7", QuantFormat.QOperator, QuantType.QUInt8, True),
        ):
            quantize_static(
                str(folder / "prepared.onnx"), str(folder / "int8.onnx"), Feeds(source, images), quant_format=form,
                activation_type=activations, weight_type=QuantType.QInt8, per_channel=True, reduce_range=reduced,
            )  # fmt: skip
            made[f"onnxruntime {word}"] = (folder / "int8.onnx").read_bytes()
    return made


def controlled(model, data, peers):
    """Quantize by NNCF with accuracy control, in its own environment."""
    python = peers / "nncf" / "bin" / "python"
    if not python.exists():
        venv.create(peers / "nncf", with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *NNCF], check=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model)
        rows = spread(len(data.train_x))
        np.savez(
            folder / "data.npz", calibration_x=data.train_x[rows], test_x=data.test_x, test_y=data.test_y
        )
        (folder / "settings.json").write_text(json.dumps({"max_drop": FLOOR}))
        subprocess.run(
            [python, HERE / "side_by_side" / "nncf_peer.py", folder], check=True, cwd=folder, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return {"NNCF with accuracy control": (folder / "quantized.onnx").read_bytes()}


def session_of(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def answers(model, images):
    session = session_of(model)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: images[row : row + 1]})[0] for row in range(len(images))])


def latencies(models, image, rounds):
    """Time models in turns: microseconds [rounds] of each, of a round's least disturbed calls."""
    calls = {}
    for name, model in models.items():
        session = session_of(model)
        calls[name] = (session, {session.get_inputs()[0].name: image})
    taken = {name: [] for name in models}
    for turn in range(rounds):
        names = list(calls)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            session, feed = calls[name]
            for _ in range(WARM_UP):
                session.run(None, feed)
            spans = []
            for _ in range(CALLS):
                began = time.perf_counter_ns()
                session.run(None, feed)
                spans.append((time.perf_counter_ns() - began) / 1000)
            taken[name].append(float(np.quantile(spans, UNDISTURBED)))
    return {name: np.array(spans) for name, spans in taken.items()}


def whole(name, net, data):
    """Have whole conversions choose; their models by how they were asked, and what each is and took, in words."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        conversions.folder_of(name, net, data, folder)
        runs = {
            BY_PLAIN: conversions.plain(folder, FLOOR),
            BY_EXPLORING: conversions.explored(folder, FLOOR),
            BY_LOW: conversions.explored(folder, LOW_FLOOR),
        }
    return (
        {asked: run.model for asked, run in runs.items()},
        {asked: f"{run.variant}, in {run.taken_s:.1f} s" for asked, run in runs.items()},
    )


def compare(net, made, data, rounds):
    """Measure all models of one net."""
    original = answers(made[BASE], data.test_x)
    judge = judge_of(None, original, Evaluation(data.test_x, data.test_y))
    taken = latencies(made, data.test_x[:1], rounds)
    rows = []
    for name, model in made.items():
        score = judge.score(answers(model, data.test_x))
        rows.append(
            Row(
                net, name, name.startswith(("ours", BASE)), len(model), len(model) / len(made[BASE]),
                float(np.median(taken[name] / taken[BASE])), float(np.median(taken[name])), score.value, score.agreement,
                judge.baseline - score.value <= (LOW_FLOOR if name == BY_LOW else FLOOR),
            )
        )  # fmt: skip
    return rows


def selected(rows):
    """Of ours within the floor and small enough the fastest; among those that are as fast the smallest."""
    good = [row for row in rows if row.model.startswith("ours") and row.within_floor]
    good = [row for row in good if row.bytes_ratio <= BYTES] or good
    fastest = min(row.latency_ratio for row in good)
    return min(
        (row for row in good if row.latency_ratio <= fastest + NOISE), key=lambda row: row.length_bytes
    )


def processor():
    found = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in found.splitlines())
    }
    flags = sorted({"avx2", "avx512_vnni", "avx_vnni"} & set(lines.get("flags", "").split()))
    return f"{lines.get('model name', 'unknown')} ({', '.join(flags) or 'no known extensions'})"


def show(rows, chosen, search, said):
    print(
        f"\n{rows[0].net}: scan of {search.layers} layers {search.scan_s:.1f} s (worst: {search.worst}),",
        end=" ",
    )
    print(
        f"static search {search.search_s:.1f} s, {search.calibration_enough} calibration samples settle the ranges"
    )
    print(
        f"{'model':<44} {'bytes':>7} {'ratio':>6} {'latency':>8} {'ratio':>6} {'accuracy':>9} {'agrees':>7}"
    )
    for row in rows:
        mark = "  <- selected" if row == chosen else "" if row.within_floor else "  misses the floor"
        print(
            f"{row.model:<44} {row.length_bytes:>7} {row.bytes_ratio:>6.3f} {row.latency_us:>6.0f}us {row.latency_ratio:>6.2f}"
            f" {row.accuracy:>9.4f} {row.agreement:>7.4f}{mark}"
        )
    peers = [row for row in rows if row.model.startswith(("onnxruntime", "NNCF")) and row.within_floor]
    for row in rows:
        if row.model in said:
            print(f"{row.model}: {said[row.model]}")
            if row.model in (BY_EXPLORING, BY_LOW):
                target = LATENCY if row.model == BY_EXPLORING else LOW_LATENCY
                met = "hit" if row.latency_ratio <= target else "MISSED"
                small = "hit" if row.bytes_ratio <= BYTES else "MISSED"
                print(
                    f"  latency {row.latency_ratio:.3f}, target {target} {met}; bytes {row.bytes_ratio:.3f}, target {BYTES} {small}"
                )
    for word, got, target, best in (
        ("bytes", chosen.bytes_ratio, BYTES, min((row.bytes_ratio for row in peers), default=1)),
        ("latency", chosen.latency_ratio, LATENCY, min((row.latency_ratio for row in peers), default=1)),
    ):
        print(
            f"{word}: {got:.3f}, target {target} {'hit' if got <= target else 'MISSED'}; best peer within the floor {best:.3f}"
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", type=Path, help="folder for the environments of peers, made on demand")
    parser.add_argument(
        "--whole", action="store_true", help="whole conversions too, with pruning: about fifteen minutes"
    )
    arguments = parser.parse_args()
    data = nets.digits()
    result = {"processor": processor(), "nets": []}
    if not arguments.json:
        print(result["processor"])
    for name in nets.NETS:
        net = nets.trained(name, data)
        made, search = ours(name, nets.exported(net, data), data)
        made |= plain(made[BASE], data)
        if arguments.peers:
            made |= controlled(made[BASE], data, arguments.peers.resolve())
        said = {}
        if arguments.whole:
            models, said = whole(name, net, data)
            made |= models
        rows = compare(name, made, data, arguments.rounds)
        chosen = selected(rows)
        result["nets"].append(
            {
                "search": asdict(search),
                "rows": [asdict(row) for row in rows],
                "selected": chosen.model,
                "whole": said,
            }
        )
        if not arguments.json:
            show(rows, chosen, search, said)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
