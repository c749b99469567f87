"""Packaging: an existing model as it is, after it ran in a child; what cannot run or fit is refused."""

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
from converters.existing import PackagingOrder, random_inputs
from edgeml import golden, monitor, profile
from edgeml.bundle import GOLDEN, MONITOR, Bundle
from edgeml.errors import ArtifactError, BackendError, BudgetError, ConfigError, IncompatibleError
from edgeml.manifest import ScoreKind, Task
from edgeml.tensors import BATCH, DType, TensorSpec
from edgeml.testing import linear_model

from .tflite_file import remembering

pytestmark = [pytest.mark.torch, pytest.mark.processes]

PI = profile.load("raspberry-pi-4")
X = np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
Y = (X @ np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)).argmax(1)
MLPERF = Path(os.environ.get("EDGEML_MLPERF_TINY", "/nonexistent"))
needs_mlperf = pytest.mark.skipif(
    not MLPERF.is_dir(), reason="EDGEML_MLPERF_TINY names no directory with MLPerf Tiny's models"
)


@pytest.fixture
def desk(tmp_path):
    (tmp_path / "net.onnx").write_bytes(linear_model())
    np.savez(tmp_path / "data.npz", evaluation_x=X, evaluation_y=Y)
    return tmp_path


def packaged(desk, name="net.onnx", **changes):
    path = name if isinstance(name, Path) else desk / name
    order = PackagingOrder(model=path, profiles=(PI,), release=ReleaseName("net", "1.0.0"), out=desk / "out")
    return converters.package(
        PackagingOrder(**{field: getattr(order, field) for field in order.__slots__} | changes)
    )


class TestAnOnnxModel:
    def test_with_data_it_is_scored_watched_and_recorded(self, desk):
        said = packaged(desk, data=desk / "data.npz", labels=("a", "b", "c"))
        assert (said.value, said.samples, said.has_monitor) == (1.0, 100, True)
        with Bundle(Path(said.bundle.path)) as one:
            one.verify()
            assert one.model() == linear_model()
            assert (one.manifest.variant, one.manifest.task, one.manifest.scores) == (
                "onnx-as-is",
                Task.CLASSIFICATION,
                ScoreKind.LOGITS,
            )
            assert one.manifest.quality.value == 1.0
            assert monitor.decode(one.read(MONITOR)).reference_rows == 100
            recorded = golden.decode(one.read(GOLDEN), one.manifest)
            np.testing.assert_array_equal(recorded.inputs[0], X[:16])

    def test_without_data_golden_vectors_are_random_and_said_to_be(self, desk):
        said = packaged(desk)
        with Bundle(Path(said.bundle.path)) as one:
            assert "random inputs (seed 0): no data were given" in one.manifest.provenance.reason
            assert not one.has(MONITOR)
            assert one.manifest.quality is None
            assert golden.decode(one.read(GOLDEN), one.manifest).samples == 16

    def test_twice_gives_the_same_but_for_what_was_measured(self, desk):
        first = packaged(desk)
        with Bundle(Path(first.bundle.path)) as one:
            members, manifest = {name: one.read(name) for name in ("model.onnx", GOLDEN)}, one.manifest
        with Bundle(Path(packaged(desk).bundle.path)) as two:
            assert {name: two.read(name) for name in members} == members
            assert msgspec.structs.replace(two.manifest, measurement=manifest.measurement) == manifest


