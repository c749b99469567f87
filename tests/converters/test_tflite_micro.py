"""TensorFlow Lite Micro itself: it answers as LiteRT does where it should, refuses in one line, and takes no other's name."""

import os
from pathlib import Path

import numpy as np
import pytest

import converters
from converters.assemble import ReleaseName
from converters.estimate.arena import Kernels, arena
from converters.estimate.tflite_graph import read_tflite
from converters.interpreters import STAND_IN, place_of
from converters.order import ConversionOrder, Limits
from converters.steps.tflite_schema import pack, unpack
from converters.venues import venues_for
from converters.verify import decode_result, encode_result, said_of
from edgeml.errors import BackendError
from edgeml.guest import Guest, version_in
from edgeml.kernels import quantise
from edgeml.manifest import RuntimeFamily
from edgeml.probe import Place, describe, probe
from edgeml.profile import DeviceRuntime
from edgeml.profile import load as load_profile
from edgeml.runtime import KernelSet

from .guests import needs, python_of
from .test_c_source import custom, hybrid, unknown
from .tflite_file import File, convolutional, person_detection
from .tflite_net import digits_net

pytestmark = pytest.mark.processes
MICRO = DeviceRuntime.TFLITE_MICRO
MLPERF = Path(os.environ.get("EDGEML_MLPERF_TINY", "/nonexistent"))
HAS_MICRO = needs(Guest.TFLITE_MICRO)
HAS_MLPERF = pytest.mark.skipif(
    not MLPERF.is_dir(), reason="EDGEML_MLPERF_TINY names no directory with MLPerf Tiny's models"
)
STEPS = 2
"""Between LiteRT's reference kernels and its own, which round in other ways: on convolutions one was seen at most."""


@pytest.fixture
def micro(monkeypatch):
    """The place of the real one."""
    monkeypatch.setenv(Guest.TFLITE_MICRO.variable, str(python_of(Guest.TFLITE_MICRO)))
    place = place_of(MICRO)
    assert place.runtime is MICRO
    return place


def answers(model, samples, place):
    return probe(model, RuntimeFamily.TFLITE, [samples], place=place, runs=2)


def numbers(shape, dtype="int8", count=24):
    drawn = np.random.default_rng(5).integers(-100, 100, (count, *shape))
    return drawn.astype(dtype) if dtype == "int8" else (drawn / 40).astype(dtype)


@HAS_MICRO
@pytest.mark.parametrize(
    ("model", "shape"), [(convolutional, (8, 8, 3)), (person_detection, (96, 96, 1))], ids=["small", "mobile"]
)
def test_an_integer_model_answers_as_on_litert(model, shape, micro):
    samples, content = numbers(shape, count=8), model()
    here, there = answers(content, samples, STAND_IN), answers(content, samples, micro)
    assert there.runtime == f"tflite-micro {version_in(micro.python, Guest.TFLITE_MICRO)}"
    assert (here.inputs, here.outputs) == (there.inputs, there.outputs)
    assert there.answers[0].dtype == np.int8
    assert len(np.unique(there.answers[0])) > 2, "answers that are all the same prove nothing"
    assert np.abs(here.answers[0].astype(int) - there.answers[0]).max() <= STEPS


@HAS_MICRO
def test_a_float_model_answers_as_on_litert(micro):
    model, samples = convolutional("float32"), numbers((8, 8, 3), "float32")
    here, there = answers(model, samples, STAND_IN), answers(model, samples, micro)
    np.testing.assert_allclose(here.answers[0], there.answers[0], rtol=1e-4, atol=1e-5)


@HAS_MICRO
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_the_arena_that_it_uses_is_within_the_estimate(dtype, micro):
    model = convolutional(dtype)
    made = arena(read_tflite(model), frozenset({Kernels.REFERENCE}))
    used = answers(model, numbers((8, 8, 3), dtype), micro).arena_used_bytes
    assert made.low_bytes <= used <= made.high_bytes
    assert answers(model, numbers((8, 8, 3), dtype), STAND_IN).arena_used_bytes == 0


@HAS_MICRO
def test_a_model_too_large_for_the_first_arena_gets_a_larger_one(micro):
    file = File("float32")
    model = file.bytes([file.add("RELU", [file.input([1, 300_000])], [1, 300_000])])
    samples = numbers((300_000,), "float32", 2)
    result = answers(model, samples, micro)
    np.testing.assert_array_equal(result.answers[0], np.maximum(samples, 0))
    assert 2 * 1_200_000 <= result.arena_used_bytes < 2 * 1_200_000 + 4096


def too_large():
    file = File("float32")
    return file.bytes([file.add("RELU", [file.input([1, 40_000_000])], [1, 40_000_000])])


@HAS_MICRO
@pytest.mark.parametrize(
    ("model", "said"),
    [
        (hybrid(), "Input type: FLOAT32 with filter type: INT8 not supported"),
        (unknown(), "Didn't find op for builtin opcode 'GELU'"),
        (custom(), "op code CUSTOM"),
        (too_large(), "Failed to resize buffer. Requested: 320000000"),
        (convolutional()[:900], "cannot load the model: unpack_from requires a buffer"),
        (b"no model at all", "cannot load the model"),
        (b"", "cannot load the model"),
    ],
    ids=["hybrid", "unknown", "custom", "too large", "cut off", "no model", "nothing"],
)
def test_what_it_refuses_is_refused_in_one_line_that_tells_why(model, said, micro):
    with pytest.raises(BackendError) as caught:
        describe(model, RuntimeFamily.TFLITE, place=micro)
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


