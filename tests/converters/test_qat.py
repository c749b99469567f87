"""Quantization-aware training wins back what quantizing alone loses, on the runtime, and gives a float network back."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from converters.quiet import quiet
from converters.recipe import Activations, Boundary, Layout, QuantizationAwareTraining, StaticInteger
from converters.sources.torch_model import TorchModel
from converters.steps.litert_export import export_tflite
from converters.steps.litert_quantize import quantize_tflite
from converters.steps.onnx_export import export_onnx
from converters.steps.qat import train_quantized
from converters.steps.training_data import prepare
from edgeml.errors import BackendError, ConfigError
from edgeml.guest import Guest
from edgeml.ids import digest_of
from edgeml.manifest import RuntimeFamily
from edgeml.probe import probe

from .guests import needs, python_of

pytestmark = pytest.mark.torch

HIDDEN = 48


def model_of(module):
    return TorchModel(module.eval(), batch_is_free=True, sha256=digest_of(b""))


@pytest.fixture(scope="module")
def images():
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images / 16).astype(np.float32), data.target.astype(np.int64)


@pytest.fixture(scope="module")
def fitted(images):
    """Weights and biases of a small network."""
    from sklearn.neural_network import MLPClassifier

    x, y = images
    with quiet():
        net = MLPClassifier((HIDDEN,), max_iter=40, random_state=0).fit(x[:1200].reshape(1200, -1), y[:1200])
    return net.coefs_, net.intercepts_


def scaled(fitted, scale):
    """The network with its hidden channels scaled [HIDDEN], and scaled back by the next layer: it answers the same."""
    import torch
    from torch import nn

    (first_weight, last_weight), (first_bias, last_bias) = fitted
    first, last = nn.Linear(64, HIDDEN), nn.Linear(HIDDEN, 10)
    with torch.no_grad():
        first.weight.copy_(torch.from_numpy(first_weight.T * scale[:, None]))
        first.bias.copy_(torch.from_numpy(first_bias * scale))
        last.weight.copy_(torch.from_numpy(last_weight.T / scale))
        last.bias.copy_(torch.from_numpy(last_bias))
    return model_of(nn.Sequential(nn.Flatten(), first, nn.ReLU(), last))


@pytest.fixture(scope="module")
def wild(fitted):
    """Its hidden channels differ in scale by four orders of magnitude, which one range for all of them cannot hold."""
    return scaled(fitted, 10 ** np.random.default_rng(0).uniform(-4, 0, HIDDEN))


@pytest.fixture(scope="module")
def tame(fitted):
    return scaled(fitted, np.ones(HIDDEN))


def accuracy_of_file(file, images):
    import onnxruntime

    x, y = images
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return float((session.run(None, {"input": x[1200:]})[0].argmax(axis=1) == y[1200:]).mean())


def int8_accuracy(model, images):
    """Accuracy on onnxruntime after static quantization, uint8 activations, int8 weights a channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Rows(CalibrationDataReader):
        def __init__(self):
            self.left = iter([{"input": images[0][row : row + 1]} for row in range(200)])

        def get_next(self):
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder, quiet():
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(export_onnx(model, images[0][:1], "output"))
        quantize_static(
            str(before), str(after), Rows(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return accuracy_of_file(after.read_bytes(), images)


def test_what_int8_loses_to_wild_channels_is_won_back_on_onnxruntime(images, wild):
    floats = accuracy_of_file(export_onnx(wild, images[0][:1], "output"), images)
    lost = int8_accuracy(wild, images)
    data = prepare(wild, images[0][:1200], images[1][:1200])
    step = QuantizationAwareTraining(epochs=6)
    trained = train_quantized(wild, step, data)
    won = int8_accuracy(trained.model, images)
    assert floats - lost > 0.1
    assert won - lost > 0.5 * (floats - lost)


@needs(Guest.LITERT_TORCH)
def test_what_int8_loses_to_wild_channels_is_won_back_on_litert(images, wild, monkeypatch):
    monkeypatch.setenv(Guest.LITERT_TORCH.variable, str(python_of(Guest.LITERT_TORCH)))
    x, y = images
    int8 = StaticInteger(Activations.INT8, boundary=Boundary.FLOAT)

    def right(file):
        answers = probe(file, RuntimeFamily.TFLITE, [x[1200:]]).answers[0]
        return float((answers.argmax(axis=1) == y[1200:]).mean())

    plain = export_tflite(wild, x[:8], "output", Layout.SOURCE)
    floats, lost = right(plain), right(quantize_tflite(plain, x[:200], int8))
    data = prepare(wild, x[:1200], y[:1200])
    trained = train_quantized(wild, QuantizationAwareTraining(8, Activations.INT8, epochs=6), data)
    won = right(quantize_tflite(export_tflite(trained.model, x[:8], "output", Layout.SOURCE), x[:200], int8))
    assert floats - lost > 0.1
    assert won - lost > 0.5 * (floats - lost)


def rounded(model, bits):
    """The model with weights of so many bits, symmetric, a scale for each output channel."""
    import copy

    import torch

    module = copy.deepcopy(model.module)
    top = 2 ** (bits - 1) - 1
    with torch.no_grad():
        for layer in (module[1], module[3]):
            scale = layer.weight.abs().amax(dim=1, keepdim=True) / top
            layer.weight.copy_((layer.weight / scale).round() * scale)
    return model_of(module)


def accuracy(model, images):
    import torch

    with torch.no_grad():
        answers = model.module(torch.from_numpy(images[0][1200:])).numpy()
    return float((answers.argmax(axis=1) == images[1][1200:]).mean())


def test_what_weights_of_two_bits_lose_is_won_back(images, tame):
    data = prepare(tame, images[0][:1200], images[1][:1200])
    step = QuantizationAwareTraining(weight_bits=2, activations=None, epochs=6, learning_rate=1e-2)
    trained = train_quantized(tame, step, data)
    floats, lost, won = (accuracy(one, images) for one in (tame, rounded(tame, 2), rounded(trained.model, 2)))
    assert floats - lost > 0.05
    assert won - lost > 0.5 * (floats - lost)


def test_the_result_is_a_float_network_of_the_same_shape_and_the_source_is_untouched(images, wild):
    before = {name: value.clone() for name, value in wild.module.state_dict().items()}
    step = QuantizationAwareTraining(epochs=1, activations=Activations.INT8)
    one, again = (train_quantized(wild, step, prepare(wild, *images)) for _ in range(2))
    assert one.race == again.race
    state = one.model.module.state_dict()
    assert state.keys() == before.keys()
    assert all(value.equal(again.model.module.state_dict()[name]) for name, value in state.items())
    assert all(value.equal(before[name]) for name, value in wild.module.state_dict().items())
    assert not all(value.equal(before[name]) for name, value in state.items())
    assert [type(each) for each in one.model.module] == [type(each) for each in wild.module]


def test_a_model_without_layers_is_told(images):
    import torch
    from torch import nn

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(10, 64))

        def forward(self, x):
            return nn.functional.linear(x.flatten(1), self.weight)

    model = model_of(Functional())
    with pytest.raises(BackendError, match="no convolution or linear layer"):
        train_quantized(model, QuantizationAwareTraining(), prepare(model, *images))


def normed(norm):
    import torch
    from torch import nn

    torch.manual_seed(0)
    with quiet():  # torch says that it has a newer weight_norm
        return model_of(nn.Sequential(nn.Flatten(), norm(nn.Linear(64, 16)), nn.ReLU(), nn.Linear(16, 10)))


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_a_layer_that_computes_its_weights_is_trained_as_what_it_is(images, norm):
    from torch.nn.utils import parametrizations

    model = normed(getattr(parametrizations, norm))
    trained = train_quantized(
        model, QuantizationAwareTraining(epochs=2, learning_rate=1e-2), prepare(model, *images)
    ).model
    before, after = model.module.state_dict(), trained.module.state_dict()
    assert after.keys() == before.keys()
    assert not all(value.equal(before[name]) for name, value in after.items())
    assert int8_accuracy(trained, images) > int8_accuracy(model, images) + 0.2


def test_a_norm_of_a_layer_that_is_not_simulated_stays(images):
    import torch
    from torch import nn
    from torch.nn.utils import parametrizations

    torch.manual_seed(0)
    solid = parametrizations.weight_norm(nn.Conv3d(1, 2, 1))
    model = model_of(
        nn.Sequential(nn.Unflatten(1, (1, 1, 8)), solid, nn.Flatten(), nn.ReLU(), nn.Linear(128, 10))
    )
    step = QuantizationAwareTraining(epochs=1)
    trained = train_quantized(model, step, prepare(model, *images)).model
    assert trained.module.state_dict().keys() == model.module.state_dict().keys()


def test_weights_that_a_hook_sets_are_told(images):
    from torch.nn import utils

    model = normed(utils.weight_norm)
    with pytest.raises(BackendError, match="layer 1 has no weight of its own") as caught:
        train_quantized(model, QuantizationAwareTraining(), prepare(model, *images))
    assert "torch.nn.utils.parametrizations" in caught.value.hint


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_that_no_quantizer_has(images, wild, bits):
    with pytest.raises(ConfigError, match=f"weights of {bits} bits"):
        train_quantized(wild, QuantizationAwareTraining(weight_bits=bits), prepare(wild, *images))
