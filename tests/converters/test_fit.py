"""Whether a model fits, and what would make it fit: the decision, and `edgeml fit`."""

import json
import os
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from converters.estimate.fit import Obstacle, Verdict, facts, fit
from converters.estimate.integer_graph import as_integers, int8_file_bytes, is_integer
from converters.estimate.onnx_graph import read_onnx
from converters.estimate.tflite_graph import read_tflite
from converters.fit_command import fit as command
from edgeml.errors import ArtifactError, ConfigError, EdgemlError, IncompatibleError
from edgeml.profile import load, names

from .tflite_file import File, convolutional

MLPERF = Path(os.environ.get("EDGEML_MLPERF_TINY", "/nonexistent"))
needs_mlperf = pytest.mark.skipif(
    not MLPERF.is_dir(), reason="EDGEML_MLPERF_TINY names no directory with MLPerf Tiny's models"
)
CHIP, PI = load("stm32h7"), load("raspberry-pi-4")
SMALL = convolutional()


def with_budget(profile, **bytes_):
    return msgspec.structs.replace(
        profile,
        **{
            field: msgspec.structs.replace(getattr(profile, field), value=value)
            for field, value in bytes_.items()
        },
    )


def judged(model, profile):
    return fit(read_tflite(model), len(model), profile)


def linear_onnx(width=64):
    weights = numpy_helper.from_array(np.ones((width, width), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])], [weights],
    )  # fmt: skip
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    ).SerializeToString()


@pytest.mark.parametrize("name", names())
def test_a_small_integer_model_fits_everywhere(name):
    made = judged(SMALL, load(name))
    assert made.verdict is Verdict.FITS
    assert made.findings == ()
    assert made.latency_ms > 0
    assert made.memory_low_bytes <= made.memory_high_bytes


def test_the_memory_of_a_chip_is_its_arena_and_that_of_a_board_its_process():
    assert judged(SMALL, CHIP).memory_of == "tensor arena"
    assert judged(SMALL, CHIP).memory_high_bytes < 10_000
    assert judged(SMALL, PI).memory_of == "process"
    assert judged(SMALL, PI).memory_low_bytes > 40_000_000


def test_an_onnx_file_has_no_runtime_on_a_chip():
    model = linear_onnx()
    made = fit(read_onnx(model), len(model), CHIP)
    assert made.verdict is Verdict.NOT
    assert [one.obstacle for one in made.findings] == [Obstacle.RUNTIME]
    assert ".tflite" in made.findings[0].remedy
    assert made.latency_ms is None
    assert fit(read_onnx(model), len(model), PI).verdict is Verdict.FITS


def test_a_float_file_that_is_too_large_is_told_what_int8_would_be():
    file = File("float32")
    model = file.bytes([file.dense(file.input([1, 400]), 400)])
    made = judged(model, with_budget(CHIP, model_storage=300_000))
    assert [one.obstacle for one in made.findings] == [Obstacle.STORAGE]
    assert "static int8 would be about" in made.findings[0].remedy
    assert "pruning" not in made.findings[0].remedy


def test_what_int8_does_not_make_small_enough_is_told_how_much_to_prune():
    file = File("float32")
    model = file.bytes([file.dense(file.input([1, 400]), 400)])
    remedy = judged(model, with_budget(CHIP, model_storage=90_000)).findings[0].remedy
    assert "static int8 would be about 17" in remedy
    assert "pruning to 5" in remedy


def test_an_integer_file_that_is_too_large_is_only_told_to_prune():
    remedy = judged(SMALL, with_budget(CHIP, model_storage=len(SMALL) - 500)).findings[0].remedy
    assert "int8" not in remedy
    assert "pruning to" in remedy


def test_what_no_pruning_makes_small_enough_needs_another_network():
    remedy = judged(SMALL, with_budget(CHIP, model_storage=1000)).findings[0].remedy
    assert "train a smaller network" in remedy


def test_an_arena_that_is_too_large_in_float_is_told_what_int8_would_need():
    model = convolutional("float32")
    made = judged(model, with_budget(CHIP, model_memory=4000))
    assert [one.obstacle for one in made.findings] == [Obstacle.MEMORY]
    assert "static int8 would need" in made.findings[0].remedy


