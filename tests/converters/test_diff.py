"""What changed between two bundles: each planted change is told, and nothing else."""

import contextlib
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from converters.diff import compare_weights
from converters.diff_command import diff, layer_text
from converters.weights import Weight, read_weights
from edgeml import bundle, delta, golden
from edgeml.errors import ArtifactError, BackendError, ConfigError
from edgeml.expectation import Expected, InputExpectation
from edgeml.manifest import Quality, RuntimeFamily
from edgeml.runtime import open_session
from edgeml.testing import sample_bundle

MLPERF = Path(os.environ.get("EDGEML_MLPERF_TINY", "/nonexistent"))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "first.edgeml"
    sample_bundle(path)
    return path


def remade(first, path, change=lambda manifest: manifest, step=0.0):
    """The same bundle with another manifest, and weights that moved; its golden answers are its own."""
    import onnx
    from onnx import numpy_helper

    with bundle.Bundle(first) as opened:
        manifest = opened.manifest
        recorded = golden.decode(opened.read(bundle.GOLDEN), manifest)
        model = onnx.load_from_string(opened.model())
        weights = numpy_helper.to_array(model.graph.initializer[0]) + np.float32(step)
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
        content = model.SerializeToString()
        outputs = open_session(content, RuntimeFamily.ONNX).run(recorded.inputs)
        members = {
            "model.onnx": content,
            bundle.MONITOR: opened.read(bundle.MONITOR),
            bundle.GOLDEN: golden.encode(golden.Golden(recorded.inputs, tuple(outputs))),
        }
    bundle.write_bundle(path, change(manifest), members)
    return path


def told(before, after):
    result = CliRunner().invoke(diff, [str(before), str(after), "--json"])
    assert result.exception is None, result.exception
    return msgspec.json.decode(result.stdout)


def test_a_bundle_does_not_differ_from_itself(first):
    said = told(first, first)
    assert said["is_identical"]
    assert said["changes"] == said["layers"] == []
    assert said["answers"] == {"samples": 16, "agreement": 1.0, "difference_fraction": 0.0}


def test_weights_that_moved_are_told_with_how_far_and_what_a_device_downloads(first, tmp_path):
    second = remade(first, tmp_path / "second.edgeml", step=0.01)
    said = told(first, second)
    assert not said["is_identical"]
    assert said["changes"] == []
    [layer] = said["layers"]
    assert (layer["layer"], layer["changed"], layer["tensors"]) == ("Linear 1", 1, 1)
    assert layer["largest"] == pytest.approx(0.01, rel=1e-3)
    assert 0.005 < layer["relative"] < 0.05
    assert said["answers"]["samples"] == 16
    assert 0 < said["answers"]["difference_fraction"] < 0.05
    assert said["delta_bytes"] == len(delta.make(first, second))


def test_of_constants_that_cannot_be_compared_no_number_is_told():
    first = [
        Weight("gone.a", "float32", np.ones(4)),
        Weight("reshaped.b", "float32", np.ones(4)),
        Weight("moved.c", "float32", np.ones(4)),
        Weight("moved.d", "float32", np.ones(4)),
    ]
    second = [
        Weight("reshaped.b", "float32", np.ones(5)),
        Weight("moved.c", "float32", np.full(4, 1.5)),
        Weight("new.e", "float32", np.ones(4)),
    ]
    found = {one.layer: one for one in compare_weights(first, second)}
    for name in ("gone", "reshaped", "new"):
        assert (found[name].relative, found[name].largest) == (None, None), name
        assert "by " not in layer_text(found[name])
    assert (found["moved"].relative, found["moved"].largest) == (0.5, 0.5)
    assert layer_text(found["moved"]) == "moved: 1 changed, 1 removed of 2; by 50.00%, at most 0.5"


