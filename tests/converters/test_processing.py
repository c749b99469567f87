"""Steps added while packaging: files of both kinds, samples as callers give them, and what does not fit."""

import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

import converters
from converters.assemble import ReleaseName
from converters.cli import package as command
from converters.existing import PackagingOrder
from converters.expected_file import read_expected
from converters.processing_file import read_processing
from edgeml import golden, monitor, profile
from edgeml.bundle import GOLDEN, MONITOR, Bundle
from edgeml.errors import ConfigError
from edgeml.expectation import Expected, InputExpectation, Policy
from edgeml.manifest import RuntimeFamily
from edgeml.pipeline import Pipeline
from edgeml.runtime import open_session
from edgeml.testing import linear_model

pytestmark = [pytest.mark.torch, pytest.mark.processes]

PI = profile.load("raspberry-pi-4")
X = np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
Y = (X @ np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)).argmax(1)
MILLIVOLTS = np.rint(X * 1000).astype(np.int16)
STEPS = """
[[before]]
input = "x"
given = { name = "millivolts", dtype = "int16", shape = [-1, 4] }
steps = [{ kind = "normalise", scale = 0.001 }]

[[after]]
kind = "softmax"
tensor = "logits"
"""
MLPERF = Path(os.environ.get("EDGEML_MLPERF_TINY", "/nonexistent"))
needs_mlperf = pytest.mark.skipif(
    not MLPERF.is_dir(), reason="EDGEML_MLPERF_TINY names no directory with MLPerf Tiny's models"
)


@pytest.fixture
def desk(tmp_path):
    (tmp_path / "net.onnx").write_bytes(linear_model())
    (tmp_path / "steps.toml").write_text(STEPS)
    np.savez(tmp_path / "data.npz", evaluation_x=MILLIVOLTS, evaluation_y=Y)
    return tmp_path


def packaged(desk, model=None, steps="steps.toml", **changes):
    order = PackagingOrder(
        model=model or desk / "net.onnx", profiles=(PI,), release=ReleaseName("net", "1.0.0"), out=desk / "out",
        processing=read_processing(desk / steps), **changes,
    )  # fmt: skip
    return Path(converters.package(order).bundle.path)


def test_samples_go_through_the_steps_and_are_recorded_and_watched_as_given(desk):
    with Bundle(packaged(desk, data=desk / "data.npz")) as one:
        about = one.manifest
        assert about.quality.value > 0.95
        recorded = golden.decode(one.read(GOLDEN), about)
        watch = monitor.decode(one.read(MONITOR))
        session = open_session(one.model(), about.runtime)
    np.testing.assert_array_equal(recorded.inputs[0], MILLIVOLTS[:16])
    np.testing.assert_allclose(recorded.outputs[0].sum(axis=1), 1, rtol=1e-5)
    assert {column.tensor for column in watch.columns} == {"millivolts", "logits"}
    answers = Pipeline(about).answer(session.run, list(recorded.inputs))
    assert golden.compare(recorded.outputs, answers, about).passed


def test_without_data_random_samples_are_what_callers_give(desk):
    with Bundle(packaged(desk)) as one:
        recorded = golden.decode(one.read(GOLDEN), one.manifest)
        assert not one.has(MONITOR)
    assert (recorded.inputs[0].dtype, recorded.inputs[0].shape) == (np.int16, (16, 4))


def test_json_is_the_same_as_toml(desk):
    toml = read_processing(desk / "steps.toml")
    (desk / "steps.json").write_bytes(msgspec.json.encode(toml))
    assert read_processing(desk / "steps.json") == toml


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("nonsense", "steps.toml"),
        (STEPS + '[[after]]\nkind = "deskew"\n', "deskew"),
        (STEPS.replace("0.001", "nan"), "not finite"),
        (STEPS.replace('"logits"', '"scores"'), "softmax of 'scores', which there is not"),
        (STEPS.replace("[-1, 4]", "[-1, 5]"), r"the steps make float32 \[-1, 5\] for 'x', the model takes"),
        ("x" * 300_000, "longer than"),
    ],
)
def test_a_file_that_does_not_say_steps_of_this_model_is_refused(desk, content, words):
    (desk / "steps.toml").write_text(content)
    with pytest.raises(ConfigError, match=words) as raised:
        packaged(desk)
    assert raised.value.hint
    assert not (desk / "out").exists()


def test_a_file_of_another_kind_or_none_is_refused(desk):
    with pytest.raises(ConfigError, match=r"neither \.json nor \.toml"):
        read_processing(desk / "net.onnx")
    with pytest.raises(ConfigError, match="cannot read"):
        read_processing(desk / "none.json")


def test_samples_as_the_bare_model_takes_them_are_refused(desk):
    np.savez(desk / "data.npz", evaluation_x=X, evaluation_y=Y)
    with pytest.raises(ConfigError, match="before its steps millivolts is int16") as raised:
        packaged(desk, data=desk / "data.npz")
    assert "the steps are applied" in raised.value.hint