class TestWhatIsRefused:
    @pytest.mark.parametrize("name", ["net.h5", "net.pt", "net", "net.pkl", "net.onnx.zip"])
    def test_another_kind_of_file(self, desk, name):
        (desk / name).write_bytes(b"x")
        with pytest.raises(ConfigError, match=r"is neither \.onnx nor \.tflite"):
            packaged(desk, name)

    def test_a_missing_or_empty_file(self, desk):
        with pytest.raises(ConfigError, match="cannot read"):
            packaged(desk, "none.onnx")
        (desk / "empty.onnx").touch()
        with pytest.raises(ConfigError, match="has 0 bytes"):
            packaged(desk, "empty.onnx")

    @pytest.mark.parametrize("nested", [False, True])
    def test_weights_in_another_file(self, desk, nested):
        import onnx
        from onnx import helper

        proto = onnx.load_from_string(linear_model())
        tensor = proto.graph.initializer[0]
        onnx.external_data_helper.set_external_data(tensor, "../../secret", length=48)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        if nested:
            inner = helper.make_graph([], "inner", [], [], [tensor])
            proto.graph.node.append(
                helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
            )
            del proto.graph.initializer[:]
        (desk / "net.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(ArtifactError, match="keeps its weights in another file"):
            packaged(desk)

    @pytest.mark.parametrize("suffix", ["onnx", "tflite"])
    @pytest.mark.parametrize("content", [b"garbage" * 99, linear_model()[:-9]])
    def test_bytes_that_are_no_model(self, desk, suffix, content):
        (desk / f"bad.{suffix}").write_bytes(content)
        with pytest.raises(BackendError) as caught:
            packaged(desk, f"bad.{suffix}")
        assert "\n" not in caught.value.message
        assert not (desk / "out").exists()

    def test_data_that_do_not_fit_the_model(self, desk):
        np.savez(desk / "data.npz", evaluation_x=X[:, :3])
        with pytest.raises(
            BackendError, match=r"takes float32 samples of shape \[4\], was given float32 of shape \[3\]"
        ):
            packaged(desk, data=desk / "data.npz")

    def test_labels_out_of_range(self, desk):
        np.savez(desk / "data.npz", evaluation_x=X, evaluation_y=Y + 1)
        with pytest.raises(ConfigError, match="evaluation_y holds labels from 1 to 3"):
            packaged(desk, data=desk / "data.npz")

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"scores": ScoreKind.PROBABILITIES}, "scores are no probabilities"),
            ({"task": Task.OTHER}, "the data have evaluation_y"),
            ({"labels": ("a",)}, "--labels names 1 classes, the model has 3"),
            ({"profiles": ()}, "at least one"),
            ({"profiles": (PI, PI)}, "each profile once"),
            ({"release": ReleaseName("N", "1")}, "is not a valid name"),
        ],
    )
    def test_an_argument_that_cannot_be_meant(self, desk, changes, words):
        with pytest.raises(ConfigError, match=words):
            packaged(desk, data=desk / "data.npz", **changes)

    def test_a_folder_that_cannot_be_written_before_the_model_is_run(self, desk):
        said = []
        order = PackagingOrder(
            model=desk / "net.onnx", profiles=(PI,), release=ReleaseName("net", "1"), out=Path("/proc/edgeml")
        )
        with pytest.raises(ConfigError, match="--out /proc/edgeml cannot be written"):
            converters.package(order, said.append)
        assert said == []

    def test_a_profile_without_a_runtime_for_it(self, desk):
        with pytest.raises(
            IncompatibleError, match=r"stm32h7 has no runtime for \.onnx models; it has tflite-micro"
        ):
            packaged(desk, profiles=(profile.load("stm32h7"),))

    @pytest.mark.parametrize(("field", "value"), [("model_storage", 100), ("model_memory", 1_000_000)])
    def test_a_board_that_is_too_small(self, desk, field, value):
        small = msgspec.structs.replace(
            PI, **{field: msgspec.structs.replace(getattr(PI, field), value=value)}
        )
        with pytest.raises(BudgetError) as caught:
            packaged(desk, profiles=(small,))
        assert caught.value.observed > caught.value.budget == value


def test_a_model_for_which_runtimes_write_out_of_bounds_is_named_and_leaves_no_bundle(desk):
    (desk / "words.tflite").write_bytes(remembering("int8"))
    with pytest.raises(
        IncompatibleError, match=r"words\.tflite keeps the state of layer t\d+ \(SVDF\) in int8"
    ):
        packaged(desk, "words.tflite")
    assert not (desk / "out").exists()
    (desk / "words.tflite").write_bytes(remembering("int16"))
    assert packaged(desk, "words.tflite").runtime.startswith("ai-edge-litert")