def test_text_of_a_bundle_is_shown_as_it_is(first, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    foreign = "[red]a[/x] :tada: \\[b]"
    second = remade(first, tmp_path / "second.edgeml", replace(labels=(foreign, "b", "c")))
    result = CliRunner().invoke(diff, [str(first), str(second)])
    assert result.exception is None
    assert "[red]a[/x] :tada: " in result.stdout


def test_another_model_with_other_samples_has_no_answers_in_common(first, tmp_path):
    sample_bundle(tmp_path / "other.edgeml", version="2.0.0", seed=1)
    said = told(first, tmp_path / "other.edgeml")
    assert said["answers"] is None
    assert {one["field"] for one in said["changes"]} == {
        "version",
        "monitor.columns",
        "monitor.confidence_low",
        "provenance.source_sha256",
    }


def replace(**fields):
    return lambda manifest: msgspec.structs.replace(manifest, **fields)


def of_provenance(**fields):
    return lambda manifest: msgspec.structs.replace(
        manifest, provenance=msgspec.structs.replace(manifest.provenance, **fields)
    )


def of_measurement(**fields):
    return lambda manifest: msgspec.structs.replace(
        manifest, measurement=msgspec.structs.replace(manifest.measurement, **fields)
    )


@pytest.mark.parametrize(
    ("change", "field", "after"),
    [
        (replace(version="1.0.1"), "version", "1.0.1"),
        (replace(labels=("a", "b", "z")), "labels", '["a","b","z"]'),
        (replace(expected=Expected((InputExpectation("x", 0.0, 1.0),))), "expected", None),
        (replace(quality=Quality("accuracy", 0.9, 0.91, 100, 0.99)), "quality", None),
        (replace(profiles=("raspberry-pi-4",)), "profiles", '["raspberry-pi-4"]'),
        (of_provenance(recipe="int8"), "provenance.recipe", "int8"),
        (of_provenance(data_sha256="0" * 64), "provenance.data_sha256", "0" * 64),
        (of_provenance(git_commit="abc"), "provenance.git_commit", "abc"),
        (of_provenance(libraries=("onnx 2",)), "provenance.libraries", '["onnx 2"]'),
        (of_measurement(latency_p50_ms=2.5), "measurement.latency_p50_ms", "2.5"),
    ],
)
def test_each_field_of_the_manifest_is_compared(first, tmp_path, change, field, after):
    [found] = told(first, remade(first, tmp_path / "second.edgeml", change))["changes"]
    assert found["field"] == field
    assert after is None or found["after"] == after


def test_costs_of_two_hosts_are_not_compared(first, tmp_path):
    change = of_measurement(host="another", latency_p50_ms=99.0, peak_memory_bytes=7)
    changes = told(first, remade(first, tmp_path / "second.edgeml", change))["changes"]
    assert [one["field"] for one in changes] == ["measurement.host"]


def test_what_callers_see_comes_before_where_it_came_from(first, tmp_path):
    def change(manifest):
        return replace(labels=("x", "y", "z"), version="9")(of_provenance(recipe="other")(manifest))

    changes = told(first, remade(first, tmp_path / "second.edgeml", change))["changes"]
    assert [one["topic"] for one in changes] == ["identity", "interface", "provenance"]


def test_people_read_a_short_list(first, tmp_path):
    second = remade(first, tmp_path / "second.edgeml", replace(labels=("[red]a", "b\x1b", "c")), step=0.01)
    result = CliRunner().invoke(diff, [str(first), str(second)])
    assert result.exit_code == 0
    assert "1 of 1 tensors changed" in result.stdout
    assert "[red]a" in result.stdout
    assert "\x1b" not in result.stdout
    assert len(result.stdout.splitlines()) < 12


def trained_network():
    """A convolution and a matrix with biases, as an exporter writes them."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    shapes = {"conv.weight": (8, 1, 3, 3), "conv.bias": (8,), "dense.weight": (5, 8), "dense.bias": (5,)}
    weights = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights["conv.weight"] *= np.logspace(-2, 0, 8, dtype=np.float32)[:, None, None, None]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"]),
            helper.make_node("GlobalAveragePool", ["c"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "dense.weight", "dense.bias"], ["y"], transB=1),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString(), weights


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_an_int8_variant_has_the_names_and_nearly_the_values_of_its_fp32_one(tmp_path, form):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rows = iter([{"x": np.random.default_rng(0).random((64, 1, 8, 8)).astype(np.float32)}])

        def get_next(self):
            return next(self.rows, None)

    model, weights = trained_network()
    (tmp_path / "fp32.onnx").write_bytes(model)
    quantize_static(
        tmp_path / "fp32.onnx",
        tmp_path / "int8.onnx",
        Reader(),
        quant_format=QuantFormat[form],
        per_channel=True,
    )
    reals = {one.name: one for one in read_weights(model, RuntimeFamily.ONNX)}
    nears = {one.name: one for one in read_weights((tmp_path / "int8.onnx").read_bytes(), RuntimeFamily.ONNX)}
    assert set(reals) == set(weights) <= set(nears)
    for name in ("conv.weight", "dense.weight"):
        assert nears[name].stored == "int8"
        real, near = reals[name].values, nears[name].values
        steps = np.abs(real.reshape(len(real), -1)).max(axis=1) / 127
        assert (np.abs(real - near).reshape(len(real), -1).max(axis=1) <= steps * 0.5001).all()
    for name in ("conv.bias", "dense.bias"):
        assert nears[name].stored == "int32"
        np.testing.assert_allclose(nears[name].values, weights[name], atol=1e-3)


def test_weights_that_share_a_scale_in_blocks_are_turned_back():
    from onnx import TensorProto, helper, numpy_helper

    stored = np.arange(24, dtype=np.int8).reshape(4, 6)
    scales = np.array([[1.0, 10.0]] * 4, np.float32)
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["w_quantized", "w_scale"], ["y"], axis=1, block_size=3)],
        "blocks",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 6])],
        [numpy_helper.from_array(stored, "w_quantized"), numpy_helper.from_array(scales, "w_scale")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    [weight] = read_weights(model.SerializeToString(), RuntimeFamily.ONNX)
    np.testing.assert_array_equal(weight.values, stored * np.repeat(scales, 3, axis=1))


@pytest.mark.parametrize("family", list(RuntimeFamily))
@pytest.mark.parametrize("model", [b"", b"\x00" * 64, b"\xff" * 64, bytes(range(256))])
def test_a_damaged_model_is_refused(family, model):
    with contextlib.suppress(BackendError):
        assert read_weights(model, family) == ()


def test_a_file_that_is_no_bundle_is_refused(first, tmp_path):
    (tmp_path / "text").write_text("no bundle")
    for path, error in ((tmp_path / "text", ArtifactError), (tmp_path / "none", ConfigError)):
        assert isinstance(CliRunner().invoke(diff, [str(first), str(path)]).exception, error)


@pytest.mark.skipif(
    not MLPERF.is_dir(), reason="EDGEML_MLPERF_TINY names no directory with MLPerf Tiny's models"
)
class TestResnetOfMlperfTiny:
    folder = MLPERF / "image_classification"

    def test_int8_weights_are_within_two_percent_of_the_fp32_ones(self):
        reals = {
            one.name: one
            for one in read_weights(
                (self.folder / "pretrainedResnet.tflite").read_bytes(), RuntimeFamily.TFLITE
            )
        }
        nears = read_weights(
            (self.folder / "pretrainedResnet_quant.tflite").read_bytes(), RuntimeFamily.TFLITE
        )
        kernels = [one for one in nears if one.stored == "int8" and one.name in reals]
        assert len(kernels) == 10
        for one in kernels:
            real = reals[one.name].values
            assert real.shape == one.values.shape
            assert np.sqrt(np.square(real - one.values).sum() / np.square(real).sum()) < 0.02

    def test_flipped_bytes_are_refused_or_read_and_never_crash(self):
        model = bytearray((self.folder / "pretrainedResnet_quant.tflite").read_bytes())
        generator = np.random.default_rng(0)
        for _ in range(40):
            damaged = bytearray(model)
            for at in generator.integers(0, 4000, 8):
                damaged[at] ^= int(generator.integers(1, 256))
            with contextlib.suppress(BackendError):
                read_weights(bytes(damaged), RuntimeFamily.TFLITE)
