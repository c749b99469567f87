"""One way in: whatever a factory returns or a .pt file holds is loaded for what it is, or said to be what it is."""

import numpy as np
import pytest
import torch

from converters.quiet import quiet
from converters.sources.load import load
from converters.sources.source import ModelFile
from converters.sources.source_name import SourceKind, parse_source
from converters.sources.torch_file import TorchFile, look
from converters.sources.torch_model import TorchModel
from converters.sources.torchscript import export_script
from edgeml.errors import ArtifactError, BackendError, ConfigError
from edgeml.manifest import RuntimeFamily, ScoreKind

pytestmark = pytest.mark.torch

IMAGES = np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32)
ROWS = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
NET = """
import numpy, torch
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(256, 5))
def program():
    batch = torch.export.Dim("batch")
    return torch.export.export(net().eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
def script():
    return torch.jit.script(net())
def fixed():
    return torch.jit.trace(Fixed(), torch.zeros(2, 3, 8, 8))
class Fixed(torch.nn.Module):
    def forward(self, x): return x.reshape(int(x.shape[0]), -1)[:, :5] * 1.0 + torch.arange(5.0) * (x.shape[0] > 2)
def lot(): return [1, 2]
"""
FOREST = """
import numpy
from sklearn.ensemble import HistGradientBoostingClassifier
def forest():
    x = numpy.random.default_rng(1).normal(size=(200, 4)).astype("float32")
    return HistGradientBoostingClassifier(max_iter=3).fit(x, x[:, 0] + x[:, 1] > 0)
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    (folder / "mine.py").write_text(NET)
    (folder / "forest.py").write_text(FOREST)
    return folder


@pytest.fixture(scope="module")
def net():
    space = {}
    exec(NET, space)  # our own text, above
    return space["net"]().eval()


def loaded(desk, name, samples=IMAGES):
    with quiet():
        return load(parse_source(f"{desk}/{name}"), samples)


def expected(net, images):
    with torch.no_grad():
        return net(torch.from_numpy(images)).numpy()


def test_a_module_can_become_both_and_be_trained(desk, net):
    source = loaded(desk, "mine.py:net")
    assert isinstance(source, TorchModel)
    np.testing.assert_array_equal(source.answers(IMAGES, "x"), expected(net, IMAGES))
    assert {source.can_become(family) for family in RuntimeFamily} == {""}
    assert source.can_be_trained() == ""
    assert source.warnings == ()


def test_a_program_can_become_both_and_is_not_trained(desk, net):
    source = loaded(desk, "mine.py:program")
    assert isinstance(source, TorchModel)
    assert source.batch_is_free
    np.testing.assert_allclose(source.answers(IMAGES, "x"), expected(net, IMAGES), atol=1e-5)
    assert "an exported program cannot be trained" in source.can_be_trained()


def test_torchscript_becomes_onnx_alone(desk, net):
    source = loaded(desk, "mine.py:script")
    assert isinstance(source, ModelFile)
    assert source.opset == 18
    np.testing.assert_allclose(source.answers(IMAGES, "x"), expected(net, IMAGES), atol=1e-5)
    np.testing.assert_allclose(source.file_answers(IMAGES, "x"), expected(net, IMAGES), atol=1e-4)
    assert "mine.py:script becomes ONNX, and there is no sound way" in source.can_become(RuntimeFamily.TFLITE)
    with quiet():
        again = export_script(torch.jit.script(net).eval(), IMAGES)
    assert again == source.model


def test_an_estimator_becomes_onnx_and_says_its_scores(desk):
    source = loaded(desk, "forest.py:forest", ROWS)
    assert isinstance(source, ModelFile)
    assert (source.scores, source.labels) == (ScoreKind.PROBABILITIES, ())
    assert source.answers(ROWS, "x").shape == (200, 2)
    np.testing.assert_allclose(source.file_answers(ROWS, "x"), source.answers(ROWS, "x"), atol=1e-5)


def test_something_else_is_said_to_be_no_model(desk):
    with pytest.raises(ConfigError, match=r"mine\.py:lot returned list, which is no model") as caught:
        loaded(desk, "mine.py:lot")
    assert "fitted scikit-learn estimator" in caught.value.hint


def test_a_trace_that_took_its_batch_for_a_constant_is_refused(desk):
    """Traced with two rows, it answers others otherwise than it was written to."""
    with pytest.raises((BackendError, ConfigError)) as caught:
        loaded(desk, "mine.py:fixed")
    assert caught.value.hint


@pytest.mark.parametrize("name", ["mine.py:net", "mine.py:script"])
def test_images_in_the_other_layout_are_named_by_trying(desk, name):
    wrong = np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1))
    with pytest.raises(ConfigError, match=r"samples of shape \[8, 8, 3\], which the model refuses") as caught:
        loaded(desk, name, wrong).answers(wrong, "the data")
    assert "the data are channels last (NHWC), the model takes channels first (NCHW)" in caught.value.hint


@pytest.mark.parametrize(
    ("net", "hint"),
    [
        ("nn.Flatten(), nn.Linear(192, 5).double()", "computes in float64, and models take float32: give model.float()"),
        ("nn.Flatten(), nn.Linear(192, 5).half()", "computes in float16, and models take float32: give model.float()"),
        ("nn.Unflatten(0, (1, 1)), nn.Flatten(0, 1), nn.Flatten(), nn.Linear(192, 5)", "only a batch of 1: leave the batch free"),
    ],
)  # fmt: skip
def test_a_module_that_has_to_change_is_told_how(tmp_path, net, hint):
    (tmp_path / "mine.py").write_text(f"from torch import nn\ndef net():\n    return nn.Sequential({net})\n")
    with pytest.raises(ConfigError, match="which the model refuses") as caught:
        loaded(tmp_path, "mine.py:net", IMAGES).answers(IMAGES, "the data")
    assert hint in caught.value.hint


class TestTorchFiles:
    """A .pt file is looked at before anything is opened."""

    def content(self, tmp_path, what, **how):
        torch.save(what, tmp_path / "net.pt", **how)
        return (tmp_path / "net.pt").read_bytes()

    @pytest.mark.parametrize("archive", [True, False], ids=["archive", "legacy"])
    def test_weights_are_told_from_a_pickled_module(self, tmp_path, net, archive):
        how = {"_use_new_zipfile_serialization": archive}
        assert look(self.content(tmp_path, net.state_dict(), **how))[0] is TorchFile.WEIGHTS
        assert (
            look(self.content(tmp_path, {"epoch": 3, "model": net.state_dict()}, **how))[0]
            is TorchFile.WEIGHTS
        )
        assert look(self.content(tmp_path, net, **how)) == (
            TorchFile.MODULE,
            "torch.nn.modules.container.Sequential",
        )

    @pytest.mark.parametrize(
        ("make", "error", "words", "hint"),
        [
            (lambda net, path: torch.save(net.state_dict(), path), ConfigError, "holds weights (a state_dict) and no model", "weights_only=True"),
            (torch.save, ArtifactError, "is a pickle that makes torch.nn.modules", "torch.jit.script(model).save"),
            (lambda _, path: path.write_bytes(b"cposix\nsystem\n(S'true'\ntR."), ArtifactError, "is a pickle that makes posix.system", "if you trust it"),
            (lambda _, path: path.write_bytes(b"garbage" * 9), ArtifactError, "is nothing that torch wrote", "truncated"),
            (lambda _, path: path.write_bytes(b"PK\x03\x04" * 9), ArtifactError, "is nothing that torch wrote", "truncated"),
        ],
        ids=["weights", "module", "hostile", "garbage", "broken archive"],
    )  # fmt: skip
    def test_what_is_no_torchscript_is_said_to_be_what_it_is(self, tmp_path, net, make, error, words, hint):
        make(net, tmp_path / "net.pth")
        with pytest.raises(error) as caught:
            loaded(tmp_path, "net.pth")
        assert words in caught.value.message
        assert hint in caught.value.hint

    def test_an_exported_program_under_the_wrong_name(self, tmp_path, desk):
        with quiet():
            space = {}
            exec(NET, space)
            torch.export.save(space["program"](), tmp_path / "net.pt2")
        (tmp_path / "net.pt2").rename(tmp_path / "net.pt")
        with pytest.raises(ConfigError, match="is an exported program") as caught:
            loaded(tmp_path, "net.pt")
        assert caught.value.hint == "name it .pt2"

    def test_torchscript_is_opened_in_the_sandbox_and_becomes_onnx(self, tmp_path, net):
        with quiet():
            torch.jit.save(torch.jit.script(net), tmp_path / "net.pt")
        assert look((tmp_path / "net.pt").read_bytes()) == (TorchFile.SCRIPT, "")
        assert parse_source(str(tmp_path / "net.pt")).kind is SourceKind.TORCHSCRIPT
        source = loaded(tmp_path, "net.pt")
        assert "net.pt is untrusted" in source.warnings[0]
        assert (source.made_from, source.opset) == ("net.pt", 18)
        np.testing.assert_allclose(source.file_answers(IMAGES, "x"), expected(net, IMAGES), atol=1e-4)