def of_one(*nodes):
    """Return a model of `x` [n, 4] to `y` [n, 4]."""
    from onnx import TensorProto, helper

    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node(kind, [one], [other]) for kind, one, other in nodes], "one", ports[:1], ports[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


class TestWhatCannotBeRecorded:
    def test_a_model_that_answers_otherwise_each_time(self, desk):
        (desk / "random.onnx").write_bytes(of_one(("RandomNormalLike", "x", "y")))
        with pytest.raises(BackendError, match=r"random\.onnx does not answer twice the same here") as caught:
            packaged(desk, "random.onnx")
        assert "what is random" in caught.value.hint
        assert not (desk / "out").exists()

    def test_answers_that_are_no_numbers(self, desk):
        # Of random inputs the logarithm of the logarithm is NaN; of what it is made for, it is none.
        (desk / "log.onnx").write_bytes(of_one(("Log", "x", "l"), ("Log", "l", "y")))
        with pytest.raises(BackendError, match="answers NaN or infinity to random inputs") as caught:
            packaged(desk, "log.onnx")
        assert "--data" in caught.value.hint
        assert not (desk / "out").exists()
        np.savez(desk / "good.npz", evaluation_x=np.abs(X) + 3)
        assert packaged(desk, "log.onnx", data=desk / "good.npz").golden_samples == 16
        np.savez(desk / "bad.npz", evaluation_x=X)
        with pytest.raises(BackendError, match="to the first 16 samples of evaluation_x"):
            packaged(desk, "log.onnx", data=desk / "bad.npz")


class TestRandomInputs:
    @pytest.mark.parametrize("dtype", DType)
    def test_they_are_of_the_type_and_the_same_every_time(self, dtype):
        spec = TensorSpec("x", dtype, (BATCH, 3, 5))
        (first,), (second,) = random_inputs((spec,)), random_inputs((spec,))
        np.testing.assert_array_equal(first, second)
        assert (first.dtype.name, first.shape) == (dtype.value, (16, 3, 5))

    def test_bytes_use_all_of_their_range(self):
        (array,) = random_inputs((TensorSpec("x", DType.INT8, (1, 1000)),))
        assert (array.min(), array.max()) == (-128, 127)

    def test_a_size_that_nobody_knows_is_asked_for(self):
        with pytest.raises(ConfigError, match="free dimensions besides the batch"):
            random_inputs((TensorSpec("x", DType.FLOAT32, (BATCH, BATCH, 4)),))


@needs_mlperf
class TestARealTfliteModel:
    def test_an_image_classifier_is_bundled_with_integers(self, desk):
        path = MLPERF / "image_classification/pretrainedResnet_quant.tflite"
        said = packaged(desk, path, task=Task.CLASSIFICATION, scores=ScoreKind.PROBABILITIES)
        with Bundle(Path(said.bundle.path)) as one:
            one.verify()
            assert one.manifest.variant == "tflite-as-is"
            assert one.manifest.inputs[0].dtype is DType.INT8
            assert golden.decode(one.read(GOLDEN), one.manifest).inputs[0].shape == (16, 32, 32, 3)

    def test_an_anomaly_detector_is_bundled_with_its_one_clip(self, desk):
        frames = np.fromfile(
            MLPERF / "anomaly_detection/normal_id_01_00000000_hist_librosa.bin", np.float32
        ).reshape(200, 128)
        windows = np.stack([frames[i : i + 5].reshape(-1) for i in range(196)])
        np.savez(desk / "clip.npz", evaluation_x=windows)
        said = packaged(desk, MLPERF / "anomaly_detection/ad01_fp32.tflite", data=desk / "clip.npz")
        assert said.has_monitor
        with Bundle(Path(said.bundle.path)) as one:
            assert (one.manifest.task, one.manifest.scores) == (Task.OTHER, ScoreKind.NONE)
            assert monitor.decode(one.read(MONITOR)).reference_rows == 196


def test_the_command_says_what_was_checked(desk):
    words = [
        str(desk / "net.onnx"),
        "--profile",
        "raspberry-pi-4",
        "--name",
        "net",
        "--version",
        "1",
        "--out",
        str(desk / "out"),
    ]
    result = CliRunner().invoke(command, words)
    assert result.exception is None
    assert "checked in a child process on onnxruntime" in result.stdout
    assert "no monitor: give --data" in result.stdout
    said = json.loads(CliRunner().invoke(command, [*words, "--json"]).stdout)
    assert said["bundle"]["variant"] == "onnx-as-is"
