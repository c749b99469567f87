"""Whole conversions of a benchmark's net, as `edgeml convert` does them: a folder with a factory, weights and data, a floor, a choice.

Latencies by which a conversion chooses are its own, of this host; the benchmark measures what was chosen beside everything else.
"""

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
    """What a conversion chose: the recipe's name, the file, how long it took."""

    variant: str
    model: bytes
    taken_s: float


def folder_of(name, net, data, folder):
    """Write what a user would have: net.py, its weights, and data with samples to train on."""
    (folder / "net.py").write_text(SOURCE.format(name=name))
    torch.save(net.state_dict(), folder / "weights.pth")
    chosen = np.random.default_rng(0).permutation(len(data.train_x))[:CALIBRATION]
    np.savez(
        folder / "data.npz", calibration_x=data.train_x[chosen], evaluation_x=data.test_x, evaluation_y=data.test_y,
        train_x=data.train_x, train_y=data.train_y,
    )  # fmt: skip


def chosen(folder, max_drop, **more):
    """Convert what lies in a folder for this host, under a floor; `more` is of the order: an effort, a preference.

    What an earlier conversion of the folder has made is not made again; latencies are measured anew.
    """
    out = folder / f"out-{len(list(folder.glob('out-*')))}"
    began = time.perf_counter()
    done = convert(
        ConversionOrder(
            source=f"{folder}/net.py:model", data=folder / "data.npz", profiles=(profile.load(profile.HOST),),
            release=ReleaseName("net", "1.0.0"), limits=Limits(max_drop=max_drop), out=out, work=folder / "work", **more,
        )
    )  # fmt: skip
    taken_s = time.perf_counter() - began
    [bundle] = done.bundles
    with Bundle(Path(bundle.path)) as opened:
        return Chosen(bundle.variant, opened.model(), taken_s)


def plain(folder, max_drop):
    """As a user begins: no limit but the floor."""
    return chosen(folder, max_drop)


def explored(folder, max_drop):
    """Everything tried; the quickest that keeps to the floor."""
    return chosen(folder, max_drop, effort=Effort.EXPLORE, preference=Preference.LATENCY)
