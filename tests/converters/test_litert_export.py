"""torch to .tflite by litert-torch in its own interpreter: answers, layout, names, bytes, and what it refuses."""

import subprocess
import sys

import numpy as np
import pytest

from converters.sources.torch_model import TorchModel
from converters.steps.litert_export import Layout, export_tflite
from converters.steps.tflite_names import _path, distinct
from edgeml.child import ChildLimits
from edgeml.errors import BackendError, BudgetError, ConfigError
from edgeml.guest import Guest
from edgeml.manifest import RuntimeFamily
from edgeml.probe import probe

from .guests import needs, python_of

pytestmark = [pytest.mark.processes, pytest.mark.torch]
HAS_LITERT = needs(Guest.LITERT_TORCH)
SAMPLES = np.random.default_rng(0).normal(size=(6, 2, 8, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def _guests(monkeypatch):
    monkeypatch.setenv(Guest.LITERT_TORCH.variable, str(python_of(Guest.LITERT_TORCH)))


def model_of(module):
    return TorchModel(module.eval(), batch_is_free=True, sha256="0" * 64)


@pytest.fixture(scope="module")
def network():
    """Convolution with batch normalisation, a skip, depthwise, adaptive pooling (which no free batch bears), linear."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
            self.deep = nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            x = self.stem(x)
            return self.head(torch.flatten(self.pool(torch.relu(self.deep(x) + x)), 1))

    torch.manual_seed(0)
    return model_of(Net())


@pytest.fixture(scope="module")
def exported(network):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(Guest.LITERT_TORCH.variable, str(python_of(Guest.LITERT_TORCH)))
        return {layout: export_tflite(network, SAMPLES, "scores", layout) for layout in Layout}


@HAS_LITERT
class TestAnExport:
    @pytest.mark.parametrize("layout", Layout)
    def test_answers_as_torch_does_in_either_layout(self, network, exported, layout):
        import torch

        taken = SAMPLES if layout is Layout.SOURCE else np.moveaxis(SAMPLES, 1, -1).copy()
        result = probe(exported[layout], RuntimeFamily.TFLITE, [taken])
        with torch.no_grad():
            wanted = network.module(torch.from_numpy(SAMPLES)).numpy()
        np.testing.assert_allclose(result.answers[0], wanted, atol=1e-5)
        assert [(one.name, one.shape) for one in (*result.inputs, *result.outputs)] == [
            ("input", (1, *taken.shape[1:])),
            ("scores", (1, 3)),
        ]

    def test_names_its_layers_after_the_modules_and_nothing_after_this_machine(self, exported):
        from converters.steps.tflite_schema import unpack

        [graph] = unpack(exported[Layout.CHANNELS_LAST]).subgraphs
        names = {tensor.name.decode() for tensor in graph.tensors}
        assert {"stem.0", "stem.0.weight", "deep", "deep.bias", "head.weight"} <= names
        assert len(names) == len(graph.tensors)
        for word in (b"torch", b"Net", b"/", b"edgeml", b"Wrapper"):
            assert not any(word in name.encode() for name in names)

    def test_a_second_process_writes_the_same_bytes_and_says_nothing(self, network, exported, capfd):
        capfd.readouterr()
        again = export_tflite(network, SAMPLES[3:], "scores", Layout.CHANNELS_LAST)
        assert again == exported[Layout.CHANNELS_LAST]
        assert capfd.readouterr() == ("", "")

    def test_an_operator_that_it_cannot_convert_is_named(self):
        import torch

        class Spectrum(torch.nn.Module):
            def forward(self, x):
                return torch.linalg.svdvals(x.flatten(2))

        with pytest.raises(BackendError, match=r"litert-torch cannot convert.*svd"):
            export_tflite(model_of(Spectrum()), SAMPLES, "scores")

    def test_one_that_takes_too_much_memory_is_ended(self, network):
        with pytest.raises(BudgetError, match="more memory than allowed"):
            export_tflite(network, SAMPLES, "scores", limits=ChildLimits(memory_bytes=100 << 20))

    def test_one_that_takes_too_long_is_ended(self, network):
        with pytest.raises(BackendError, match=r"converted the model to \.tflite did not finish"):
            export_tflite(network, SAMPLES, "scores", limits=ChildLimits(timeout_s=0.2))

    def test_control_flow_on_values_is_the_users_to_change(self):
        import torch

        class Moody(torch.nn.Module):
            def forward(self, x):
                return x.sum((2, 3)) if x.mean() > 0 else -x.sum((2, 3))

        with pytest.raises(ConfigError, match="cannot be exported"):
            export_tflite(model_of(Moody()), SAMPLES, "scores")

    def test_samples_without_channels_have_none_to_put_last(self, network):
        with pytest.raises(ConfigError, match="no channels to put last"):
            export_tflite(network, SAMPLES[:, 0, 0], "scores", Layout.CHANNELS_LAST)


def test_without_litert_torch_the_error_says_how_to_get_it(network, monkeypatch):
    monkeypatch.delenv(Guest.LITERT_TORCH.variable)
    with pytest.raises(ConfigError, match="EDGEML_LITERT_TORCH_PYTHON") as caught:
        export_tflite(network, SAMPLES, "scores")
    assert "pip install" in caught.value.hint


def test_the_converting_process_loads_nothing_of_ours_that_its_interpreter_may_lack():
    code = "import sys, converters.steps.litert_child; print({'msgspec', 'numpy', 'click', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "which", "path"),
    [
        (b"a.b.Wrapper/x.y.Module_wrapped/x.Inner_l1/x.Inner_c1;", 0, "l1.c1"),
        (b"Root/M_l1/M_b1;;Root/M_l1/M_c1;3", -1, "l1.c1"),
        (b"Root/M_my_block/M_0;", 0, "my_block.0"),
        (b"Root;1", 0, ""),
        (b"", 0, ""),
        (None, -1, ""),
        (b"\xff;;", 0, ""),
    ],
)
def test_a_modules_path_is_read_from_a_tensors_name(name, which, path):
    assert _path(name, which) == path


def test_names_that_occur_twice_are_numbered_and_those_that_are_kept_stay():
    assert distinct(["a", "a_2", "a", "a"]) == ["a", "a_2", "a_3", "a_4"]
    assert distinct(["x", "in", "x"], frozenset({"in", "x_2"})) == ["x", "in", "x_3"]
