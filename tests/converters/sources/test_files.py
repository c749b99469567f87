"""ONNX and TFLite files as sources: what they are, what is refused, by which name."""

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.sources.load import load
from converters.sources.onnx_file import check_graph
from converters.sources.source_name import parse_source
from edgeml.errors import ArtifactError, BackendError, ConfigError, EdgemlError, IncompatibleError
from edgeml.guest import Guest
from edgeml.manifest import RuntimeFamily
from edgeml.probe import Place, probe
from edgeml.profile import DeviceRuntime
from edgeml.tensors import BATCH
from edgeml.testing import linear_model

from ...edgeml.test_runtime import doubling
from ..guests import needs, python_of
from ..tflite_file import File, remembering

pytestmark = pytest.mark.torch

X = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
ONNX, TFLITE = RuntimeFamily.ONNX, RuntimeFamily.TFLITE


def loaded(folder, content, name="net.onnx", samples=X):
    (folder / name).write_bytes(content)
    return load(parse_source(str(folder / name)), samples)


def graph(node, shape, opset=18, domain="", inputs=1):
    values = [helper.make_tensor_value_info(f"x{i or ''}", TensorProto.FLOAT, shape) for i in range(inputs)]
    nodes = [
        helper.make_node(
            node, [value.name for value in values][: 1 if node != "Add" else 2], ["y"], domain=domain
        )
    ]
    made = helper.make_graph(
        nodes, "g", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
    )
    imports = [helper.make_opsetid("", opset)]
    if domain:
        imports.append(helper.make_opsetid(domain, 1))
    return helper.make_model(made, opset_imports=imports, ir_version=8)


def test_an_onnx_file_is_its_own_original(tmp_path):
    model = linear_model()
    source = loaded(tmp_path, model)
    assert source.model == model
    assert (source.opset, source.quantized, source.warnings) == (18, "", ())
    assert (source.input.name, source.input.shape) == ("x", (BATCH, 4))
    weights = numpy_helper.to_array(onnx.load_from_string(model).graph.initializer[0])
    np.testing.assert_allclose(source.answers(X, "the data"), X @ weights, rtol=1e-5)
    assert source.can_become(ONNX) == source.can_be_quantized(ONNX) == ""
    assert "there is no sound way from ONNX to TFLite" in source.can_become(TFLITE)
    assert "cannot be trained: give the torch module itself" in source.can_be_trained()
    with pytest.raises(
        ConfigError, match=r"the data has float32 samples of shape \[3\], the model takes float32"
    ):
        source.answers(X[:, :3], "the data")


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_a_model_of_other_floats_is_told_to_be_exported_in_float32(tmp_path, kind):
    proto = graph("Relu", ["batch", 4])
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.elem_type = kind
    with pytest.raises(ConfigError, match="the model takes float") as caught:
        loaded(tmp_path, proto.SerializeToString()).answers(X, "the data")
    assert "export the model in float32" in caught.value.hint


def test_images_in_the_other_layout_are_named(tmp_path):
    source = loaded(tmp_path, graph("Relu", ["batch", 3, 8, 8]).SerializeToString())
    with pytest.raises(ConfigError, match="the model takes float32") as caught:
        source.answers(np.zeros((5, 8, 8, 3), np.float32), "evaluation_x")
    assert "give x.transpose(0, 3, 1, 2)" in caught.value.hint


@pytest.mark.parametrize(
    ("proto", "error", "words"),
    [
        (graph("Relu", ["batch", "height", 4]), ConfigError, r"input x of net\.onnx has free dimensions besides the batch: 1 \(height\)"),
        (graph("Add", ["batch", 4], inputs=2), ConfigError, r"takes 2 inputs: x, x1"),
        (graph("Relu", [7, 4]), ConfigError, "takes 7 samples at once"),
        (graph("Fold", ["batch", 4], domain="my.ops"), ArtifactError, r"operators that no runtime of a device knows: my\.ops:Fold"),
        (graph("NoSuchThing", ["batch", 4]), BackendError, "cannot load the model"),
    ],
)  # fmt: skip
def test_an_onnx_file_that_cannot_be_converted_is_named(tmp_path, proto, error, words):
    with pytest.raises(error, match=words) as caught:
        loaded(tmp_path, proto.SerializeToString())
    assert "\n" not in caught.value.message
    assert caught.value.hint or error is BackendError


def test_an_operator_of_ones_own_is_found_inside_a_branch_too():
    inner = helper.make_graph([helper.make_node("Fold", ["x"], ["z"], domain="my.ops")], "inner", [], [])
    proto = graph("Relu", ["batch", 4])
    proto.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))
    with pytest.raises(ArtifactError, match=r"my\.ops:Fold"):
        check_graph(proto, "net.onnx")


def test_an_old_opset_is_told(tmp_path):
    source = loaded(tmp_path, graph("Relu", ["batch", 4], opset=11).SerializeToString())
    assert source.opset == 11
    assert "is written in opset 11: int8 per channel needs 13" in source.warnings[0]


def test_a_quantized_onnx_file_is_only_bundled():
    proto = graph("Relu", ["batch", 4])
    proto.graph.node.insert(0, helper.make_node("QuantizeLinear", ["activation", "s", "z"], ["q"]))
    assert check_graph(proto, "net.onnx").quantized == "activation"


