"""Layers of a .tflite file told apart: each quantized alone, on a real network, in a real process."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from converters import convert, errand
from converters.assemble import ReleaseName
from converters.explain.sensitivity import Trial, exclusions
from converters.explain.tflite_sensitivity import scan_tflite
from converters.metrics import Evaluation, judge_of
from converters.order import ConversionOrder, Limits
from converters.recipe import Activations, Boundary, Layout, StaticInteger
from converters.steps.litert_quantize import quantize_tflite
from converters.steps.tflite_schema import pack, unpack
from edgeml import profile
from edgeml.bundle import REPORT, Bundle
from edgeml.errors import BackendError
from edgeml.manifest import RuntimeFamily
from edgeml.probe import probe

from .tflite_net import WIDTH, digits_net

pytestmark = pytest.mark.processes

LAYERS = {
    "stem": ("CONV_2D", WIDTH * 9 + WIDTH),
    "depthwise": ("DEPTHWISE_CONV_2D", WIDTH * 9 + WIDTH),
    "pointwise": ("CONV_2D", WIDTH * 2 * WIDTH + 2 * WIDTH),
    "scores": ("FULLY_CONNECTED", 16 * 2 * WIDTH * 10 + 10),
}
INT8 = StaticInteger(Activations.INT8, boundary=Boundary.FLOAT)


@pytest.fixture(scope="module")
def harmed():
    """The digits' net with one layer that integers ruin: one weight of each sum is a thousand times the others.

    What the large weights meet is a channel that is always zero, so that the float model answers as before.
    """
    root = unpack(digits_net().model)
    tensors = {tensor.name.decode(): tensor for tensor in root.subgraphs[0].tensors}
    for name, change in (("depthwise.weight", 0), ("depthwise.bias", 0), ("pointwise.weight", 1000)):
        buffer = root.buffers[tensors[name].buffer]
        values = np.array(buffer.data, np.uint8).view(np.float32).reshape(tensors[name].shape)
        if name == "pointwise.weight":
            values[..., 0] = change
        else:
            values.reshape(-1, WIDTH)[:, 0] = change
        buffer.data = values.reshape(-1).view(np.uint8)
    return pack(root)


def answers(model):
    return probe(model, RuntimeFamily.TFLITE, [digits_net().samples]).answers[0]


def trial_of(model):
    net = digits_net()
    judge = judge_of(None, answers(model), Evaluation(net.samples, net.labels))
    return Trial(net.samples, judge.worth)


def scanned(model, step=INT8):
    return scan_tflite(model, digits_net().calibration, step, trial_of(model), Layout.SOURCE)


def test_every_layer_with_weights_is_told_of():
    found = {one.layer: one for one in scanned(digits_net().model)}
    assert {name: (one.operator, one.parameters) for name, one in found.items()} == LAYERS
    for one in found.values():
        assert 15 < one.sqnr_db < 60
        assert one.agreement > 0.95
        assert one.weight_low < one.weight_high
        assert one.activation_low <= 0 < one.activation_high


def test_more_bits_are_less_noise():
    eight = {one.layer: one.sqnr_db for one in scanned(digits_net().model)}
    step = msgspec.structs.replace(INT8, activations=Activations.INT16)
    sixteen = {one.layer: one.sqnr_db for one in scanned(digits_net().model, step)}
    assert all(sixteen[name] > eight[name] for name in eight)


def test_the_layer_that_integers_ruin_comes_first_and_in_float_it_does_no_harm(harmed):
    net = digits_net()
    rows = scanned(harmed)
    assert rows[0].layer == "pointwise"
    assert rows[0].agreement < 0.6 < min(one.agreement for one in rows[1:])
    assert exclusions(rows)[0] == ("pointwise",)
    right = {
        name: (answers(quantize_tflite(harmed, net.calibration, step)).argmax(-1) == net.labels).mean()
        for name, step in (
            ("int8", INT8), ("mixed", msgspec.structs.replace(INT8, float_layers=("pointwise",))),
        )
    }  # fmt: skip
    assert right["int8"] < 0.6
    assert right["mixed"] > net.accuracy - 0.02


def test_a_search_finds_the_mixture_and_says_which_layer_it_was(harmed, tmp_path):
    net = digits_net()
    (tmp_path / "net.tflite").write_bytes(harmed)
    np.savez(
        tmp_path / "data.npz",
        calibration_x=net.calibration, evaluation_x=net.samples, evaluation_y=net.labels.astype(np.int64),
    )  # fmt: skip
    boards = tuple(profile.load(name) for name in ("raspberry-pi-4", "stm32h7"))
    conversion = convert(
        ConversionOrder(
            source=str(tmp_path / "net.tflite"), data=tmp_path / "data.npz", profiles=boards,
            release=ReleaseName("net", "1.0.0"), limits=Limits(max_drop=0.02), out=tmp_path, work=tmp_path / "work",
        )
    )  # fmt: skip
    variants = {name: one.variant for one in conversion.bundles for name in one.profiles}
    assert variants == {board.name: "tflite-int8-s8s8-floatio-mixed1" for board in boards}
    with Bundle(Path(conversion.bundles[0].path)) as bundle:
        report = json.loads(bundle.read(REPORT))
    assert report["layers"][0]["layer"] == "pointwise"
    assert "pointwise (CONV_2D)" in Path(conversion.page).read_text()


def test_a_file_that_is_cut_short_is_an_error():
    net = digits_net()
    with pytest.raises(BackendError, match="damaged"):
        scan_tflite(net.model[:500], net.calibration, INT8, Trial(net.samples, lambda _: None), Layout.SOURCE)


def test_a_process_that_dies_is_an_error(monkeypatch):
    net = digits_net()
    monkeypatch.setattr(errand, "module_command", lambda *_: ["/bin/sh", "-c", "kill -ABRT $$", "sh"])
    with pytest.raises(BackendError, match="SIGABRT"):
        scan_tflite(net.model, net.calibration, INT8, Trial(net.samples, lambda _: None), Layout.SOURCE)


def test_a_model_without_layers_is_an_error_with_that_word():
    root = unpack(digits_net().model)
    graph = root.subgraphs[0]
    graph.operators = graph.operators[1:2]
    graph.inputs, graph.outputs = [graph.operators[0].inputs[0]], [graph.operators[0].outputs[0]]
    calibration = np.zeros((4, 8, 8, WIDTH), np.float32)
    with pytest.raises(BackendError, match="no layer with weights"):
        scan_tflite(pack(root), calibration, INT8, Trial(calibration, lambda _: None), Layout.SOURCE)