def test_a_budget_within_the_range_is_perhaps():
    graph = read_tflite(SMALL)
    whole = fit(graph, len(SMALL), CHIP)
    between = (whole.memory_low_bytes + whole.memory_high_bytes) // 2
    assert fit(graph, len(SMALL), with_budget(CHIP, model_memory=between)).verdict is Verdict.PERHAPS
    assert (
        fit(graph, len(SMALL), with_budget(CHIP, model_memory=whole.memory_low_bytes - 1)).verdict
        is Verdict.NOT
    )


def test_a_hybrid_model_is_refused_by_a_chip_and_taken_by_a_board():
    file = File("float32")
    data = file.input([1, 4])
    model = file.bytes([file.dense(data, 3, file.tensor([3, 4], dtype="int8", values=[[1] * 4] * 3))])
    made = judged(model, CHIP)
    assert made.findings[0].obstacle is Obstacle.OPERATORS
    assert "hybrid" in made.findings[0].problem
    assert judged(model, PI).verdict is Verdict.FITS


def test_custom_operators_and_weights_elsewhere_are_in_the_way_of_every_board():
    proto = onnx.load_from_string(linear_onnx())
    proto.graph.node[0].domain = "mine"
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    away = proto.graph.initializer[0]
    away.data_location = TensorProto.EXTERNAL
    away.external_data.add(key="location", value="weights.bin")
    made = fit(read_onnx(proto.SerializeToString()), 1000, PI)
    assert [one.obstacle for one in made.findings] == [Obstacle.OPERATORS] * 2
    assert "mine.MatMul" in made.findings[0].problem


def test_a_float_graph_as_integers_takes_a_quarter():
    graph = read_tflite(convolutional("float32"))
    smaller = as_integers(graph)
    assert not is_integer(graph)
    assert is_integer(smaller)
    assert facts(smaller, 0).peak_activation_bytes * 4 == facts(graph, 0).peak_activation_bytes


def test_trees_are_not_told_to_become_int8():
    values = {
        "nodes_values": [0.5] * 3, "nodes_featureids": [0] * 3, "nodes_nodeids": [0, 1, 2], "nodes_treeids": [0] * 3,
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0],
        "target_ids": [0, 0], "target_nodeids": [1, 2], "target_treeids": [0, 0], "target_weights": [1.0, 2.0], "n_targets": 1,
    }  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", **values)], "trees",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    read = read_onnx(model)
    assert not is_integer(read)
    remedy = fit(read, len(model), with_budget(PI, model_storage=len(model) - 1)).findings[0].remedy
    assert "int8" not in remedy


@needs_mlperf
@pytest.mark.parametrize(
    ("floats", "integers"),
    [
        (
            "image_classification/pretrainedResnet.tflite",
            "image_classification/pretrainedResnet_quant.tflite",
        ),
        ("anomaly_detection/ad01_fp32.tflite", "anomaly_detection/ad01_int8.tflite"),
    ],
)
def test_what_int8_would_be_is_near_to_what_it_is(floats, integers):
    before, after = ((MLPERF / name).read_bytes() for name in (floats, integers))
    assert int8_file_bytes(read_tflite(before), len(before)) == pytest.approx(len(after), rel=0.15)


def run(*arguments):
    return CliRunner().invoke(command, list(map(str, arguments)))


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "net.tflite"
    path.write_bytes(SMALL)
    return path