class TestExternalData:
    """Weights beside the file are taken into it, and nothing from anywhere else."""

    def model(self, location, length="48", offset="0"):
        proto = onnx.load_from_string(linear_model())
        tensor = proto.graph.initializer[0]
        raw = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        return proto.SerializeToString(), raw

    def test_beside_the_file(self, tmp_path):
        content, raw = self.model("weights/net.bin", offset="4")
        (tmp_path / "weights").mkdir()
        (tmp_path / "weights/net.bin").write_bytes(b"head" + raw)
        source = loaded(tmp_path, content)
        alone = onnx.load_from_string(source.model)
        assert alone.graph.initializer[0].raw_data == raw
        assert not alone.graph.initializer[0].external_data
        assert source.warnings == ("the weights of net.onnx were taken from weights/net.bin into one file",)
        np.testing.assert_array_equal(
            source.answers(X, "x"), loaded(tmp_path, linear_model(), "one.onnx").answers(X, "x")
        )

    @pytest.mark.parametrize(
        "place", ["../secret", "weights/../../secret", "/etc/hostname", "", "link", "folder/secret"]
    )
    def test_outside_its_folder(self, tmp_path, place):
        (tmp_path / "secret").write_bytes(bytes(48))
        inner = tmp_path / "inner"
        (inner / "weights").mkdir(parents=True)
        (inner / "link").symlink_to(tmp_path / "secret")
        (inner / "folder").symlink_to(tmp_path)
        with pytest.raises(ArtifactError, match="wants its weights from outside its folder"):
            loaded(inner, self.model(place)[0])

    @pytest.mark.parametrize(
        ("length", "offset", "words"),
        [
            ("48", "8", "wants 48 bytes of weights at 8 from a file of 48"),
            ("9" * 30, "0", "from a file of 48"),
            ("-1", "0", "wants -1 bytes"),
            ("x", "0", "does not say where its weights lie"),
            ("20", "0", "BackendError|cannot be read|no ONNX model|cannot load"),
        ],
    )
    def test_sizes_that_cannot_be(self, tmp_path, length, offset, words):
        content, raw = self.model("net.bin", length, offset)
        (tmp_path / "net.bin").write_bytes(raw)
        with pytest.raises((ArtifactError, BackendError), match=words):
            loaded(tmp_path, content)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(ArtifactError, match="which is not there"):
            loaded(tmp_path, self.model("net.bin")[0])


@pytest.mark.parametrize("name", ["net.onnx", "net.tflite"])
@pytest.mark.parametrize(
    "content", [b"", b"garbage" * 99, linear_model()[:-9]], ids=["empty", "garbage", "cut"]
)
def test_bytes_that_are_no_model(tmp_path, name, content):
    with pytest.raises(EdgemlError) as caught:
        loaded(tmp_path, content, name)
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == (3 if content else 2)


class TestAModelForWhichItsRuntimeWritesOutOfBounds:
    """SVDF with a state of int8: LiteRT and tflite-runtime write int16 into it (`tflite_file.remembering`)."""

    ROWS = np.ones((3, 32), np.int8)

    def harmed(self, **place):
        """Whether the child died of it or, if nothing that it needs lay behind the state, gave other answers than the good one."""
        [wanted] = probe(remembering("int16"), TFLITE, [self.ROWS], **place).answers
        try:
            [given] = probe(remembering("int8"), TFLITE, [self.ROWS], **place).answers
        except BackendError as error:
            return re.search("died of SIG(ABRT|SEGV)", error.message)
        return not np.array_equal(given, wanted)

    def test_it_takes_its_child_process_alone(self):
        assert self.harmed()

    def test_it_is_refused_before_it_is_run(self, tmp_path):
        with pytest.raises(IncompatibleError, match=r"layer t\d+ \(SVDF\) in int8"):
            loaded(tmp_path, remembering("int8"), "net.tflite", self.ROWS)

    def test_with_the_state_that_runtimes_expect_it_is_a_model_like_any(self, tmp_path):
        source = loaded(tmp_path, remembering("int16"), "net.tflite", self.ROWS)
        assert source.answers(self.ROWS, "rows").shape == (3, 4)

    @needs(Guest.TFLITE_RUNTIME)
    def test_old_devices_suffer_from_it_too(self):
        assert self.harmed(place=Place(DeviceRuntime.TFLITE_RUNTIME, python=python_of(Guest.TFLITE_RUNTIME)))

    @needs(Guest.TFLITE_MICRO)
    def test_a_microcontroller_is_right_with_it(self):
        """It gives to the last bit what everybody gives with a state of int16, where nothing is clipped: the file is good."""
        place = Place(DeviceRuntime.TFLITE_MICRO, python=python_of(Guest.TFLITE_MICRO))
        rows = np.random.default_rng(1).integers(-1, 2, (12, 32)).astype(np.int8)

        def layer(state):
            file = File("int8")
            return file.bytes([file.recurrent(file.input([1, 32]), 16, memory=4, state=state)])

        [wanted] = probe(layer("int16"), TFLITE, [rows]).answers
        for state in ("int8", "int16"):
            np.testing.assert_array_equal(probe(layer(state), TFLITE, [rows], place=place).answers[0], wanted)


class TestTFLite:
    """Float files can be quantized, quantized ones are told by the first tensor that is."""

    def test_a_float_file(self, tmp_path):
        source = loaded(tmp_path, doubling("FLOAT32"), "net.tflite")
        np.testing.assert_array_equal(source.answers(X, "the data"), 2 * X)
        assert (source.quantized, source.warnings) == ("", ())
        assert source.can_become(TFLITE) == source.can_be_quantized(TFLITE) == ""
        assert "net.tflite stays TFLite" in source.can_become(ONNX)

    def test_a_quantized_file(self, tmp_path):
        source = loaded(tmp_path, doubling("INT8", 0.5, 0), "net.tflite", X.astype(np.int8))
        assert source.quantized == "x"
        assert "is quantized already (tensor x): it can only be bundled as it is" in source.warnings[0]
        assert source.can_become(TFLITE) == ""
        assert "tensor x is quantized already" in source.can_be_quantized(TFLITE)
