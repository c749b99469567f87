"""A conversion that was ended goes on from what it had made: the same model, fewer steps, nothing half done left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from converters.assemble import ReleaseName
from converters.order import ConversionOrder, Limits
from converters.service import convert
from edgeml import profile
from edgeml.bundle import GOLDEN, MONITOR, Bundle

pytestmark = pytest.mark.processes

INTERRUPTED = 130
TIMEOUT_S = 120
BOARDS = ("raspberry-pi-4", "generic-x86-64")
SOME = 4
"""Results after which a conversion is ended; it makes seven."""
PROFILES = [word for name in BOARDS for word in ("--profile", name)]


def start(desk, folder):
    """The four digits for two boards, in a process of its own with a temporary directory of its own."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [
            sys.executable, "-m", "edgeml", "convert", f"{desk}/net.onnx", "--data", str(desk / "data.npz"), *PROFILES, "--name", "net", "--version", "1.0.0", "--max-drop", "2%", "--out", str(folder / "out"),
            "--work", str(folder / "work"),
        ],
        env=os.environ | {"TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kept(folder):
    """What is kept of a conversion, by name; not what is being written."""
    found = folder / "work"
    return {} if not found.exists() else {one.name: one for one in found.iterdir() if "." not in one.name}


def ended(process, folder, results, how):
    """End a conversion once it has kept so many results."""
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while len(kept(folder)) < results and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(how)
        _, said = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    return said


def finished(desk, folder):
    """Convert to the end here; the steps that were made anew are those that were not kept before."""
    before = {name: path.stat().st_ino for name, path in kept(folder).items()}
    conversion = convert(
        ConversionOrder(
            source=f"{desk}/net.onnx", data=desk / "data.npz", profiles=tuple(map(profile.load, BOARDS)),
            release=ReleaseName("net", "1.0.0"), limits=Limits(max_drop=0.02), out=folder / "out",
            work=folder / "work",
        )
    )  # fmt: skip
    put = [name for name, path in kept(folder).items() if before.get(name) != path.stat().st_ino]
    return conversion, put


def members(conversion):
    found = {}
    for said in conversion.bundles:
        with Bundle(Path(said.path)) as one:
            one.verify()
            settings = one.manifest.provenance.settings
            found[said.variant] = (one.model(), one.read(GOLDEN), one.read(MONITOR), settings)
    return found


@pytest.fixture(scope="module")
def whole(desk, tmp_path_factory):
    """An uninterrupted conversion, and what it made."""
    folder = tmp_path_factory.mktemp("whole")
    conversion, made = finished(desk, folder)
    return folder, conversion, made


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, INTERRUPTED)])
def test_what_was_ended_goes_on_to_the_same_model_with_fewer_steps(desk, tmp_path, whole, how, code):
    process = start(desk, tmp_path)
    said = ended(process, tmp_path, SOME, how)
    assert process.returncode == code
    assert "Traceback" not in said
    if how is signal.SIGINT:
        assert said.strip().endswith("interrupted")
        assert [one.name for one in (tmp_path / "tmp").iterdir() if one.name.startswith("edgeml")] == []
        assert [one.name for one in (tmp_path / "work").iterdir() if "." in one.name] == []
    assert not (tmp_path / "out").exists(), "no half-written bundle"
    before = set(kept(tmp_path))
    assert len(before) >= SOME
    conversion, made = finished(desk, tmp_path)
    assert members(conversion) == members(whole[1])
    assert not set(made) & before, "nothing that was kept is made again"
    assert len(made) <= len(whole[2]) - SOME
    assert set(kept(tmp_path)) == set(kept(whole[0])), "the same steps in all"


def test_a_second_time_makes_nothing_and_says_the_same(desk, whole):
    folder, first, _ = whole
    again, made = finished(desk, folder)
    assert made == []
    assert again.report == first.report
    assert members(again) == members(first)


def test_what_is_damaged_is_made_anew_and_nothing_else(desk, tmp_path, whole):
    (tmp_path / "work").mkdir()
    for name, path in kept(whole[0]).items():
        (tmp_path / "work" / name).write_bytes(path.read_bytes())
    damaged = sorted(kept(tmp_path))[::3]
    for name in damaged:
        path = tmp_path / "work" / name
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    conversion, made = finished(desk, tmp_path)
    assert members(conversion) == members(whole[1])
    assert set(made) <= set(damaged)


def test_another_drop_starts_from_the_same_results(desk, tmp_path, whole):
    """What a result depends on is in its name; what it is judged by is not."""
    (tmp_path / "work").mkdir()
    for name, path in kept(whole[0]).items():
        (tmp_path / "work" / name).write_bytes(path.read_bytes())
    before = set(kept(tmp_path))
    convert(
        ConversionOrder(
            source=f"{desk}/net.onnx", data=desk / "data.npz", profiles=(profile.load("raspberry-pi-5"),),
            release=ReleaseName("other", "2.0.0"), limits=Limits(max_drop=0.05), out=tmp_path / "out", work=tmp_path / "work",
        )
    )  # fmt: skip
    assert set(kept(tmp_path)) == before


FACTORY = """
from pathlib import Path

import numpy as np
import torch


def model():
    layer = torch.nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.load(Path(__file__).with_name("weights.npy"))))
        layer.bias.zero_()
    return layer
"""


def test_a_model_of_the_same_file_with_other_weights_is_another_one(tmp_path):
    """Weights lie beside the factory's file, whose digest says nothing of them: nothing kept may be taken for theirs."""
    import numpy as np

    generator = np.random.default_rng(0)
    samples = generator.normal(size=(400, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", calibration_x=samples[:100], evaluation_x=samples[100:])
    (tmp_path / "net.py").write_text(FACTORY)
    made = []
    for turn in range(2):
        np.save(tmp_path / "weights.npy", generator.normal(size=(3, 4)).astype(np.float32))
        order = ConversionOrder(
            source=f"{tmp_path}/net.py:model", data=tmp_path / "data.npz", profiles=(profile.load("raspberry-pi-4"),),
            release=ReleaseName("net", f"1.0.{turn}"), limits=Limits(max_drop=0.1), out=tmp_path / "out", work=tmp_path / "work",
        )  # fmt: skip
        conversion = convert(order)
        plain = next(one for one in conversion.report.candidates if one.variant == "onnx-fp32")
        assert plain.runs[0].agreement == 1.0
        made.append(plain.sha256)
    assert made[0] != made[1]
