"""MLPerf Tiny's models and samples, which nobody here made: packaged as they are, flashed, committed and served over HTTP.

Each on ai-edge-litert and, in an environment of its own with numpy 1 and no other runtime, on tflite-runtime. What is
right about them was published with them.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import converters
from converters.assemble import ReleaseName
from converters.existing import PackagingOrder
from edgeml import probe
from edgeml.client import Client
from edgeml.errors import TransferError
from edgeml.manifest import RuntimeFamily, ScoreKind, Task
from edgeml.port import free_port
from edgeml.profile import load as load_profile
from fleet import enroll, founding
from fleet.config import FleetHome, database_url
from fleet.config import load as load_config
from fleet.enroll import NewDevice
from fleet.store import Store

from ..waiting import wait_for

pytestmark = pytest.mark.processes
ROOT = Path(__file__).parents[2]
MLPERF = Path(os.environ.get("EDGEML_MLPERF_TINY", "/nonexistent"))
OLD_DEVICE = Path(os.environ.get("EDGEML_TFLITE_RUNTIME_PYTHON", ROOT / ".venv-tflite" / "bin" / "python"))
if not MLPERF.is_dir():
    pytest.skip("EDGEML_MLPERF_TINY names no directory with MLPerf Tiny's models", allow_module_level=True)

PYTHONS = [
    pytest.param((Path(sys.executable), "ai-edge-litert"), id="ai-edge-litert"),
    pytest.param(
        (OLD_DEVICE, "tflite-runtime"),
        id="tflite-runtime",
        marks=pytest.mark.skipif(
            not OLD_DEVICE.exists(), reason=f"no {OLD_DEVICE}: make .venv-tflite/.installed"
        ),
    ),
]


def clip():
    """The shipped clip: 200 log-mel frames of 128 bins; an input is five of them in a row."""
    path = MLPERF / "anomaly_detection/normal_id_01_00000000_hist_librosa.bin"
    frames = np.fromfile(path, np.float32).reshape(200, 128)
    return np.stack([frames[i : i + 5].reshape(-1) for i in range(196)])


def words():
    with np.load(MLPERF / "streaming_wakeword/calibration_samples.npz") as file:
        return file["specs"], file["labels"]


def quantized(model, real):
    """Reals as the model's integers."""
    described = probe.describe((MLPERF / model).read_bytes(), RuntimeFamily.TFLITE)
    [spec] = described.inputs
    return np.clip(np.rint(real / spec.scale) + spec.zero_point, -128, 127).astype(np.int8)


MODELS = {"wakeword", "anomaly", "anomaly8", "resnet"}
WORDS = "streaming_wakeword/str_ww_ref_model.tflite"
ANOMALY8 = "anomaly_detection/ad01_int8.tflite"


