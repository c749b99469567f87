"""Files for older runtimes: which opset a profile gets, and that a file in it answers as before."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from converters.opset import OPSET, ir_version_for, opset_for
from converters.plan import Effort, Means, stages
from converters.recipe import Export, Recipe, WeightOnly
from converters.steps.onnx_lower import lower
from edgeml import profile
from edgeml.errors import BackendError, ConfigError, IncompatibleError
from edgeml.manifest import RuntimeFamily
from edgeml.probe import probe
from edgeml.profile import DeviceRuntime

ONNX = RuntimeFamily.ONNX
BOARD = profile.load("raspberry-pi-4")


def board(version, runtimes=(DeviceRuntime.ONNXRUNTIME,)):
    return msgspec.structs.replace(BOARD, onnxruntime=version, runtimes=runtimes)


def facts(model):
    import onnx

    proto = onnx.load_from_string(model)
    return {one.domain: one.version for one in proto.opset_import}[""], proto.ir_version


@pytest.mark.parametrize(
    ("version", "written", "opset"),
    [
        ("", 18, 0), ("", 21, 0), ("", 9, 0),
        ("1.20", 18, 0), ("1.14", 18, 0), ("1.13", 18, 17), ("1.12", 18, 17), ("1.11", 18, 16),
        ("1.14", 21, 18), ("1.32", 21, 0), ("1.11", 16, 0), ("1.11", 13, 0), ("10.0", 18, 0),
    ],
)  # fmt: skip
def test_a_profile_gets_the_newest_opset_that_its_runtime_reads(version, written, opset):
    assert opset_for(board(version), written) == opset


@pytest.mark.parametrize(("version", "written"), [("1.10", 18), ("1.7", 13), ("0.9", 18)])
def test_a_runtime_that_is_too_old_is_named(version, written):
    with pytest.raises(IncompatibleError, match=f"has onnxruntime {version}, older than 1.11"):
        opset_for(board(version), written)


def test_a_version_of_a_runtime_that_the_profile_does_not_have_decides_nothing():
    assert opset_for(board("1.6", (DeviceRuntime.AI_EDGE_LITERT,))) == 0


@pytest.mark.parametrize("version", ["1", "1.16.3", "v1.16", "1.x", " 1.16", "1.16\n", "1.9999"])
def test_what_is_no_version_is_refused(version):
    text = profile.read("raspberry-pi-4") + f"\nonnxruntime = {version!a}\n".replace("'", '"').encode()
    with pytest.raises(ConfigError, match="is no version"):
        profile.decode(text, "mine")


def test_a_file_is_of_the_oldest_version_that_has_its_opset():
    assert [ir_version_for(opset, 10) for opset in (13, 16, 18, 19)] == [7, 8, 8, 10]
    assert ir_version_for(OPSET, 4) == 4


def test_a_plan_for_an_older_runtime_has_its_opset_and_nothing_that_came_later():
    planned = stages(board("1.11"), Means((ONNX,)), ONNX, Effort.EXPLORE)
    recipes = [recipe for stage in planned for recipe in stage.recipes]
    assert {recipe.export.opset for recipe in recipes} == {16}
    assert WeightOnly(4) not in {recipe.compression for recipe in recipes}
    assert recipes[0].name == "onnx-fp32-opset16"
    assert recipes[0].described == "ONNX, brought to opset 16"


def test_two_profiles_share_what_suits_both():
    newer, newest = (stages(board(one), Means((ONNX,)), ONNX, Effort.FIRST) for one in ("1.16", ""))
    assert newer == newest
    assert newest[0].recipes == (Recipe(Export(ONNX)),)


@pytest.mark.parametrize("opset", [17, 16])
def test_a_file_in_an_older_opset_answers_as_before(pooled, opset):
    model, images, _ = pooled
    older = lower(model, opset)
    assert facts(older) == (opset, 8)
    before, after = (probe(one, ONNX, [images[:32]]).answers[0] for one in (model, older))
    assert np.abs(before - after).max() <= 1e-6 * np.abs(before).max()
    assert lower(older, opset) is older
    assert lower(model, opset) == older


def test_an_operator_that_came_later_is_named():
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    sizes = helper.make_tensor("s", TensorProto.FLOAT, [4], [1.0] * 4)
    node = helper.make_node("LayerNormalization", ["x", "s"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [sizes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    with pytest.raises(BackendError, match="cannot be written in ONNX opset 16"):
        lower(model.SerializeToString(), 16)


@pytest.mark.torch
@pytest.mark.processes
def test_a_conversion_for_an_older_runtime(linear, tmp_path):
    import converters
    from converters.assemble import ReleaseName
    from converters.order import ConversionOrder, Limits
    from edgeml.bundle import Bundle

    conversion = converters.convert(
        ConversionOrder(
            source=f"{linear}/net.py:model", data=linear / "data.npz", profiles=(msgspec.structs.replace(board("1.11"), name="older"), BOARD),
            release=ReleaseName("net", "1.0.0"), limits=Limits(max_drop=0.02), out=tmp_path, work=tmp_path / "work",
        )
    )  # fmt: skip
    found = {}
    for written in conversion.bundles:
        with Bundle(Path(written.path)) as bundle:
            found[bundle.manifest.variant] = facts(bundle.model())
    assert found == {"onnx-int8-s8s8": (18, 8), "onnx-int8-s8s8-opset16": (16, 8)}
