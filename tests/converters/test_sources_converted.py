"""Whole conversions of every other kind of source: judged by its own answers, with its warnings, and saying where it is from."""

import hashlib
import json
import os
import subprocess
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest

from converters.assemble import ReleaseName
from converters.order import ConversionOrder, Limits
from converters.quiet import quiet
from converters.recipe import Activations, Boundary, StaticInteger
from converters.service import convert
from converters.sources.load import load
from converters.sources.source_name import parse_source
from converters.steps.quantize_child import _quantize
from converters.workshop import fingerprint_of
from edgeml import golden, profile
from edgeml.bundle import GOLDEN, Bundle
from edgeml.errors import ConfigError
from edgeml.guest import Guest
from edgeml.kernels import quantise
from edgeml.manifest import RuntimeFamily, ScoreKind, Task
from edgeml.probe import describe, probe

from .guests import python_of
from .tflite_net import digits_net

pytestmark = [pytest.mark.torch, pytest.mark.processes]

PI = profile.load("raspberry-pi-4")
MLPERF = Path(os.environ.get("EDGEML_MLPERF_TINY", "/nonexistent"))


@pytest.fixture(autouse=True)
def _guests(monkeypatch):
    monkeypatch.setenv(Guest.TFLITE_RUNTIME.variable, str(python_of(Guest.TFLITE_RUNTIME)))


def converted(source, data, out, **changes):
    order = ConversionOrder(
        source=str(source), data=data, profiles=(PI,), release=ReleaseName("net", "1.0.0"), out=out, work=out / "work",
        limits=Limits(max_drop=changes.pop("max_drop", 0.02)), **changes,
    )  # fmt: skip
    return convert(order)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plain(conversion):
    """The run of the source as it is, on its first runtime."""
    [row] = [one for one in conversion.report.candidates if one.variant.endswith(("-fp32", "-as-is"))]
    return row.runs[0]


class Checked:
    """What holds for a bundle of any source."""

    def __init__(self, conversion, source, data):
        [said] = conversion.bundles
        with Bundle(Path(said.path)) as one:
            one.verify()
            self.manifest, self.model = one.manifest, one.model()
            recorded = golden.decode(one.read(GOLDEN), one.manifest)
        self.origin = self.manifest.provenance
        again = probe(self.model, self.manifest.runtime, recorded.inputs)
        assert golden.compare(recorded.outputs, again.answers, self.manifest).passed
        assert (self.origin.source_sha256, self.origin.data_sha256) == (digest(source), digest(data))
        assert str(source.parent) not in json.dumps(
            self.origin.settings + self.origin.recipe + self.origin.source
        )
        assert any(one.startswith("numpy ") for one in self.origin.libraries)


@pytest.fixture(scope="module")
def from_factory(clinic, tmp_path_factory):
    out = tmp_path_factory.mktemp("factory")
    return converted(
        f"{clinic}/estimators.py:cancer", clinic / "cancer.npz", out, max_drop=0.02, parent="net@0.9.0"
    )