class Yard:
    """A fleet that signs, and its devices."""

    def __init__(self, directory):
        self.directory = directory
        self.home = FleetHome(directory / "fleet")
        founding.found(self.home)
        self.config = load_config(self.home)
        self.store = Store(database_url(self.home, self.config))

    def package(self, name, model, **more):
        order = PackagingOrder(
            model=MLPERF / model,
            profiles=(load_profile("generic-x86-64"),),
            release=ReleaseName(name, "1.0.0"),
            out=self.directory / "bundles",
            **more,
        )
        path = Path(converters.package(order).bundle.path)
        founding.publish(self.home, self.store, [path], self.home.keys)
        return path

    def flash(self, bundle, storage):
        done = subprocess.run(
            [sys.executable, "-m", "edgeml", "flash", bundle, "--to", storage, "--fleet", self.home.directory],
            capture_output=True, text=True, check=False, timeout=60, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def close(self):
        self.store.close()


@pytest.fixture(scope="module")
def yard(tmp_path_factory):
    made = Yard(tmp_path_factory.mktemp("yard"))
    np.savez(made.directory / "clip.npz", evaluation_x=clip())
    specs, labels = words()
    np.savez(made.directory / "clip8.npz", evaluation_x=quantized(ANOMALY8, clip()))
    spoken = quantized(WORDS, specs)
    np.savez(made.directory / "words.npz", evaluation_x=spoken, evaluation_y=labels.astype(np.int64))
    made.bundles = {
        "wakeword": made.package(
            "wakeword",
            WORDS,
            data=made.directory / "words.npz",
            task=Task.CLASSIFICATION,
            scores=ScoreKind.PROBABILITIES,
        ),
        "anomaly": made.package(
            "anomaly", "anomaly_detection/ad01_fp32.tflite", data=made.directory / "clip.npz"
        ),
        "anomaly8": made.package("anomaly8", ANOMALY8, data=made.directory / "clip8.npz"),
        "resnet": made.package(
            "resnet",
            "image_classification/pretrainedResnet_quant.tflite",
            task=Task.CLASSIFICATION,
            scores=ScoreKind.PROBABILITIES,
        ),
    }
    yield made
    made.close()


class Device:
    """A real agent without a fleet, run by the Python that has the runtime."""

    def __init__(self, yard, directory, python):
        enroll.add(
            yard.home, yard.config, yard.store, NewDevice(f"d{free_port()}", "generic-x86-64", directory), 0
        )
        self.port = free_port()
        text = (directory / "agent.toml").read_text()
        kept = re.findall(r"^(?:device|tenant|profile|storage) = .*$", text, re.MULTILINE)
        self.settings = directory / "alone.toml"
        self.settings.write_text(
            "\n".join(kept) + f'\n[telemetry]\nwindow_s = 1\n[serve]\nlisten = "127.0.0.1:{self.port}"\n'
        )
        self.storage = directory / "state"
        self.log = directory / "agent.log"
        self.python = python
        self.process = None

    def start(self):
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [self.python, "-m", "edgeml", "agent", "run", "-c", self.settings],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def status(self):
        done = subprocess.run(
            [self.python, "-m", "edgeml", "agent", "status", "-c", self.settings, "--json"],
            capture_output=True, text=True, check=True, timeout=60, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        return {one["model"]: one for one in json.loads(done.stdout)["models"]}

    def all_outcomes(self):
        """How each deployment ended; None until all have."""
        ended = {name: one["outcome"] for name, one in self.status().items()}
        return ended if len(ended) == len(MODELS) and all(ended.values()) else None

    def wait_for(self, condition, what):
        def look():
            assert self.process.poll() is None, f"the agent ended:\n{self.log.read_text()}"
            with contextlib.suppress(TransferError):
                return condition()

        return wait_for(look, what)

    def client(self):
        return Client(f"http://127.0.0.1:{self.port}")

    def stop(self):
        self.process.terminate()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture(params=PYTHONS, scope="module")
def device(request, yard, tmp_path_factory):
    """One agent that has all models, flashed side by side."""
    python, runtime = request.param
    made = Device(yard, tmp_path_factory.mktemp("device") / "kit", python)
    for bundle in yard.bundles.values():
        yard.flash(bundle, made.storage)
    made.runtime = runtime
    made.start()
    made.outcomes = made.wait_for(made.all_outcomes, "the end of all deployments")
    yield made
    assert made.stop() == 0
    assert "Traceback" not in made.log.read_text()


def ask(client, model, name, array):
    return client.infer(model, {name: array})


def test_the_wake_word_is_heard_in_41_of_45_samples(device):
    specs, labels = words()
    with device.client() as client:
        [spec] = client.model("wakeword").inputs
        scale, zero = spec.parameters.scale, spec.parameters.zero_point
        inputs = np.clip(np.rint(specs / scale) + zero, -128, 127).astype(np.int8)
        answers = [ask(client, "wakeword", spec.name, inputs[i : i + 1]).predicted for i in range(45)]
    assert sum(answer == label for answer, label in zip(answers, labels.tolist(), strict=True)) == 41


def test_the_anomaly_score_of_the_clip_is_the_published_one(device):
    with device.client() as client:
        [spec] = client.model("anomaly").inputs
        windows = clip()
        errors = []
        for i in range(len(windows)):
            [output] = ask(client, "anomaly", spec.name, windows[i : i + 1]).outputs.values()
            errors.append(np.mean((output - windows[i : i + 1]) ** 2))
    assert round(float(np.mean(errors)), 3) == 9.707


def test_the_score_of_the_integer_model_is_the_published_one(device):
    with device.client() as client:
        metadata = client.model("anomaly8")
        [into], [out] = metadata.inputs, metadata.outputs
        windows = clip()
        real = np.rint(windows / into.parameters.scale) + into.parameters.zero_point
        inputs = np.clip(real, -128, 127).astype(np.int8)
        errors = []
        for i in range(len(windows)):
            [output] = ask(client, "anomaly8", into.name, inputs[i : i + 1]).outputs.values()
            seen = (output.astype(np.float64) - out.parameters.zero_point) * out.parameters.scale
            errors.append(np.mean((seen - windows[i : i + 1]) ** 2))
    assert float(np.mean(errors)) == pytest.approx(10.265, abs=0.01)


def test_each_is_kept_that_answers_as_it_did_when_it_was_bundled(device):
    """The integer ResNet answers otherwise on tflite-runtime than on ai-edge-litert, where it was bundled: its golden
    vectors tell, that device refuses it, and the others serve.
    """
    kept = MODELS - {"resnet"} if device.runtime == "tflite-runtime" else MODELS
    assert {name for name, outcome in device.outcomes.items() if outcome == "committed"} == kept
    assert {device.outcomes[name] for name in MODELS - kept} <= {"rolled_back"}
    with device.client() as client:
        assert set(client.models()) == kept
        assert client.ready()
    assert device.runtime in installed(device.python)


def installed(python):
    code = "from edgeml.runtime import installed_runtimes; print(' '.join(installed_runtimes()))"
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )  # fmt: skip
    return done.stdout.split()