class TestCommand:
    def test_it_shows_a_row_for_every_shipped_profile(self, model):
        shown = run(model).output
        assert "net.tflite: " in shown
        assert all(name in shown for name in names())
        assert "estimated" in shown

    def test_shapes_that_are_free_are_told(self, tmp_path):
        proto = onnx.load_from_string(linear_onnx())
        proto.graph.input[0].type.tensor_type.shape.dim.add().dim_param = "length"
        proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 64
        proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "length"
        (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
        assert "tensors of free or unknown shapes: 2;" in run(tmp_path / "net.onnx").output

    def test_json_holds_the_same(self, model):
        done = run(model, "--json")
        said = json.loads(done.stdout)
        assert done.exit_code == 0
        assert [one["profile"] for one in said["fits"]] == list(names())
        assert said["model"]["parameters"] == 448 + 160 + 1285
        assert {one["verdict"] for one in said["fits"]} == {"fits"}

    def test_a_named_profile_that_it_does_not_fit_is_an_error_with_the_remedy(self, tmp_path):
        path = tmp_path / "net.onnx"
        path.write_bytes(linear_onnx())
        done = run(path, "--profile", "stm32h7", "--profile", "raspberry-pi-5")
        assert isinstance(done.exception, IncompatibleError)
        assert "stm32h7" in done.exception.message
        assert "raspberry-pi-5" not in done.exception.message
        assert ".tflite" in done.exception.hint
        assert "does not fit" in done.output
        assert run(path).exit_code == 0, "nobody asked for one profile"

    def test_a_users_own_profile_without_rates_gets_no_latency(self, model, tmp_path):
        from edgeml.profile import OPTIONAL_UNITS, read

        lines = read("raspberry-pi-4").decode().splitlines()
        own = tmp_path / "own.toml"
        own.write_text("\n".join(line for line in lines if line.partition(" ")[0] not in OPTIONAL_UNITS))
        (said,) = json.loads(run(model, "--profile", own, "--json").stdout)["fits"]
        assert said["latency_ms"] is None
        assert said["verdict"] == "fits"

    def test_a_bundle_is_read_as_its_model(self, model, tmp_path):
        from converters.assemble import ReleaseName
        from converters.existing import PackagingOrder, package

        bundled = package(
            PackagingOrder(model=model, profiles=(PI,), release=ReleaseName("net", "1.0.0"), out=tmp_path),
            lambda _: None,
        )
        said = json.loads(run(bundled.bundle.path, "--json").stdout)
        assert said["model"] == json.loads(run(model, "--json").stdout)["model"]

    def test_a_name_is_shown_as_it_is(self, tmp_path):
        (tmp_path / "a[b] :tada:.tflite").write_bytes(SMALL)
        assert "a[b] :tada:.tflite: " in run(tmp_path / "a[b] :tada:.tflite").output

    @pytest.mark.parametrize(
        ("name", "content", "error"),
        [
            ("net.txt", b"hello", ConfigError),
            ("net.tflite", b"hello", ArtifactError),
            ("net.onnx", b"\xff\xff", ArtifactError),
            ("net.edgeml", b"hello", ArtifactError),
            ("missing.onnx", None, ConfigError),
        ],
    )
    def test_what_cannot_be_read_is_an_error_with_a_hint(self, tmp_path, name, content, error):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        done = run(tmp_path / name)
        assert isinstance(done.exception, error)
        assert done.output == ""

    @pytest.mark.torch
    def test_a_model_that_is_code_is_looked_at_as_it_would_be_exported(self, linear):
        said = json.loads(run(f"{linear}/net.py:model", "--shape", "8,8", "--json").stdout)
        assert said["model"]["parameters"] == 64 * 32 + 32 + 32 * 5 + 5
        assert said["model"]["macs"] == 64 * 32 + 32 * 5
        shown = run(f"{linear}/net.py:model", "--shape", "8x8").output
        assert "net.py:model (its float32 ONNX export): " in shown

    @pytest.mark.parametrize(
        ("model", "shape", "words"),
        [
            ("net.py:model", None, "does not say what it takes"),
            ("net.py:model", "8,0", "is no shape"), ("net.py:model", "", "is no shape"), ("net.py:model", "-1,8", "is no shape"),
            ("net.py:model", "3,3", "shape [3, 3]"),
            ("net.py:other", "8,8", "other"),
            ("none.py:model", "8,8", "no file"),
            ("net.xyz", "8,8", "no model that can be converted"), ("net.tflite", "8,8", "says itself what it takes"),
        ],
    )  # fmt: skip
    @pytest.mark.torch
    def test_what_is_wrong_with_code_or_shape_is_said(self, linear, model, shape, words):
        done = run(f"{linear}/{model}", *([] if shape is None else ["--shape", shape]))
        assert isinstance(done.exception, EdgemlError), done.output
        assert words in done.exception.message
        assert done.exception.hint