@HAS_MICRO
def test_a_damaged_model_that_ends_its_process_is_an_error_like_any_other(micro):
    tree = unpack(convolutional())
    first = tree.subgraphs[0].operators[0]
    first.inputs = [1 << 20, *first.inputs[1:]]
    with pytest.raises(BackendError, match="died of SIG"):
        describe(pack(tree), RuntimeFamily.TFLITE, place=micro)


@HAS_MICRO
def test_samples_of_another_form_are_refused(micro):
    with pytest.raises(BackendError, match="takes int8 samples of shape"):
        answers(convolutional(), numbers((8, 8, 1)), micro)


@HAS_MICRO
def test_it_has_one_set_of_kernels(micro):
    with pytest.raises(BackendError, match="no reference kernels to choose"):
        describe(convolutional(), RuntimeFamily.TFLITE, place=Place(MICRO, KernelSet.REFERENCE, micro.python))


@HAS_MICRO
def test_a_report_says_that_it_was_the_real_one_and_no_microcontroller(micro):
    [venue] = venues_for([load_profile("esp32-s3")])
    assert venue.place == micro
    result = answers(convolutional(), numbers((8, 8, 3)), venue.place)
    said = said_of(venue, decode_result(encode_result(result)))
    assert said.startswith(f"TensorFlow Lite Micro {version_in(micro.python, Guest.TFLITE_MICRO)} on this ")
    assert "no microcontroller" in said
    assert said.endswith(f"arena used here: {result.arena_used_bytes} bytes")


@pytest.mark.parametrize("named", ["", "/bin/true", "/nonexistent/python"])
def test_without_it_litert_stands_in_and_says_so(named, monkeypatch):
    monkeypatch.setenv(Guest.TFLITE_MICRO.variable, named)
    [venue] = venues_for([load_profile("esp32-s3")])
    assert venue.place == STAND_IN
    said = said_of(venue, answers(convolutional(), numbers((8, 8, 3)), venue.place))
    assert said.startswith("ai-edge-litert ")
    assert said.endswith("reference kernels (TensorFlow Lite Micro itself was not run)")


@pytest.mark.parametrize(
    ("python", "said"),
    [
        pytest.param(python_of(Guest.TFLITE_MICRO), "TensorFlow Lite Micro 0", id="real", marks=HAS_MICRO),
        pytest.param("", "ai-edge-litert ", id="stand-in"),
    ],
)
def test_a_tflite_file_becomes_what_a_chip_takes_and_keeps_its_layout(python, said, monkeypatch, tmp_path):
    monkeypatch.setenv(Guest.TFLITE_MICRO.variable, str(python))
    net = digits_net()
    (tmp_path / "net.tflite").write_bytes(net.model)
    np.savez(
        tmp_path / "data.npz",
        calibration_x=net.calibration, evaluation_x=net.samples, evaluation_y=net.labels.astype(np.int64),
    )  # fmt: skip
    made = converters.convert(
        ConversionOrder(
            source=f"{tmp_path}/net.tflite", data=tmp_path / "data.npz", profiles=(load_profile("esp32-s3"),),
            release=ReleaseName("net", "1.0.0"), limits=Limits(max_drop=0.03), out=tmp_path, work=tmp_path / "work",
        )
    )  # fmt: skip
    runs = {one.variant: one.ran for one in made.report.candidates}
    assert {"tflite-fp32", "tflite-int8-s8s8"} <= set(runs)
    assert all(one.version.startswith(said) for one in runs.values())
    assert runs["tflite-int8-s8s8"].value > net.accuracy - 0.03
    [bundle] = made.bundles
    assert Path(bundle.path).name == "net-1.0.0-tflite-int8-s8s8.edgeml"
    assert {Path(one).suffix for one in made.files} == {".h", ".cc"}


@HAS_MICRO
@HAS_MLPERF
class TestMlperfTiny:
    """Models and samples that nobody here made."""

    @staticmethod
    def given(name, real, place):
        model = (MLPERF / name).read_bytes()
        [spec] = describe(model, RuntimeFamily.TFLITE, place=place).inputs
        samples = (
            real if spec.scale is None else quantise(real, spec.scale, spec.zero_point, np.dtype("int8"))
        )
        return answers(model, samples, place)

    def test_the_wake_word_is_heard_in_41_of_45_samples(self, micro):
        with np.load(MLPERF / "streaming_wakeword/calibration_samples.npz") as file:
            specs, labels = file["specs"], file["labels"]
        name = "streaming_wakeword/str_ww_ref_model.tflite"
        here, there = (self.given(name, specs, place) for place in (STAND_IN, micro))
        assert (there.answers[0].argmax(1) == labels).sum() == 41
        assert np.abs(here.answers[0].astype(int) - there.answers[0]).max() <= STEPS
        assert there.arena_used_bytes == 16_640

    def test_the_score_of_the_integer_anomaly_model_is_the_published_one(self, micro):
        frames = np.fromfile(MLPERF / "anomaly_detection/normal_id_01_00000000_hist_librosa.bin", np.float32)
        frames = frames.reshape(200, 128)
        windows = np.stack([frames[i : i + 5].reshape(-1) for i in range(196)])
        name = "anomaly_detection/ad01_int8.tflite"
        here, there = (self.given(name, windows, place) for place in (STAND_IN, micro))
        off = np.abs(here.answers[0].astype(int) - there.answers[0])
        assert 0.99 < (off <= STEPS).mean() < 1, "ten layers in a row add up what is rounded in other ways"
        [out] = there.outputs
        seen = (there.answers[0].astype(np.float64) - out.zero_point) * out.scale
        assert float(np.mean((seen - windows) ** 2)) == pytest.approx(10.265, abs=0.01)
        assert there.arena_used_bytes == 3_984