@pytest.fixture(scope="module")
def from_pickle(clinic, tmp_path_factory):
    return converted(
        clinic / "cancer.pkl", clinic / "cancer.npz", tmp_path_factory.mktemp("pickle"), max_drop=0.02
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The digits' network in float and twice in integers, which take and give floats, or integers."""
    folder, net = tmp_path_factory.mktemp("tflite"), digits_net()
    (folder / "net.tflite").write_bytes(net.model)
    for boundary in Boundary:
        with quiet():
            model = _quantize(net.model, net.calibration, StaticInteger(Activations.INT8, boundary=boundary))
        (folder / f"{boundary.value}.tflite").write_bytes(model)
    np.savez(
        folder / "data.npz", calibration_x=net.calibration, evaluation_x=net.samples, evaluation_y=net.labels
    )  # fmt: skip
    return folder


class TestAnEstimator:
    def test_the_baseline_is_what_scikit_learn_itself_scores(self, clinic, from_factory, from_pickle):
        data = np.load(clinic / "cancer.npz")
        wanted = joblib.load(clinic / "cancer.pkl").score(
            data["evaluation_x"], np.array(["ill", "well"])[data["evaluation_y"]]
        )
        for conversion in (from_factory, from_pickle):
            assert conversion.report.baseline == pytest.approx(wanted)
            assert plain(conversion).agreement == 1.0

    def test_scores_are_probabilities_and_classes_are_named_by_the_estimator(self, clinic, from_factory):
        one = Checked(from_factory, clinic / "estimators.py", clinic / "cancer.npz")
        assert one.manifest.task is Task.CLASSIFICATION
        assert one.manifest.scores is ScoreKind.PROBABILITIES
        assert one.manifest.labels == ("ill", "well")
        assert one.manifest.runtime is RuntimeFamily.ONNX
        assert one.origin.parent == "net@0.9.0"
        assert one.origin.source == "estimators.py:cancer"
        assert json.loads(one.origin.settings)["compression"]["type"] == "static"

    def test_integers_are_smaller_and_every_recipe_could_be_made(self, from_factory):
        sizes = {one.variant: one.length_bytes for one in from_factory.report.candidates}
        assert sizes["onnx-int8-s8s8"] < 0.7 * sizes["onnx-fp32"]
        assert not any(one.failure for one in from_factory.report.candidates)

    def test_a_pickle_is_told_to_be_untrusted_and_its_own_digest_is_recorded(self, clinic, from_pickle):
        assert any("cancer.pkl" in one and "without network" in one for one in from_pickle.warnings), (
            from_pickle.warnings
        )
        one = Checked(from_pickle, clinic / "cancer.pkl", clinic / "cancer.npz")
        assert one.origin.source == "cancer.pkl"
        assert one.manifest.labels == ("ill", "well")

    def test_both_ways_give_the_same_model(self, from_factory, from_pickle):
        first, second = (conversion.report.candidates for conversion in (from_factory, from_pickle))
        assert [one.sha256 for one in first] == [one.sha256 for one in second]

    def test_it_cannot_become_what_a_microcontroller_runs_nor_be_trained(self, clinic, tmp_path):
        with pytest.raises(ConfigError, match=r"students cannot be trained: .*cannot be trained"):
            converted(
                f"{clinic}/estimators.py:cancer",
                clinic / "cancer.npz",
                tmp_path,
                students=("small.py:model",),
            )


def test_a_torchscript_file_is_judged_by_its_own_answers_and_told_to_be_untrusted(linear, tmp_path):
    import torch

    space: dict = {}
    exec((linear / "net.py").read_text(), space)  # our own text, in conftest
    module = space["model"]().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that TorchScript is old
        torch.jit.trace(module, torch.zeros(2, 8, 8)).save(str(tmp_path / "net.pt"))
    conversion = converted(tmp_path / "net.pt", linear / "data.npz", tmp_path / "out")
    data = np.load(linear / "data.npz")
    with torch.no_grad():
        answers = module(torch.from_numpy(data["evaluation_x"])).argmax(1).numpy()
    assert conversion.report.baseline == pytest.approx((answers == data["evaluation_y"]).mean())
    assert any("net.pt" in one and "without network" in one for one in conversion.warnings)
    one = Checked(conversion, tmp_path / "net.pt", linear / "data.npz")
    assert one.manifest.variant == "onnx-int8-s8s8"


def test_an_onnx_file_in_a_checkout_that_differs_from_its_commit_is_recorded_as_dirty(desk, tmp_path):
    for name in ("net.onnx", "data.npz"):
        (tmp_path / name).write_bytes((desk / name).read_bytes())
    (tmp_path / "notes.txt").write_text("one")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "net.onnx", "notes.txt"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    out, work = tmp_path / "out", desk / "sources"
    clean = Checked(convert(order_of(tmp_path, out, work)), tmp_path / "net.onnx", tmp_path / "data.npz")
    assert (clean.origin.git_commit, clean.origin.git_dirty) == (commit, False)
    (tmp_path / "notes.txt").write_text("two")
    dirty = Checked(convert(order_of(tmp_path, out, work)), tmp_path / "net.onnx", tmp_path / "data.npz")
    assert (dirty.origin.git_commit, dirty.origin.git_dirty) == (commit, True)
    assert dirty.model == clean.model
    assert dirty.manifest.quality.baseline == clean.manifest.quality.baseline


def order_of(folder, out, work):
    return ConversionOrder(
        source=str(folder / "net.onnx"), data=folder / "data.npz", profiles=(PI,), release=ReleaseName("net", "1.0.0"),
        limits=Limits(max_drop=0.02), out=out, work=work,
    )  # fmt: skip


class TestATFLiteFile:
    def test_of_floats_is_quantized_and_judged_by_what_it_answered(self, folder, tmp_path):
        conversion = converted(folder / "net.tflite", folder / "data.npz", tmp_path)
        assert conversion.report.baseline == pytest.approx(digits_net().accuracy)
        assert conversion.warnings == ()
        one = Checked(conversion, folder / "net.tflite", folder / "data.npz")
        assert one.manifest.runtime is RuntimeFamily.TFLITE
        assert one.manifest.variant == "tflite-int8-s8s8-floatio"
        assert len(one.model) < 0.5 * len(digits_net().model)

    @pytest.mark.parametrize("boundary", Boundary)
    def test_of_integers_is_bundled_as_it_is_and_says_so(self, folder, tmp_path, boundary):
        source = folder / f"{boundary.value}.tflite"
        conversion = converted(source, folder / "data.npz", tmp_path)
        assert [one.variant for one in conversion.report.candidates] == ["tflite-as-is"]
        assert "can only be bundled as it is" in conversion.warnings[0]
        one = Checked(conversion, source, folder / "data.npz")
        assert one.model == source.read_bytes()
        assert conversion.report.baseline == plain(conversion).value
        assert conversion.report.baseline > digits_net().accuracy - 0.02
        assert plain(conversion).agreement == 1.0

    def test_of_integers_without_labels_agrees_with_itself(self, folder, tmp_path):
        net = digits_net()
        np.savez(tmp_path / "bare.npz", calibration_x=net.calibration, evaluation_x=net.samples)
        conversion = converted(folder / "integer.tflite", tmp_path / "bare.npz", tmp_path / "out")
        assert (conversion.report.metric, conversion.report.baseline) == ("agreement", 1.0)
        assert plain(conversion).value == 1.0

    def test_of_integers_takes_samples_as_it_stores_them(self, folder, tmp_path):
        """Their answers are those that the same samples as reals get."""
        net = digits_net()
        spec = describe((folder / "integer.tflite").read_bytes(), RuntimeFamily.TFLITE).inputs[0]
        stored = [
            quantise(one, spec.scale, spec.zero_point, np.dtype(np.int8))
            for one in (net.calibration, net.samples)
        ]
        np.savez(
            tmp_path / "int8.npz", calibration_x=stored[0], evaluation_x=stored[1], evaluation_y=net.labels
        )
        stored_run = plain(converted(folder / "integer.tflite", tmp_path / "int8.npz", tmp_path / "out"))
        real_run = plain(converted(folder / "integer.tflite", folder / "data.npz", tmp_path / "real"))
        assert stored_run.value == real_run.value
        assert stored_run.agreement == 1.0

    @pytest.mark.skipif(
        not MLPERF.is_dir(), reason="EDGEML_MLPERF_TINY names no directory with MLPerf Tiny's models"
    )
    def test_somebody_elses_network_is_quantized(self, tmp_path):
        """ResNet8 as MLPerf Tiny has it. Its pictures are not there: noise in their range, judged by agreement."""
        source = MLPERF / "image_classification/pretrainedResnet.tflite"
        pixels = np.random.default_rng(0).uniform(0, 255, (160, 32, 32, 3)).astype(np.float32)
        pixels = (pixels + 3 * np.roll(pixels, 1, 1) + 3 * np.roll(pixels, 1, 2)) / 7
        np.savez(tmp_path / "data.npz", calibration_x=pixels[:50], evaluation_x=pixels[50:])
        conversion = converted(source, tmp_path / "data.npz", tmp_path / "out", max_drop=0.5)
        one = Checked(conversion, source, tmp_path / "data.npz")
        assert plain(conversion).agreement == 1.0
        assert len(one.model) < 0.5 * source.stat().st_size


def test_an_estimator_that_changed_where_no_sample_lies_is_another_source(tmp_path):
    """Its own file and its answers are the same: what was made of the old one must not come back."""
    (tmp_path / "tree.py").write_text(
        "from pathlib import Path\nimport numpy as np\nfrom sklearn.tree import DecisionTreeClassifier\n"
        "def model():\n    at = float(Path(__file__).with_name('at').read_text())\n"
        "    return DecisionTreeClassifier().fit(np.float32([[at - 0.1], [at + 0.1]]), [0, 1])\n"
    )
    samples = np.float32([[0.0], [1.0]])
    found = []
    for at in ("0.4", "0.6"):
        (tmp_path / "at").write_text(at)
        source = load(parse_source(f"{tmp_path}/tree.py:model"), samples)
        found.append(fingerprint_of(source, source.answers(samples, "evaluation_x")))
    assert found[0] != found[1]
