"""Whole conversions of a benchmark's net, as `edgeml convert` does them: a folder with a factory, weights and data, a limit, a choice.

Latencies by which a conversion chooses are its own, of this host; the benchmark measures what was chosen beside everything else.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from converters.assemble import ReleaseName
from converters.order import ConversionOrder, Limits
from converters.plan import Effort
from converters.select import Preference
from converters.service import convert
from edgeml import profile
from edgeml.bundle import Bundle

CALIBRATION = 256
SOURCE = """
from pathlib import Path

import torch

from benchmarks.side_by_side import nets


def model():
    net = nets.NETS[{name!r}][0]()
    net.load_state_dict(torch.load(Path(__file__).with_name("weights.pth")))
    return net.eval()
"""


@dataclass(frozen=True)
class Chosen:
    """What a conversion chose: the recipe's name, the file, how long it took; and by its own figures the float export's latency."""

    variant: str
    model: bytes
    taken_s: float
    float_ms: float


def folder_of(name, net, data, folder):
    """Write what a user would have: net.py, its weights, and data with samples to train on."""
    (folder / "net.py").write_text(SOURCE.format(name=name))
    torch.save(net.state_dict(), folder / "weights.pth")
    chosen = np.random.default_rng(0).permutation(len(data.train_x))[:CALIBRATION]
    np.savez(
        folder / "data.npz", calibration_x=data.train_x[chosen], evaluation_x=data.test_x, evaluation_y=data.test_y,
        train_x=data.train_x, train_y=data.train_y,
    )  # fmt: skip


def chosen(name, net, data, max_drop, **more):
    """Convert for this host under a floor; `more` is of the order: a limit of latency in ms, an effort, a preference."""
    limit_ms = more.pop("max_latency_ms", None)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder_of(name, net, data, folder)
        began = time.perf_counter()
        done = convert(
            ConversionOrder(
                source=f"{folder}/net.py:model", data=folder / "data.npz", profiles=(profile.load(profile.HOST),),
                release=ReleaseName("net", "1.0.0"), limits=Limits(max_drop=max_drop, max_latency_ms=limit_ms), out=folder / "out",
                work=folder / "work", **more,
            )
        )  # fmt: skip
        taken_s = time.perf_counter() - began
        [bundle] = done.bundles
        with Bundle(Path(bundle.path)) as opened:
            return Chosen(bundle.variant, opened.model(), taken_s, _float_ms(done))


def _float_ms(done):
    [row] = [
        one for one in done.report.candidates if one.variant.endswith("-fp32") and "pruned" not in one.variant
    ]
    return row.verdicts[0].latency_ms


def plain(name, net, data, max_drop):
    """As a user begins: no limit but the floor."""
    return chosen(name, net, data, max_drop)


def limited(name, net, data, max_drop, max_latency_ms):
    """Under a limit of latency: int8 first, then pruning, if that is too slow."""
    return chosen(name, net, data, max_drop, max_latency_ms=max_latency_ms)


def explored(name, net, data, max_drop):
    """Everything tried; the quickest that keeps to the floor."""
    return chosen(name, net, data, max_drop, effort=Effort.EXPLORE, preference=Preference.LATENCY)