def test_the_command_shows_the_steps(desk):
    words = [
        str(desk / "net.onnx"), "--profile", "raspberry-pi-4", "--name", "net", "--version", "1", "--out", str(desk / "out"),
        "--processing", str(desk / "steps.toml"),
    ]  # fmt: skip
    result = CliRunner().invoke(command, words)
    assert result.exception is None
    assert "before the model: millivolts int16 [-1, 4] -> normalise(scale 0.001) -> x" in result.stdout
    assert "after the model: softmax(tensor logits)" in result.stdout
    said = json.loads(CliRunner().invoke(command, [*words, "--json"]).stdout)
    assert said["processing"]["after"] == [{"kind": "softmax", "tensor": "logits"}]


@needs_mlperf
def test_a_quantised_autoencoder_gives_the_anomaly_score_of_mlperf_tiny(desk):
    """The int8 model with steps, asked with real spectra, scores mean((input - output)^2)."""
    folder = MLPERF / "anomaly_detection"
    frames = np.fromfile(folder / "normal_id_01_00000000_hist_librosa.bin", np.float32).reshape(200, 128)
    windows = np.stack([frames[i : i + 5].reshape(-1) for i in range(196)])
    np.savez(desk / "clip.npz", evaluation_x=windows)
    described = open_session((folder / "ad01_int8.tflite").read_bytes(), RuntimeFamily.TFLITE)
    taken, gives = described.inputs[0].name, described.outputs[0].name
    (desk / "anomaly.json").write_text(
        json.dumps(
            {
                "before": [
                    {"input": taken, "given": {"name": "spectrum", "dtype": "float32", "shape": [1, 640]}, "steps": [{"kind": "quantise"}]}
                ],
                "after": [
                    {"kind": "dequantise", "tensor": taken},
                    {"kind": "dequantise", "tensor": gives},
                    {"kind": "mean_squared_error", "tensor": gives, "original": taken},
                ],
                "results": ["score"],
            }
        )
    )  # fmt: skip
    path = packaged(desk, folder / "ad01_int8.tflite", "anomaly.json", data=desk / "clip.npz")
    with Bundle(path) as one:
        recorded = golden.decode(one.read(GOLDEN), one.manifest)
    scores = recorded.outputs[0]
    assert scores.shape == (16,)
    np.testing.assert_allclose(scores, [by_hand(described, one) for one in recorded.inputs[0]], rtol=1e-4)
    # What eight bits cost this model: up to an eighth of the float model's score.
    whole = open_session((folder / "ad01_fp32.tflite").read_bytes(), RuntimeFamily.TFLITE)
    floats = [float(np.mean((one - whole.run([one[None]])[0][0]) ** 2)) for one in recorded.inputs[0]]
    np.testing.assert_allclose(scores, floats, rtol=0.15)


def by_hand(session, spectrum):
    """Quantise, run, dequantise and compare, in float64."""
    (taken,), (given,) = session.inputs, session.outputs
    steps = np.clip(np.rint(spectrum / np.float32(taken.scale)) + taken.zero_point, -128, 127)
    answer = session.run([steps.astype(np.int8)[None]])[0][0].astype(np.float64)
    return np.mean(
        ((answer - given.zero_point) * given.scale - (steps - taken.zero_point) * taken.scale) ** 2
    )


class TestExpected:
    def test_the_range_of_the_data_is_expected_and_only_counted(self, desk):
        with Bundle(packaged(desk, data=desk / "data.npz")) as one:
            (expectation,) = one.manifest.expected.inputs
        assert expectation.input == "millivolts"
        assert expectation.policy is Policy.SERVE
        assert expectation.low < MILLIVOLTS.min() < MILLIVOLTS.max() < expectation.high

    def test_a_file_replaces_it(self, desk):
        (desk / "expected.toml").write_text(
            '[[inputs]]\ninput = "millivolts"\nhigh = 5000\npolicy = "refuse"\n\n[volume]\nper_hour_min = 60\n'
        )
        stated = read_expected(desk / "expected.toml")
        with Bundle(packaged(desk, data=desk / "data.npz", expected=stated)) as one:
            assert one.manifest.expected == stated
        with Bundle(packaged(desk, expected=stated)) as one:
            assert one.manifest.expected == stated

    def test_without_data_and_file_nothing_is_expected(self, desk):
        with Bundle(packaged(desk)) as one:
            assert one.manifest.expected is None

    def test_a_file_about_another_input_is_refused(self, desk):
        with pytest.raises(ConfigError, match="'x', which is no input") as raised:
            packaged(desk, expected=Expected((InputExpectation("x"),)))
        assert "millivolts" in raised.value.hint

    def test_the_command_shows_it(self, desk):
        (desk / "expected.json").write_text(
            '{"inputs": [{"input": "millivolts", "low": -5000, "policy": "clip"}]}'
        )
        words = [
            str(desk / "net.onnx"), "--profile", "raspberry-pi-4", "--name", "net", "--version", "1", "--out", str(desk / "out"),
            "--processing", str(desk / "steps.toml"), "--expected", str(desk / "expected.json"),
        ]  # fmt: skip
        result = CliRunner().invoke(command, words)
        assert result.exception is None
        assert "expected of millivolts: -5000 to any; otherwise: clip" in result.stdout
